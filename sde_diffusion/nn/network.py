"""The base class of the library's networks, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sde_diffusion.checks import check_sizes
from sde_diffusion.nn.attention import first_derivatives_only
from sde_diffusion.nn.embedding import BaseConditioning


class Network(nn.Module):
    """The base class of the library's networks; see `NetworkDenoiser` for `casts_inputs` and `condition_names`.

    Attributes:
        shape: Shape of one sample.
        conditioning: The embedding of the noise level and the conditions.
        takes_noisy_data: Whether `forward` needs the noisy data on their own scale.
        activation_checkpointing: Whether training keeps only the inputs of the network's blocks, and computes what is
            in them again in the backward pass: less memory for about a quarter more time. Attention then has no second
            derivatives.
    """

    casts_inputs = True
    activation_checkpointing = False
    takes_noisy_data = False
    shape: tuple[int, ...]
    conditioning: BaseConditioning

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

    @property
    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Blocks of one kind and size, of which torch.compile needs to compile only one; empty: there are none."""
        return ()

    def apply_block(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """block(*args, **kwargs), with or without `activation_checkpointing`."""
        if not (self.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return block(*args, **kwargs)
        if torch.compiler.is_compiling():  # a graph knows which weights it has used
            return checkpoint(block, *args, use_reentrant=False, **kwargs)
        # The weights of this pass, which may be copies in another type (`NetworkDenoiser.compute_dtype`) which the
        # network no longer holds in the backward pass.
        weights = {**dict(block.named_parameters()), **dict(block.named_buffers())}

        def compute(*args: Any, **kwargs: Any) -> Any:
            with first_derivatives_only():
                return functional_call(block, weights, args, kwargs)

        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

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
