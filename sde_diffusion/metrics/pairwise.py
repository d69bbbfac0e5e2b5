"""Distances between two sets of points, a tile at a time, so that no N x M matrix is ever held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1024
PRECISIONS = (torch.float32, torch.float64)  # of a search for neighbours, in the order in which they are tried


def slices(n: int) -> list[slice]:
    """Consecutive slices of at most `TILE` out of n."""
    return [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]


def tiles(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of an n x m matrix, row by row."""
    return ((rows, columns) for rows in slices(n) for columns in slices(m))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances |x_i - y_j|^2 as |x_i|^2 + |y_j|^2 - 2 x_i.y_j, cut at 0.

    The products lose about |x|^2 eps, see `rounding`. Centred points lose least.

    Args:
        x: [N, D].
        y: [M, D], of the same dtype.

    Returns:
        [N, M].
    """
    products = torch.addmm(y.square().sum(1).unsqueeze(0), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def rounding(x: Tensor, y: Tensor) -> Tensor:
    """By how much `squared_distances` among and between two sets are uncertain: 8 eps max |x|^2."""
    largest = torch.cat([x.square().sum(1), y.square().sum(1)]).max()
    return 8 * torch.finfo(x.dtype).eps * largest


def resolved(squared: Tensor, slack: Tensor) -> bool:
    """Whether squared distances are so far above their rounding that a search may trust them.

    Args:
        squared: Of neighbours, [N].
        slack: The rounding.

    Returns:
        True where all but a hundredth are above 1,000 times the rounding.
    """
    if not len(squared):
        return True
    return bool(squared.kthvalue(1 + len(squared) // 100).values > 1000 * slack)


def centred(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64 with the mean of the first at the origin, which leaves distances as they are."""
    middle = real.double().mean(0)
    return real.double() - middle, fake.double() - middle


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance [N] of each x to the nearest y, and that y's index [N].

    The search is in float32 where that tells neighbours apart; the distance that is found is exact.

    Args:
        x: [N, D] float64, close to the origin.
        y: [M, D] float64.
    """
    for dtype in PRECISIONS:
        a, b = x.to(dtype), y.to(dtype)
        least, index = a.new_full((len(a),), torch.inf), torch.zeros(len(a), dtype=torch.int64, device=a.device)
        for rows, columns in tiles(len(a), len(b)):
            found = squared_distances(a[rows], b[columns]).min(1)
            index[rows] = torch.where(found.values < least[rows], found.indices + columns.start, index[rows])
            torch.minimum(least[rows], found.values, out=least[rows])
        exact = [(x[rows] - y[index[rows]]).square().sum(1) for rows in slices(len(x))]
        squared = torch.cat([x.new_empty(0), *exact])
        if resolved(squared, rounding(a, b)):
            break
    return squared, index


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Squared distances [N, k] of each point of x [N, D] to its k nearest other points, nearest first."""
    radii = x.new_full((len(x), k), torch.inf)
    for rows, columns in tiles(len(x), len(x)):
        tile = squared_distances(x[rows], x[columns])
        if rows == columns:
            tile.fill_diagonal_(torch.inf)
        found = tile.topk(min(k, tile.shape[1]), dim=1, largest=False).values
        radii[rows] = torch.cat([radii[rows], found], 1).topk(k, dim=1, largest=False).values
    return radii
