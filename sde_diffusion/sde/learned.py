"""Paths with parameters, which are learned together with the network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.coefficients import Time, float64

_OF_TIMES = (
    "log_alpha",
    "log_sigma",
    "log_alpha_rate",
    "log_sigma_rate",
    "time",
    "alpha",
    "sigma",
    "log_snr",
    "alpha_rate",
    "sigma_rate",
    "log_snr_rate",
    "diffusion",
    "log_snr_speed",
    "_log_snr",
)
"""The functions of time that a subclass may define."""


class LearnedSDE(SDE, nn.Module):
    """A path that is a module: `log_alpha` and `log_sigma` may depend on parameters.

    A subclass calls `super().__init__(t_min=, t_max=)`, creates its parameters in float64, and defines the two
    functions. Gradients reach the parameters through everything computed from them: rates, kernels, times, grids,
    objectives, and, with `create_graph=True`, samples, likelihoods and bounds. The denoiser that is made with the path
    owns it: its parameters are in the denoiser's state dict and moving average, and move with it between devices,
    always in float64.

    Like all paths it returns coefficients on the device of the times. In training that is the device of its parameters;
    a walk on a GPU needs numbers on the CPU, and copies the parameters there once (see `SDE.on_cpu`). Two learned paths
    are equal only if they are the same object.

    Args:
        t_min: See `SDE`.
        t_max: See `SDE`.

    Raises:
        ValueError: If not 0 <= t_min < t_max.
    """

    learned = True

    def __init__(self, t_min: float = 0.0, t_max: float = 1.0) -> None:
        nn.Module.__init__(self)
        SDE.__init__(self, t_min=t_min, t_max=t_max)
        self._fetched: dict[str, Tensor] | None = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _OF_TIMES:
            if name in vars(cls):
                setattr(cls, name, _where_times_lie(vars(cls)[name]))

    def forward(self, method: Callable[..., Tensor], t: Tensor) -> Tensor:
        """Call a method of the path at t, with the current parameters; for `functional_call`."""
        return method(self, t)

    @contextmanager
    def on_cpu(self) -> Iterator[None]:
        """See `SDE.on_cpu`: a copy of the parameters on the CPU, through which gradients pass."""
        before = self._fetched
        self._fetched = self._copies(torch.device("cpu"))
        try:
            yield
        finally:
            self._fetched = before

    def _copies(self, device: torch.device) -> dict[str, Tensor] | None:
        """Copies of parameters and buffers on a device; None if they are there already."""
        if self._fetched is not None and device.type == "cpu":
            return self._fetched
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if all(value.device == device for value in own.values()):
            return None
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            return {name: value.to(device) for name, value in own.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow a move to another device, but not a change of precision."""

        def moved(value: Tensor) -> Tensor:
            found = fn(value)
            return found if found.dtype == value.dtype else value.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]


def _where_times_lie(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Time], Tensor]:
    """Wrap a method so that it uses copies of the path's parameters on the device of the times."""

    @functools.wraps(method)
    def answer(self: LearnedSDE, t: Time) -> Tensor:
        t = float64(t)
        copies = self._copies(t.device)
        if copies is None:
            return method(self, t)
        found: Tensor = functional_call(self, copies, (method, t))
        return found

    return answer
