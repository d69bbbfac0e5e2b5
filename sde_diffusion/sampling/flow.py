"""What solvers of differential equations ask for, and how an adaptive one is stopped if it gets nowhere."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.sde import SDE, Number, value_of


class Flow(Protocol):
    """What a solver of ordinary differential equations asks for: dy/du = drift(u, y), u in [0, 1] -> t."""

    sde: SDE
    t_end: float

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """t and dt/du at u."""

    def passes(self, u: Tensor | float) -> int:
        """Network passes that the drift at u costs."""

    def drift(self, u: Tensor | float, y: Tensor) -> Tensor:
        """dy/du, of y's shape."""


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite; waits for the device."""
    return bool(torch.isfinite(x).all())


class LostError(AssertionError):
    """An adaptive solver has come upon numbers that are none (torchsde and torchdiffeq assert that it does not)."""


class MonitoredDrift:
    """A flow's drift for an adaptive solver: notes where the solver is, and ends a walk that gets nowhere.

    Args:
        process: The flow.
        max_nfe: Most network passes.
        advice: Settings to try where it gets nowhere.
    """

    def __init__(self, process: Flow, max_nfe: int, advice: str = "larger rtol and atol, or a larger max_nfe") -> None:
        self.process = process
        self.max_nfe = max_nfe
        self.advice = advice
        self.nfe = 0
        self.last: Tensor | None = None
        self.failure: AssertionError | None = None
        # A step of the solvers here takes two to thirteen slopes; six span the better part of one.
        self._recent: deque[float] = deque(maxlen=6)

    def __call__(self, u: Tensor | float, y: Tensor) -> Tensor:
        """The drift at (u, y).

        Raises:
            UserError: If max_nfe passes have been made.
            LostError: If u is not a number.
        """
        if math.isnan(u):
            raise LostError
        if self.nfe >= self.max_nfe:
            raise self.unmet(f"after max_nfe = {self.max_nfe} network passes it")
        self.nfe += self.process.passes(u)
        self._recent.append(value_of(self.process.time(u)[0]))
        try:
            self.last = self.process.drift(u, y)
        except AssertionError as error:  # the denoiser's own, which is not to be taken for the solver's
            self.failure = error
            raise
        return self.last

    def unmet(self, subject: str) -> UserError:
        """An error that says where the solver got stuck."""
        t, stride = max(self._recent), max(self._recent) - min(self._recent)
        return UserError(
            f"the adaptive solver cannot meet its tolerance: {subject} is at t = {t:.6g}, between "
            f"{self.process.t_end:g} and {self.process.sde.t_max:g}, with steps of about {stride:.2g}. Try "
            f"{self.advice}; a float64 state, a later t_end or a fixed-step method may help too"
        )

    def broken(self) -> bool:
        """Whether the last drift has numbers that are none (then the sampler's caller finds out which)."""
        return self.last is not None and not is_finite(self.last)
