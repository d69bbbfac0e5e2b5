"""What a raw network must be for a denoiser to be made of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from sde_diffusion.denoiser.conditions import keyword_names


def conditions_of(network: object) -> Collection[str] | None:
    """Names of the conditions that a network takes, None for any: its `condition_names`, or `forward`'s keywords.

    Raises:
        TypeError: If it is not a module with a `forward`.
    """
    if isinstance(network, type) or not isinstance(network, nn.Module):
        what = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise TypeError(f"network must be a torch.nn.Module with forward(x, t); got {what}")
    if type(_inner(network)).forward is nn.Module.forward:
        raise TypeError(f"network must have forward(x, t), and {type(network).__name__} has none")
    names: Collection[str] | None = getattr(network, "condition_names", None)
    return keyword_names(_forward(network), 2) if names is None else names


def takes_time(network: nn.Module) -> bool:
    """Whether a network's `forward` takes two arguments, as far as it says."""
    try:
        inspect.signature(_forward(network)).bind_partial(None, None)
    except ValueError:  # not written in Python
        return True
    except TypeError:
        return False
    return True


def checkpoint_activations(denoiser: nn.Module) -> None:
    """Have the networks of a denoiser keep only the inputs of their blocks in training; see `Network`.

    Raises:
        ValueError: If none of them can.
    """
    networks: list[Any] = [part for part in denoiser.modules() if hasattr(part, "activation_checkpointing")]
    if not networks:
        raise ValueError(
            "activation_checkpointing=true is for the library's networks (UNet, EDM2UNet, DiT, MLP), and for others "
            "that have an attribute of this name"
        )
    for network in networks:
        network.activation_checkpointing = True


def check_output(output: object, x: Tensor) -> None:
    """Check that what a network returned is a tensor of its input's shape.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is one of another shape.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the network must return a tensor of its input's shape {list(x.shape)}; got {type(output).__name__}: let "
            "its forward return the tensor in it"
        )
    if output.shape != x.shape:
        raise ValueError(
            f"the network must return a tensor of its input's shape {list(x.shape)}; got {list(output.shape)}"
        )


def _inner(network: nn.Module) -> nn.Module:
    """The network itself where torch.compile wraps it."""
    inner: nn.Module = getattr(network, "_orig_mod", network)
    return inner


def _forward(network: nn.Module) -> Callable[..., Any]:
    forward: Callable[..., Any] = _inner(network).forward
    return forward
