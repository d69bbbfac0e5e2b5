"""The data's own units, and the linear map from them to [-1, 1], the range that models take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """y = low + (high - low) (x + 1) / 2, for values y in the data's own units and x on [-1, 1].

    Args:
        low: The value of y at x = -1: one number for all dimensions, or one for each dimension of vectors [D].
        high: The value of y at x = 1, one for each of low, and above it.

    Raises:
        ValueError: If low and high differ in number, are NaN or infinite, or a high is not above its low.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.low, self.high, strict=False))
        if len(self.low) != len(self.high) or not pairs or not all(-math.inf < a < b < math.inf for a, b in pairs):
            raise ValueError(
                f"units need one finite high above each finite low; got low={list(self.low)}, high={list(self.high)}"
            )

    @classmethod
    def of(cls, description: Mapping[str, Sequence[float]] | None) -> Units | None:
        """The units with a given description, as `describe` returns it; None for None."""
        return None if description is None else cls(tuple(description["low"]), tuple(description["high"]))

    def describe(self) -> dict[str, Any]:
        """A description for checkpoints."""
        return {"low": list(self.low), "high": list(self.high)}

    def encode(self, y: Tensor) -> Tensor:
        """Map values in the data's own units, [B, *dims], to x, float32; nothing is clamped."""
        low, width = self._ends(y)
        return (2 * (y.double() - low) / width - 1).float()

    def decode(self, x: Tensor) -> Tensor:
        """Map x, [B, *dims], to the data's own units, float32."""
        low, width = self._ends(x)
        return (low + width * (x.double() + 1) / 2).float()

    def __str__(self) -> str:
        pairs = [f"[{low:.6g}, {high:.6g}]" for low, high in zip(self.low, self.high, strict=True)]
        return pairs[0] if len(pairs) == 1 else f"[{', '.join(pairs[:8])}{', ...' if len(pairs) > 8 else ''}]"

    def log_volume(self, dims: int) -> float:
        """log |dy/dx| over D = dims dimensions, in nats: log p(y) = log p(x) - log_volume."""
        logs = [math.log((high - low) / 2) for low, high in zip(self.low, self.high, strict=True)]
        return dims * logs[0] if len(logs) == 1 else math.fsum(logs)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor(ends, dtype=torch.float64, device=like.device) for ends in (self.low, self.high))
        return low, high - low
