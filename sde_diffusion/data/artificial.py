"""Artificial images, to test how likely a model finds what is not data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion.data.seeding import generator
from sde_diffusion.data.split import Split
from sde_diffusion.modality.levels import to_levels


def gaussian_noise(n: int, shape: Sequence[int], mean: float, std: float) -> Tensor:
    """Independent normals with the data's mean and standard deviation, [n, *shape], clamped to [-1, 1]."""
    return (mean + std * torch.randn(n, *shape, generator=generator(0, 0))).clamp(-1, 1)


def blank(n: int, shape: Sequence[int], mean: float, std: float) -> Tensor:
    """Constant items, [n, *shape], whose values are evenly spaced from -1 to 1."""
    return torch.linspace(-1, 1, max(n, 2))[:n].reshape(n, *(1,) * len(shape)).expand(n, *shape).clone()


ARTIFICIAL: dict[str, Callable[[int, Sequence[int], float, float], Tensor]] = {"noise": gaussian_noise, "blank": blank}
"""The kinds by name."""


def artificial(kind: str, n: int, like: Split) -> Split:
    """n items of a kind in `ARTIFICIAL`, with the shape, levels, mean and standard deviation of a split."""
    some = like.tensor(torch.arange(min(len(like), 10_000)))
    x = ARTIFICIAL[kind](n, some.shape[1:], float(some.mean()), float(some.std()))
    return Split(x if like.levels is None else to_levels(x, like.levels), levels=like.levels)
