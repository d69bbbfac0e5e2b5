"""Layers of convolutional networks: convolution, group norm, and how blocks combine them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_positive, check_bool, check_choice, check_count

Convolution = nn.Conv1d | nn.Conv2d

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
"""By number of dimensions: of signals [C, L] and images [C, H, W]."""


def convolution(in_channels: int, out_channels: int, kernel: int, *, zero: bool = False, dims: int = 2) -> Convolution:
    """A convolution that keeps the size: odd kernel, bias 0, Xavier-uniform weights (EDM, DDPM++) or zeros."""
    conv = CONVOLUTIONS[dims](in_channels, out_channels, kernel, padding=kernel // 2)
    if zero:
        nn.init.zeros_(conv.weight)
    else:
        nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # typed optional, there by default
    return conv


class GroupNorm(nn.GroupNorm):
    """torch's, with the result in the input's order of memory: some kernels return channels-last images otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, *]."""
        out = super().forward(x)
        if x.ndim == 4 and x.stride(1) == 1 and out.stride(1) != 1:
            return out.contiguous(memory_format=torch.channels_last)
        return out


def group_norm(channels: int, *, affine: bool = True, eps: float = 1e-6, groups: int | None = None) -> nn.GroupNorm:
    """A group norm for any number of channels: at most 32 groups, of at least 4 channels if there are 4.

    The number of groups, unless it is given, is the largest common divisor of channels and min(32, channels // 4), at
    least 1.

    Raises:
        ValueError: If the channels cannot be divided into so many groups.
    """
    if groups is not None and channels % groups:
        raise ValueError(
            f"norm_groups={groups} must divide the channels of every norm, and one has {channels}: take "
            f"norm_groups={math.gcd(channels, groups)} or null"
        )
    groups = math.gcd(channels, min(32, channels // 4) or 1) if groups is None else groups
    return GroupNorm(groups, channels, eps=eps, affine=affine)


MODULATIONS = ("scale_shift", "affine_scale_shift", "shift")
"""How the conditioning vector acts on a residual block, by a and b, linear in it:

- scale_shift: (1 + a) Norm(h) + b, where the norm has no weights of its own;
- affine_scale_shift: the same, where it has weights (ADM);
- shift: Norm(h + b), where it has weights (DDPM; EDM on CIFAR-10).
"""


@dataclass(frozen=True)
class LayerStyle:
    """What differs between the published networks' layers.

    Args:
        dims: Number of dimensions of the data without their channels: 1 or 2.
        modulation: How the conditioning vector acts, a name in `MODULATIONS`.
        eps: Of the group norms.
        rescale: Whether residual sums are divided by sqrt(2).
        resample_skip: Whether blocks that resample have a 1x1 convolution on the skip connection.
        groups: Number of groups of each group norm; None: see `group_norm`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    dims: int = 2
    modulation: str = "scale_shift"
    eps: float = 1e-6
    rescale: bool = True
    resample_skip: bool = False
    groups: int | None = None

    def __post_init__(self) -> None:
        check_choice("modulation", self.modulation, MODULATIONS)
        as_positive("norm_eps", self.eps)
        check_bool("rescale", self.rescale)
        check_bool("resample_skip", self.resample_skip)
        if self.groups is not None:
            check_count("norm_groups", self.groups)

    @property
    def gain(self) -> float:
        """Factor of residual sums."""
        return math.sqrt(0.5) if self.rescale else 1.0

    def convolution(self, in_channels: int, out_channels: int, kernel: int, *, zero: bool = False) -> Convolution:
        """See `convolution`."""
        return convolution(in_channels, out_channels, kernel, zero=zero, dims=self.dims)

    def norm(self, channels: int, *, affine: bool = True) -> nn.GroupNorm:
        """See `group_norm`."""
        return group_norm(channels, affine=affine, eps=self.eps, groups=self.groups)


STYLE = LayerStyle()
"""That of DDPM++ as simplified in EDM, with scale and shift."""
