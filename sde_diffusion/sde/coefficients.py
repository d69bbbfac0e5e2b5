"""Coefficients of a path: numbers in float64, and their products with states of other types on other devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_floats

Time = float | Tensor
"""A time or a log signal-to-noise ratio: a number, or a tensor of shape [] or [B]."""

Number = float | Tensor
"""A coefficient: a number, or a tensor, [] if a gradient passes through it or [B] for items at different times (see
`number`)."""


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Cast a coefficient to x's type and device and shape it to broadcast against x.

    Args:
        coefficient: [] or [B], float64.
        x: [B, *].

    Returns:
        [] or [B, 1, ...]. A scalar on the CPU stays there: it then travels to the device as a kernel argument, without
        a copy or a synchronisation.

    Raises:
        TypeError: If x is not a tensor of floats.
        ValueError: If the number of coefficients is neither one nor B.
    """
    check_floats("x", x)
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype) if coefficient.device.type == "cpu" else coefficient.to(x)
    if coefficient.ndim > 1 or coefficient.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"t must be [] or [{x.shape[0]}], one time for each sample; got {list(coefficient.shape)}")
    return on_device(coefficient, x.device, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def on_device(value: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to a device, in its own precision or another; a copy from the CPU is not waited for."""
    return value.to(device=device, dtype=dtype or value.dtype, non_blocking=value.device.type == "cpu")


def clamp_keeping_slope(t: Tensor, low: float, high: float) -> Tensor:
    """Clamp times that may have rounded past the ends, with the derivative of the identity everywhere."""
    return t + (t.clamp(low, high) - t).detach()


def float64(value: Time) -> Tensor:
    """Convert a number or tensor to a float64 tensor, on its own device.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"a time must be a number or a tensor; got {value!r}") from None


def check_range(t: Tensor, end: float, path: object) -> None:
    """Check that times, on the CPU, are in [0, end].

    Raises:
        ValueError: If they are not.
    """
    low, high = (t, t) if t.ndim == 0 else t.aminmax()
    if not (low >= 0 and high <= end * (1 + 1e-6)):  # float32 times may round past the end
        where = f"{low.item():.6g}" if t.ndim == 0 else f"{low.item():.6g} ... {high.item():.6g}"
        raise ValueError(
            f"time {where} is outside the range of {path}: t must lie in [0, {end:g}], and is continuous "
            "(a step number is to be divided by the number of steps)"
        )


def number(value: Tensor) -> Number:
    """A coefficient, [], as a number; as it is if it is [B], or a gradient passes through it to a path's parameters."""
    return value if value.requires_grad or value.ndim else float(value)


def times(x: Tensor, weight: Number) -> Tensor:
    """X weight, of which [B] is a weight for each item."""
    return x * (expand(weight, x) if isinstance(weight, Tensor) and weight.ndim else weight)


def value_of(coefficient: Number) -> float:
    """A coefficient as a number, without gradient."""
    return float(coefficient.detach()) if isinstance(coefficient, Tensor) else float(coefficient)


def numbers(values: Tensor) -> list[Any]:
    """Coefficients, [N, ...], as nested lists; see `number`."""
    if not values.requires_grad:
        return values.tolist()
    return [numbers(row) if row.ndim else row for row in values]


def add(x: Tensor, y: Tensor, weight: Number) -> Tensor:
    """X + weight y."""
    return x + times(y, weight) if isinstance(weight, Tensor) else torch.add(x, y, alpha=weight)


def add_(x: Tensor, y: Tensor, weight: Number) -> Tensor:
    """X + weight y, in place if weight is a number."""
    return x + weight * y if isinstance(weight, Tensor) else x.add_(y, alpha=weight)


def difference(function: Callable[[Tensor], Tensor], s: Tensor, t: Tensor) -> Tensor:
    """function(t) - function(s); 0 where t = s, even if the function is infinite there."""
    return torch.where(s == t, 0.0, function(t) - function(s))


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt at t by automatic differentiation; differentiable in t and in the function's parameters."""
    recording = torch.is_grad_enabled()  # not in inference mode, under which Lightning validates
    with torch.inference_mode(False), torch.enable_grad():
        if not (recording and t.requires_grad):
            recording = recording and function(t.detach()).requires_grad
            t = t.detach().clone().requires_grad_()
        value = function(t).sum()
        if not value.requires_grad:  # a constant
            return torch.zeros_like(t.detach())
        (rate,) = torch.autograd.grad(value, t, create_graph=recording, allow_unused=True, materialize_grads=True)
    return rate
