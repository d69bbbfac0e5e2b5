"""The map between integer levels and [-1, 1], for data, scores and pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def from_levels(x: Tensor, levels: int) -> Tensor:
    """Map integer levels to the range that models take: k -> (2k - (L - 1)) / (L - 1) = 2k / (L - 1) - 1.

    The numerator is an integer, exact in float32, and only the division is rounded: every value is the float32 nearest
    to the exact one, and the ends are exactly -1 and 1.

    Args:
        x: Integers of any shape, 0 to levels - 1.
        levels: Number of levels L, at least 2.

    Returns:
        float32 of the same shape, on [-1, 1].
    """
    return x.to(torch.float32, copy=True).mul_(2).sub_(levels - 1).div_(levels - 1)


def to_levels(x: Tensor, levels: int) -> Tensor:
    """Map [-1, 1] to the nearest integer level, the inverse of `from_levels`; values outside are clamped.

    Args:
        x: Floats of any shape.
        levels: Number of levels L, 2 to 256.

    Returns:
        uint8 of the same shape, 0 to levels - 1.
    """
    return x.float().add(1).mul_((levels - 1) / 2).round_().clamp_(0, levels - 1).to(torch.uint8)


def level_counts(x: Tensor, levels: int) -> Tensor:
    """How often each value of data x [N, *dims] on [-1, 1] is on each level, int64 [levels, *dims]."""
    dims = x.shape[1:]
    place = torch.arange(dims.numel(), device=x.device)  # of a value among those of an item
    counts = torch.zeros(levels * dims.numel(), dtype=torch.int64, device=x.device)
    for part in torch.split(x, 1000):  # as indices take eight times the memory of levels
        index = to_levels(part, levels).flatten(1).long() * dims.numel() + place
        counts += torch.bincount(index.flatten(), minlength=len(counts))
    return counts.reshape(levels, *dims)
