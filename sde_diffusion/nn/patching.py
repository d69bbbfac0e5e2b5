"""Signals [B, C, L] and images [B, C, H, W] cut into patches, and at other sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def patchify(x: Tensor, patch: int) -> Tensor:
    """Turn the pixels of each patch into channels: [B, C, H, W] to [B, C p^2, H/p, W/p], p the side of a patch.

    An image that the patches do not tile is first padded with zeros on the right and below.
    """
    if patch == 1:
        return x
    x = F.pad(x, [end for length in reversed(x.shape[2:]) for end in (0, -length % patch)])
    if x.ndim == 4:
        return F.pixel_unshuffle(x, patch)
    return x.reshape(*x.shape[:2], -1, patch).movedim(-1, 2).flatten(1, 2)


def unpatchify(x: Tensor, patch: int, size: Sequence[int]) -> Tensor:
    """Undo `patchify`, and crop to a size such as (H, W)."""
    if patch == 1:
        return x
    images = x.ndim == 4
    x = F.pixel_shuffle(x, patch) if images else x.reshape(len(x), -1, patch, x.shape[-1]).movedim(2, -1).flatten(-2)
    for dim, length in enumerate(size):
        x = x.narrow(2 + dim, 0, length)
    return x


def resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Signals or images interpolated to another size, linearly or bilinearly."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear" if len(size) == 2 else "linear")
