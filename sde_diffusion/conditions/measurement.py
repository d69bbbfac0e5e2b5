"""Numbers and vectors of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_sizes
from sde_diffusion.checks.reprs import shown
from sde_diffusion.conditions.base import Condition


class Measurement(Condition):
    """Real numbers in any units, such as a temperature (shape []) or a wind (shape [2]).

    The null value, "not measured", is NaN in all components by default. The library's networks embed
    (value - mean) / std, and a learned vector for the null value.

    Args:
        shape: Shape of one sample's value; [] for a number.
        mean: Mean of the values in the data, one number, or a list of `shape`.
        std: Their standard deviation, one number, or a list of `shape`; positive.
        null_value: The null value, in all components; None: NaN. For user-defined networks that cannot handle NaN.

    Raises:
        ValueError: If mean or std is not finite or has another shape, or std is not positive.
    """

    dtype = torch.float32

    def __init__(
        self,
        shape: Sequence[int] = (),
        mean: float | Sequence[Any] = 0.0,
        std: float | Sequence[Any] = 1.0,
        null_value: float | None = None,
    ) -> None:
        self.shape = check_sizes("shape", shape, "a list of positive sizes, [] for a number", least=0)
        self.mean, self.std = mean, std
        for name, value in (("mean", mean), ("std", std)):
            try:
                found = np.asarray(value, dtype=np.float64)  # not a tensor, which has no values on the meta device
            except (TypeError, ValueError):
                raise ValueError(f"{name} must be a number or a list of numbers; got {shown(value)}") from None
            if not np.isfinite(found).all():
                raise ValueError(f"{name} must be finite; got {shown(value)}")
            if found.shape not in ((), self.shape):
                raise ValueError(f"{name} must be a number or of shape {list(self.shape)}; got {list(found.shape)}")
            if name == "std" and not (found > 0).all():
                raise ValueError("std must be positive")
        self.null_value = null_value
        null = math.nan if null_value is None else as_number("null_value", null_value)
        self.null = torch.full(self.shape, null) if self.shape else null
        self.each = "number" if not self.shape else f"value of shape {list(self.shape)}"

    @classmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """All floats are measurements; mean and standard deviation are those of the training split."""
        train = splits[0].double()
        if not all(part.is_floating_point() for part in splits):
            return None
        mean, std = train.mean(0), train.std(0, correction=0)
        constant = std <= torch.finfo(torch.float32).eps * mean.abs()  # up to rounding
        std = std.masked_fill(constant, 1.0)
        return cls(list(train.shape[1:]), mean.tolist(), std.tolist())

    def allowed(self, name: str) -> str:
        """See `Condition.allowed`."""
        null = "NaN" if self.null_value is None else self.null_value
        return f"{name} must be finite numbers (or all {null}: no {name})"

    def takes(self, dtype: torch.dtype) -> bool:
        """Real numbers are allowed, except bools."""
        return dtype != torch.bool and not dtype.is_complex

    def wrong(self, values: Tensor) -> str:
        """Infinity, and NaN in some components of a sample's value, are out of range."""
        rows = values.reshape(-1, max(1, math.prod(self.shape)))
        missing = rows.isnan()
        bad = rows.isinf() | (missing & ~(missing.all(1, keepdim=True) & (self.null_value is None)))
        return str(rows[bad][0].item()) if bool(bad.any()) else ""

    def embedding(self, dim: int) -> nn.Module:
        """See `MeasurementEmbedding`."""
        return MeasurementEmbedding(self, dim)


class MeasurementEmbedding(nn.Module):
    """W_2 SiLU(W_1 z + b_1) + b_2, where z = (value - mean) / std; for the null value, a learned vector.

    Args:
        kind: The condition.
        dim: Size of the vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: Measurement, dim: int) -> None:
        super().__init__()
        for name, value in (("mean", kind.mean), ("std", kind.std)):
            filled = torch.as_tensor(value, dtype=torch.float32).expand(kind.shape)
            self.register_buffer(name, filled.reshape(-1).clone(), persistent=False)  # determined by `kind`
        self.null_value = kind.null_value
        self.input = nn.Linear(max(1, math.prod(kind.shape)), dim)
        self.output = nn.Linear(dim, dim)
        self.null = nn.Parameter(torch.randn(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Map values [N, *shape] to [N, dim]."""
        rows = values.reshape(len(values), -1)
        z = ((rows - self.mean) / self.std).to(self.input.weight.dtype)
        missing = (z.isnan() if self.null_value is None else rows == self.null_value).all(1, keepdim=True)
        found = self.output(F.silu(self.input(torch.where(missing, 0.0, z))))  # NaN would make the gradients NaN
        return torch.where(missing, self.null.to(found), found)
