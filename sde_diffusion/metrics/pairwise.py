"""Distances between two sets of points, a block of rows at a time, so that no N x M matrix is ever held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**23  # numbers in a block: 64 MB in float64


def slices(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices of `rows` rows whose blocks of `columns` columns hold at most `BLOCK` numbers each."""
    size = max(1, BLOCK // max(1, columns))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances |x_i - y_j|^2 as |x_i|^2 + |y_j|^2 - 2 x_i.y_j, cut at 0.

    The products lose |x|^2 eps: in float64 a true 0 comes out below 1e-14 of |x|^2. Centred points lose least.

    Args:
        x: [N, D] float64.
        y: [M, D] float64.

    Returns:
        [N, M].
    """
    products = torch.addmm(y.square().sum(1).unsqueeze(0), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def centred(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64 with the mean of the first at the origin, which leaves distances as they are."""
    middle = real.double().mean(0)
    return real.double() - middle, fake.double() - middle


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance [N] of each x [N, D] to the nearest y [M, D], and that y's index [N]."""
    found = [squared_distances(x[rows], y).min(1) for rows in slices(len(x), len(y))]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Squared distance [N] of each point of x [N, D] to its k-th nearest other point."""
    radii = []
    for rows in slices(len(x), len(x)):
        block = squared_distances(x[rows], x)
        block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)] = torch.inf
        radii.append(block.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)
