"""Super-resolution: a smaller picture, or a shorter signal, is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.checks import check_choice, check_count
from sde_diffusion.guidance.operators.base import Operator
from sde_diffusion.resizing import METHODS, along_axes, shrink, shrinking


class Downsample(Operator):
    """Each axis of the data, except channels, shortened by a factor: [B, C, H, W] -> [B, C, H / f, W / f].

    Args:
        factor: f, at least 2; the sizes of the data must be multiples of it.
        method: "area", the mean of each block of f x f; or "bicubic", Keys' kernel (a = -1/2), widened by f so that
            nothing aliases, as Pillow's BICUBIC.

    Raises:
        ValueError: If factor < 2, or the method is unknown; from a call, if a size is not a multiple of the factor.
    """

    def __init__(self, factor: int, method: str = "area") -> None:
        super().__init__()
        self.factor = check_count("factor", factor, least=2)
        self.method = check_choice("method", method, METHODS)

    def forward(self, x: Tensor) -> Tensor:
        """The smaller data; see `Operator.forward`."""
        return shrink(x, self.factor, self.method)

    def adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.adjoint`."""
        sizes = y.shape[min(2, y.ndim - 1) :]
        return along_axes(y, [shrinking(size * self.factor, self.factor, self.method).to(y).T for size in sizes])

    def filter(self, y: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """A A^T is a product of one matrix for each axis; see `Operator.filter`."""
        sizes = y.shape[min(2, y.ndim - 1) :]
        eigenvalues = self._eigenvalues(sizes)
        vectors = [_spectrum(size * self.factor, self.factor, self.method)[1].to(y) for size in sizes]
        turned = along_axes(y, [v.T for v in vectors])
        return along_axes(response(eigenvalues.to(y).expand_as(y)) * turned, vectors)

    def spectrum(self, out: Sequence[int]) -> Tensor:
        """Products of the eigenvalues of each axis; see `Operator.spectrum`."""
        sizes = out[min(1, len(out) - 1) :]
        found = self._eigenvalues(sizes).flatten()
        return found.repeat(math.prod(out) // found.numel())

    def _eigenvalues(self, sizes: Sequence[int]) -> Tensor:
        """Eigenvalues of A A^T for one channel of a measurement of these sizes, in its shape."""
        found = torch.ones((), dtype=torch.float64)
        for axis, size in enumerate(sizes):
            values, _ = _spectrum(size * self.factor, self.factor, self.method)
            found = found * values.reshape(-1, *(1,) * (len(sizes) - 1 - axis))
        return found

    def extra_repr(self) -> str:
        """The arguments."""
        return f"factor={self.factor}, method={self.method!r}"


@lru_cache(maxsize=32)
def _spectrum(size: int, factor: int, method: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the matrix times its transpose."""
    matrix = shrinking(size, factor, method)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return values.clamp(min=0), vectors
