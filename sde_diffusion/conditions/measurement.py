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
    """Real numbers in units of their own, such as a temperature (shape []) or a wind (shape [2]).

    NaN throughout is the null value, "not measured", unless another is given. The library's networks see
    (value - mean) / std, and a learned vector in place of the null value.

    Args:
        shape: Of one sample's value; [] for a number.
        mean: Of the data, one number for all, or one for each of the value's, a list of `shape`.
        std: Their standard deviation, likewise; positive.
        null_value: What stands for none, throughout; None: NaN. For networks of one's own that cannot take NaN.

    Raises:
        ValueError: If mean or std is not finite or of another shape, or std not positive.
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
                found = np.asarray(value, dtype=np.float64)  # tensors have no values where a network is built on trial
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
        """Any floats are measurements; mean and standard deviation are those of the training split."""
        train = splits[0].double()
        if not all(part.is_floating_point() for part in splits):
            return None
        mean, std = train.mean(0), train.std(0, correction=0)
        constant = std <= torch.finfo(torch.float32).eps * mean.abs()  # but for rounding
        std = std.masked_fill(constant, 1.0)
        return cls(list(train.shape[1:]), mean.tolist(), std.tolist())

    def allowed(self, name: str) -> str:
        """See `Condition.allowed`."""
        null = "NaN" if self.null_value is None else self.null_value
        return f"{name} must be finite numbers (or {null} throughout: no {name})"

    def takes(self, dtype: torch.dtype) -> bool:
        """Real numbers."""
        return dtype != torch.bool and not dtype.is_complex

    def wrong(self, values: Tensor) -> str:
        """Infinity, or NaN in a part of a sample's value."""
        rows = values.reshape(-1, max(1, math.prod(self.shape)))
        missing = rows.isnan()
        bad = rows.isinf() | (missing & ~(missing.all(1, keepdim=True) & (self.null_value is None)))
        return str(rows[bad][0].item()) if bool(bad.any()) else ""

    def embedding(self, dim: int) -> nn.Module:
        """See `MeasurementEmbedding`."""
        return MeasurementEmbedding(self, dim)


class MeasurementEmbedding(nn.Module):
    """W_2 SiLU(W_1 z + b_1) + b_2 of the standardised values z = (value - mean) / std; a learned vector for none.

    Args:
        kind: What the values are.
        dim: Size of the vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: Measurement, dim: int) -> None:
        super().__init__()
        for name, value in (("mean", kind.mean), ("std", kind.std)):
            filled = torch.as_tensor(value, dtype=torch.float32).expand(kind.shape)
            self.register_buffer(name, filled.reshape(-1).clone(), persistent=False)  # they follow from `kind`
        self.stated = kind.null_value
        self.input = nn.Linear(max(1, math.prod(kind.shape)), dim)
        self.output = nn.Linear(dim, dim)
        self.null = nn.Parameter(torch.randn(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Map values [N, *shape] to [N, dim]."""
        rows = values.reshape(len(values), -1)
        z = ((rows - self.mean) / self.std).to(self.input.weight.dtype)
        missing = (z.isnan() if self.stated is None else rows == self.stated).all(1, keepdim=True)
        found = self.output(F.silu(self.input(torch.where(missing, 0.0, z))))  # NaN would spoil the gradients
        return torch.where(missing, self.null.to(found), found)
