"""The base class of the library's networks, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_sizes
from sde_diffusion.nn.embedding import Conditioning
from sde_diffusion.nn.octaves import Octaves


class Network(nn.Module):
    """The base class of the library's networks; see `NetworkDenoiser` for `casts_inputs` and `condition_names`.

    Attributes:
        shape: Shape of one sample.
        conditioning: The embedding of the noise level and the conditions.
    """

    casts_inputs = True
    octaves: Octaves
    shape: tuple[int, ...]
    conditioning: Conditioning

    @property
    def takes_noisy_data(self) -> bool:
        """Whether `forward` needs the noisy data on their own scale."""
        return self.octaves.takes_noisy_data

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of the conditions that the network was built with, except those that only training sets."""
        return tuple(name for name, kind in self.conditioning.conditions.items() if not kind.training_only)

    @property
    def training_condition_names(self) -> tuple[str, ...]:
        """Names of the conditions that only training sets."""
        return tuple(name for name, kind in self.conditioning.conditions.items() if kind.training_only)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Tensor | None]:
        """Check conditions, and return them as `forward` takes them; see `Condition.check`."""
        return self.conditioning.conditions.check(conditions, batch, device, wait)

    def extra_repr(self) -> str:
        """Shape and conditions."""
        return f"shape={list(self.shape)}, conditions={self.conditioning.conditions}"


def check_arguments(x: Tensor, c_noise: Tensor, shape: tuple[int, ...]) -> None:
    """Check the arguments of a network's forward pass.

    Raises:
        ValueError: If x is not [B, *shape] or c_noise is neither [] nor [B].
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x must be [B, {', '.join(map(str, shape))}]; got {list(x.shape)}")
    if c_noise.ndim > 1 or (c_noise.ndim == 1 and c_noise.shape[0] != x.shape[0]):
        raise ValueError(f"c_noise must be [] or [{x.shape[0]}], one number per sample; got {list(c_noise.shape)}")


def check_shape(shape: Sequence[int], ndim: int | None = None) -> tuple[int, ...]:
    """The shape of one sample, as a tuple of ints.

    Raises:
        ValueError: If the shape is empty, a size is not a positive integer, or there are not `ndim` sizes.
    """
    allowed = f"{'a list of' if ndim is None else ndim} positive sizes without the batch"
    return check_sizes("shape", shape, allowed, least=ndim or 1, most=ndim or math.inf)
