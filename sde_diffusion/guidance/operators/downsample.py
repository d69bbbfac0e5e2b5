"""Super-resolution: a smaller picture, or a shorter signal, is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.checks import check_choice, check_count
from sde_diffusion.guidance.operators.base import Operator, along_axes


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
        self.method = check_choice("method", method, ("area", "bicubic"))

    def forward(self, x: Tensor) -> Tensor:
        """The smaller data; see `Operator.forward`."""
        sizes = x.shape[min(2, x.ndim - 1) :]
        if any(size % self.factor for size in sizes):
            raise ValueError(f"Downsample({self.factor}) needs sizes that are multiples of it; got {list(sizes)}")
        return along_axes(x, [self._matrix(size, x) for size in sizes])

    def adjoint(self, y: Tensor) -> Tensor:
        """See `Operator.adjoint`."""
        sizes = y.shape[min(2, y.ndim - 1) :]
        return along_axes(y, [self._matrix(size * self.factor, y).T for size in sizes])

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

    def _matrix(self, size: int, like: Tensor) -> Tensor:
        return _shrinking(size, self.factor, self.method).to(like)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"factor={self.factor}, method={self.method!r}"


@lru_cache(maxsize=32)
def _shrinking(size: int, factor: int, method: str) -> Tensor:
    """The matrix [size / factor, size] of one axis, float64."""
    unit = torch.eye(size, dtype=torch.float64)
    if method == "area":
        return unit.reshape(-1, factor, size).mean(1)
    shrunk = F.interpolate(unit[None, None], (size, size // factor), mode="bicubic", antialias=True)
    return shrunk[0, 0].T.contiguous()


@lru_cache(maxsize=32)
def _spectrum(size: int, factor: int, method: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the matrix times its transpose."""
    matrix = _shrinking(size, factor, method)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return values.clamp(min=0), vectors
