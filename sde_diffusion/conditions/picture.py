"""Pictures, such as a smaller one of what is to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_sizes
from sde_diffusion.conditions.base import Condition


class Picture(Condition):
    """Values of the kind of x itself, on [-1, 1], such as a smaller picture [C, h, w].

    The null value, "no picture", is NaN in all numbers. The library's networks take a picture as further input beside
    x: a U-Net as further channels, resized to x's height and width (bilinear), a perceptron as further numbers. The
    null value is a picture of zeros there, and a learned vector in the embedding tells it from others.

    Args:
        shape: Shape of one sample's value; [C, h, w] for a U-Net.

    Raises:
        ValueError: If the shape is empty or not of positive sizes.
    """

    dtype = torch.float32
    beside_x = True

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = check_sizes("shape", shape)
        self.null = torch.full(self.shape, math.nan)
        self.each = f"picture of shape {list(self.shape)}"

    @classmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """None: floats of data sets are measurements."""
        return None

    def allowed(self, name: str) -> str:
        """See `Condition.allowed`."""
        return f"{name} must be finite numbers, {list(self.shape)} for each sample (or all NaN: no {name})"

    def takes(self, dtype: torch.dtype) -> bool:
        """Only floats are allowed: integers might be on 0 ... 255."""
        return dtype.is_floating_point

    def wrong(self, values: Tensor) -> str:
        """Infinite numbers, and NaN beside others."""
        rows = values.reshape(-1, math.prod(self.shape))
        missing = rows.isnan()
        bad = rows.isinf() | (missing & ~missing.all(1, keepdim=True))
        return str(rows[bad][0].item()) if bool(bad.any()) else ""

    def words(self, value: Tensor) -> str:
        """See `Condition.words`."""
        return "none" if bool(value.isnan().all()) else self.what

    def embedding(self, dim: int) -> nn.Module:
        """A learned vector for the null value, and 0 for all others."""
        return _Presence(dim)


class _Presence(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(dim))

    def forward(self, values: Tensor) -> Tensor:
        missing = values.flatten(1).isnan().all(1, keepdim=True)
        return torch.where(missing, self.null, 0.0)
