"""Inpainting: some numbers of the data are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers, check_sizes
from sde_diffusion.checks.reprs import shown
from sde_diffusion.guidance.operators.base import Operator


class Mask(Operator):
    """The known numbers of the data: A x = x[mask], in order, [B, M].

    Args:
        mask: True (or 1) where the data are known, False (or 0) where they are to be filled; of the data's shape, or
            broadcastable to `shape`.
        shape: Shape of the data; that of the mask by default.

    Raises:
        TypeError: If the mask is not a tensor or numbers.
        ValueError: If the mask has other values, has another shape, or all or none of the numbers are known.
    """

    part_of_data = True
    index: Tensor

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        mask = as_numbers("mask", mask)
        known = mask != 0
        if not bool((known == mask).all()):
            raise ValueError(f"mask must be 1 where the data are known and 0 elsewhere; got {shown(mask)}")
        self.dims = tuple(mask.shape) if shape is None else check_sizes("shape", shape)
        try:
            known = known.broadcast_to(self.dims)
        except RuntimeError:
            raise ValueError(f"mask must broadcast to {list(self.dims)}; got shape {list(mask.shape)}") from None
        if bool(known.all()) or not bool(known.any()):
            found = "all" if bool(known.any()) else "none"
            raise ValueError(f"mask must have both known and unknown numbers; {found} are known")
        self.register_buffer("index", known.flatten().nonzero().flatten())

    def forward(self, x: Tensor) -> Tensor:
        """The known numbers, [B, M]; see `Operator.forward`."""
        if tuple(x.shape[1:]) != self.dims:
            raise ValueError(f"the mask is for data of shape {list(self.dims)}; got {list(x.shape[1:])}")
        return x.flatten(1)[:, self.index]

    def adjoint(self, y: Tensor) -> Tensor:
        """The known numbers in their places, and 0 elsewhere; see `Operator.adjoint`."""
        full = y.new_zeros(len(y), *self.dims).flatten(1)
        return full.index_copy(1, self.index, y).reshape(-1, *self.dims)

    def filter(self, y: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """A A^T is the identity; see `Operator.filter`."""
        return response(torch.ones_like(y)) * y

    def spectrum(self, out: Sequence[int]) -> Tensor:
        """Ones; see `Operator.spectrum`."""
        return torch.ones(math.prod(out), dtype=torch.float64, device=self.index.device)

    def extra_repr(self) -> str:
        """The number of known numbers, and the shape."""
        return f"known={len(self.index)}, shape={list(self.dims)}"
