"""Colourisation: the grey picture is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from sde_diffusion.checks import as_numbers
from sde_diffusion.guidance.operators.base import Operator


class Grey(Operator):
    """A weighted sum over channels, [B, C, *] -> [B, 1, *].

    Args:
        weights: Weight of each channel; the mean of three by default. The luma of RGB is (0.299, 0.587, 0.114).

    Raises:
        ValueError: If the weights are not a list of numbers other than 0; from a call if there are not as many
            channels.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)) -> None:
        super().__init__()
        found = as_numbers("weights", weights)
        if found.ndim != 1 or not bool(found.any()):
            raise ValueError(f"weights must be a list of numbers, one for each channel, not all 0; got {weights}")
        self.register_buffer("weights", found)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum; see `Operator.forward`."""
        if x.ndim < 3 or x.shape[1] != len(self.weights):
            raise ValueError(f"Grey is for data with {len(self.weights)} channels; got shape {list(x.shape[1:])}")
        return (self._spread(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each channel's weight times y; see `Operator.adjoint`."""
        return self._spread(y) * y

    def filter(self, y: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """A A^T is the sum of the squared weights; see `Operator.filter`."""
        return response(self.weights.to(y).square().sum().expand_as(y)) * y

    def spectrum(self, out: Sequence[int]) -> Tensor:
        """The sum of the squared weights, M times; see `Operator.spectrum`."""
        return self.weights.square().sum().repeat(math.prod(out))

    def _spread(self, like: Tensor) -> Tensor:
        """The weights, [1, C, 1, ...], to multiply a tensor [B, *, ...]."""
        return self.weights.to(like).reshape(1, -1, *(1,) * (like.ndim - 2))

    def extra_repr(self) -> str:
        """The weights."""
        return f"weights={[round(weight, 4) for weight in self.weights.tolist()]}"
