"""Distances between two sets of points, in tiles, so that no N x M matrix is stored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1024
PRECISIONS = (torch.float32, torch.float64)  # for a search of neighbours, in the order in which they are tried


def slices(n: int) -> list[slice]:
    """Consecutive slices of at most `TILE` out of n."""
    return [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]


def tiles(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of an n x m matrix, row by row."""
    return ((rows, columns) for rows in slices(n) for columns in slices(m))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances |x_i - y_j|^2 as |x_i|^2 + |y_j|^2 - 2 x_i.y_j, clamped at 0.

    Their error is about eps |x|^2 (see `rounding`), which is smallest for centred points.

    Args:
        x: [N, D].
        y: [M, D], same dtype.

    Returns:
        [N, M].
    """
    products = torch.addmm(y.square().sum(1).unsqueeze(0), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def rounding(x: Tensor, squared: Tensor) -> Tensor:
    """Rounding error of `squared_distances` from points to others near them: 8 eps (|x|^2 + distance^2).

    It is computed for each point: one far away loses digits, but the others do not.

    Args:
        x: [N, D].
        squared: Squared distances of each, [N] or [N, k].

    Returns:
        The shape of `squared`.
    """
    norms = x.square().sum(1)
    return 8 * torch.finfo(x.dtype).eps * (squared + (norms if squared.ndim == 1 else norms.unsqueeze(1)))


def resolved(x: Tensor, squared: Tensor) -> bool:
    """Whether squared distances [N] of points x [N, D] are far enough above their rounding to be compared.

    Returns:
        True where all but a hundredth are above 1,000 times the rounding.
    """
    ratio = squared / rounding(x, squared).clamp(min=torch.finfo(x.dtype).tiny)
    return bool(ratio.kthvalue(1 + len(ratio) // 100).values > 1000)


def centred(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64, shifted so that the mean of the first is 0; distances do not change."""
    middle = real.double().mean(0)
    return real.double() - middle, fake.double() - middle


def nearest_shares(x: Tensor, y: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """How many x have each y as their nearest, [M], and the mark of each x's nearest, [N].

    Several y at equal distances, up to rounding, are counted as equal parts of one, and their mean mark is returned.
    The search is in float32, and repeated in float64 where rounding might change the order of the two nearest.

    Args:
        x: [N, D] float64, close to the origin.
        y: [M, D] float64, M >= 1.
        marks: [M] float64.
    """
    a, b = x.float(), y.float()
    least, index = _two_nearest(a, b)
    clear = least[:, 1] - least[:, 0] > 4 * rounding(a, least[:, 0])
    counts, found = index[clear].bincount(minlength=len(y)).to(x), marks[index]
    for rows in torch.split(torch.nonzero(~clear).squeeze(1), 64):
        some = x[rows]
        distance = _two_nearest(some, y)[0][:, 0]
        limit = (distance + 4 * rounding(some, distance)).unsqueeze(1)
        near = torch.cat([squared_distances(some, y[columns]) <= limit for columns in slices(len(y))], 1).to(x)
        shares = near / near.sum(1, keepdim=True)
        counts, found[rows] = counts + shares.sum(0), shares @ marks
    return counts, found


def _two_nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [N, 2] of each x to the two nearest y (infinity if there is one), and the nearest's index."""
    least = x.new_full((len(x), 2), torch.inf)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for rows, columns in tiles(len(x), len(y)):
        tile = squared_distances(x[rows], y[columns])
        first = tile.min(1)
        second = tile.scatter_(1, first.indices.unsqueeze(1), torch.inf).amin(1)
        index[rows] = torch.where(first.values < least[rows, 0], first.indices + columns.start, index[rows])
        found = torch.cat([least[rows], first.values.unsqueeze(1), second.unsqueeze(1)], 1)
        least[rows] = found.topk(2, dim=1, largest=False).values
    return least, index


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
