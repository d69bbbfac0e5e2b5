"""Checks of the arguments of a sampler's call, made once before the walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sde_diffusion.checks import as_number, check_finite, check_floats, check_sizes
from sde_diffusion.sde import SDE

NO_STEP_LEFT = "with denoise=True one step goes to the last prediction: steps must be at least 2"


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a batch, as a tuple.

    Raises:
        ValueError: If it is not (B, *dims), of positive integers.
    """
    return check_sizes("shape", shape, "(B, *dims) with B >= 1, all of them positive integers")


def check_latent(latent: Any, shape: tuple[int, ...]) -> None:
    """Check the state at which a walk begins.

    Raises:
        TypeError: If it is not a tensor of floats.
        ValueError: If it has another shape, or a number is NaN or infinite.
    """
    check_floats("latent", latent)
    if tuple(latent.shape) != shape:
        raise ValueError(f"latent must have shape {shape}; got {tuple(latent.shape)}")
    check_finite("latent", latent)


def check_t_end(t_end: Any, sde: SDE) -> float:
    """The time of a walk's or a flow's end at the data; the path's t_min for None.

    Raises:
        ValueError: If it lies outside the path.
    """
    end = sde.t_min if t_end is None else as_number("t_end", t_end)
    if not 0 <= end < sde.t_max:
        raise ValueError(f"t_end must lie in [0, t_max = {sde.t_max:g}) of {sde}; got {t_end}")
    return end


def check_t_start(t_start: Any, t_end: float, sde: SDE) -> float:
    """The time of a walk's beginning; the path's t_max for None.

    Raises:
        ValueError: If it does not lie after t_end, on the path.
    """
    start = sde.t_max if t_start is None else as_number("t_start", t_start)
    if not t_end < start <= sde.t_max:
        raise ValueError(f"t_start must lie in (t_end, t_max] = ({t_end:g}, {sde.t_max:g}] of {sde}; got {t_start}")
    return start


def check_dtype(dtype: Any) -> None:
    """Check that the state's type is float32 or float64, which are precise enough.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the state is float32 or float64 of torch (autocast the network for less); got dtype={dtype!r}"
        )


def check_device(device: torch.device | str | None, denoiser: nn.Module) -> torch.device:
    """The device to sample on: the denoiser's, if no other is given.

    Raises:
        ValueError: If there is no such device, or the denoiser is on another.
    """
    own = next((weight.device for weight in (*denoiser.parameters(), *denoiser.buffers())), None)
    if device is None:
        return torch.device("cpu") if own is None else own
    try:
        chosen = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError):
        raise ValueError(f"device={device!r} is not one that is here; take 'cpu', 'cuda' or none") from None
    if own is not None and own != chosen:
        raise ValueError(f"the denoiser lies on {own}, and device={device!r}: move it, denoiser.to({str(device)!r})")
    return chosen
