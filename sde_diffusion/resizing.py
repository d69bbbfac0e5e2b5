"""The kernels by which data are made smaller: one for data sets, operators, and models that enlarge.

A model that was trained on pictures made smaller by one kernel draws wrong ones from those made by another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

METHODS = ("area", "bicubic")


@lru_cache(maxsize=32)
def shrinking(size: int, factor: int, method: str) -> Tensor:
    """The matrix [size / factor, size] that shortens one axis, float64.

    Args:
        size: Length of the axis, a multiple of the factor.
        factor: How many times shorter it becomes.
        method: "area", the mean of each block; or "bicubic", Keys' kernel (a = -1/2), widened by the factor so that
            nothing aliases, as Pillow's BICUBIC.
    """
    unit = torch.eye(size, dtype=torch.float64)
    if method == "area":
        return unit.reshape(-1, factor, size).mean(1)
    shrunk = F.interpolate(unit[None, None], (size, size // factor), mode="bicubic", antialias=True)
    return shrunk[0, 0].T.contiguous()


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of x, [..., n_1, ..., n_k], by one matrix [m_i, n_i] each."""
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return x


def shrink(x: Tensor, factor: int, method: str = "area") -> Tensor:
    """Data [B, C, *sizes] or [B, D] with each axis except channels shortened by a factor, at least 2.

    Raises:
        ValueError: If a size is not a multiple of the factor.
    """
    sizes = x.shape[min(2, x.ndim - 1) :]
    if any(size % factor for size in sizes):
        raise ValueError(f"a factor of {factor} needs sizes that are multiples of it; got {list(sizes)}")
    return along_axes(x, [shrinking(size, factor, method).to(x) for size in sizes])
