"""What an augmentation of the training data did to a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count
from sde_diffusion.conditions.base import Condition


class AugmentationLabels(Condition):
    """Numbers that describe an augmentation, [size], 0 for a sample that is as it was: this is the null value.

    The library's networks embed them by a linear map without bias, so that the null value adds nothing.

    Args:
        size: Number of numbers, at least 1.

    Raises:
        ValueError: If size is not positive.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.2.
    """

    dtype = torch.float32
    training_only = True
    null = 0.0

    def __init__(self, size: int) -> None:
        self.size = check_count("size", size)
        self.shape = (self.size,)
        self.each = f"list of {self.size} numbers"

    @classmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """None: data sets have no such values."""
        return None

    def allowed(self, name: str) -> str:
        """See `Condition.allowed`."""
        return f"{name} must be finite numbers, {self.size} for each sample (or all 0: not augmented)"

    def takes(self, dtype: torch.dtype) -> bool:
        """Only floats are allowed."""
        return dtype.is_floating_point

    def wrong(self, values: Tensor) -> str:
        """Infinity and NaN are out of range."""
        bad = values[~values.isfinite()]
        return str(bad[0].item()) if math.prod(bad.shape) else ""

    @property
    def n_numbers(self) -> int:  # type: ignore[override]
        """Those of the augmentation itself."""
        return self.size

    def numbers(self, values: Tensor) -> Tensor:
        """The values, whose size says how much was done."""
        return values

    def embedding(self, dim: int) -> nn.Module:
        """A linear map without bias."""
        return _Linear(self.size, dim, bias=False)

    def zero_null(self, dim: int) -> nn.Module:
        """The same, as it maps the null value to 0."""
        return self.embedding(dim)


class _Linear(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.to(self.weight.dtype))
