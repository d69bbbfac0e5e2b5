"""The kernels by which data are made smaller: one for data sets, operators, and models that enlarge.

A model that was trained on pictures made smaller by one kernel draws wrong ones from those made by another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.checks import check_choice


def _area(unit: Tensor, factor: int) -> Tensor:
    """The mean of each block of rows."""
    return unit.reshape(-1, factor, len(unit)).mean(1)


def _bicubic(unit: Tensor, factor: int) -> Tensor:
    """Keys' kernel (a = -1/2), widened by the factor so that nothing aliases, as Pillow's BICUBIC."""
    size = len(unit)
    return F.interpolate(unit[None, None], (size, size // factor), mode="bicubic", antialias=True)[0, 0].T.contiguous()


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {"area": _area, "bicubic": _bicubic}
"""The kernels by name, as functions of the unit matrix and the factor."""


@lru_cache(maxsize=32)
def shrinking(size: int, factor: int, method: str) -> Tensor:
    """The matrix [size / factor, size] that shortens one axis, float64.

    Args:
        size: Length of the axis, a multiple of the factor.
        factor: How many times shorter it becomes.
        method: A name of `METHODS`.

    Raises:
        ValueError: If there is no such method.
    """
    return METHODS[check_choice("method", method, METHODS)](torch.eye(size, dtype=torch.float64), factor)


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of x, [..., n_1, ..., n_k], by one matrix [m_i, n_i] each."""
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return x


def shrink(x: Tensor, factor: int, method: str = "area") -> Tensor:
    """Data [B, C, *sizes] or [B, D] with each axis except channels shortened by a factor, at least 2.

    Raises:
        ValueError: If a size is not a multiple of the factor, or there is no such method.
    """
    sizes = x.shape[min(2, x.ndim - 1) :]
    if any(size % factor for size in sizes):
        raise ValueError(f"a factor of {factor} needs sizes that are multiples of it; got {list(sizes)}")
    return along_axes(x, [shrinking(size, factor, method).to(x) for size in sizes])
