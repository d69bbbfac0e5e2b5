"""Signals [B, C, L] and images [B, C, H, W] cut into windows, and at other sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def to_windows(x: Tensor, side: int) -> Tensor:
    """Make channels of windows: [B, C, H, W] to [B, C side^2, H/side, W/side], after zeros on the right and below."""
    if side == 1:
        return x
    x = F.pad(x, [end for length in reversed(x.shape[2:]) for end in (0, -length % side)])
    if x.ndim == 4:
        return F.pixel_unshuffle(x, side)
    return x.reshape(*x.shape[:2], -1, side).movedim(-1, 2).flatten(1, 2)


def from_windows(x: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """Undo `to_windows`, to a size such as (H, W)."""
    if side == 1:
        return x
    images = x.ndim == 4
    x = F.pixel_shuffle(x, side) if images else x.reshape(len(x), -1, side, x.shape[-1]).movedim(2, -1).flatten(-2)
    for dim, length in enumerate(size):
        x = x.narrow(2 + dim, 0, length)
    return x


def resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Signals or images at another size, linear or bilinear."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear" if len(size) == 2 else "linear")
