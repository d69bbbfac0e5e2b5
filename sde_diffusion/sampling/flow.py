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
    """An ordinary differential equation for a solver: dy/du = drift(u, y), with a map u in [0, 1] -> t."""

    sde: SDE
    t_end: float

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """t and dt/du at u."""

    def passes(self, u: Tensor | float) -> int:
        """Network passes that the drift at u costs."""

    def drift(self, u: Tensor | float, y: Tensor) -> Tensor:
        """dy/du, of y's shape."""


class Separable(Flow, Protocol):
    """A flow of which each item can be at a place of its own: `drift` takes u [B].

    Attributes:
        rows: Most items of a call of `drift`; the others wait until one of them is at the end.
    """

    rows: int

    def part(self, items: Tensor) -> Separable:
        """The flow of some items; items: [N], int64, on the CPU."""

    def sizes(self, error: Tensor) -> Tensor:
        """Size of each item's error, [B, *] -> [B]."""

    def slowest(self) -> tuple[int, int]:
        """Which of these items, 0 ... B - 1, has had the most network passes, and how many."""


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite; waits for the device."""
    return bool(torch.isfinite(x).all())


class LostError(AssertionError):
    """An adaptive solver has met NaN (torchsde and torchdiffeq answer that with an AssertionError too)."""


class MonitoredDrift:
    """A flow's drift for an adaptive solver: counts network passes, and stops a solver that makes no progress.

    Args:
        process: The flow.
        max_nfe: Largest number of network passes.
        advice: Settings to try, for the message if the solver makes no progress.
    """

    def __init__(self, process: Flow, max_nfe: int, advice: str = "larger rtol and atol, or a larger max_nfe") -> None:
        self.process = process
        self.max_nfe = max_nfe
        self.advice = advice
        self.nfe = 0
        self.last: Tensor | None = None
        self.failure: AssertionError | None = None
        # The solvers evaluate the drift two to thirteen times a step; the last six span most of a step.
        self._recent: deque[float] = deque(maxlen=6)

    def __call__(self, u: Tensor | float, y: Tensor, part: Separable | None = None) -> Tensor:
        """The drift at (u, y).

        Args:
            u: [], or [B] for a flow whose items can be at different places.
            y: The state, [B, *].
            part: The flow of some items, those of y, whose passes count by item; that of all by default.

        Raises:
            UserError: If max_nfe passes have been made.
            LostError: If u is NaN.
        """
        slowest, made = (0, self.nfe) if part is None else part.slowest()
        last = float(u[slowest]) if isinstance(u, Tensor) and u.ndim else float(u)
        if math.isnan(last):
            raise LostError
        if made >= self.max_nfe:
            raise self.unmet(f"after max_nfe = {self.max_nfe} network passes it")
        flow = self.process if part is None else part
        if part is None:
            self.nfe += flow.passes(u)
        self._recent.append(last)
        try:
            self.last = flow.drift(u, y)
        except AssertionError as error:  # the denoiser's own, not to be confused with the solver's
            self.failure = error
            raise
        if part is not None:
            self.nfe = max(self.nfe, part.slowest()[1])
        return self.last

    def unmet(self, subject: str) -> UserError:
        """An error that says where the solver is stuck."""
        times = [value_of(self.process.time(u)[0]) for u in self._recent]
        t, stride = max(times), max(times) - min(times)
        return UserError(
            f"the adaptive solver cannot meet its tolerance: {subject} is at t = {t:.6g}, between "
            f"{self.process.t_end:g} and {self.process.sde.t_max:g}, with steps of about {stride:.2g}. Try "
            f"{self.advice}; a float64 state, a later t_end or a fixed-step method may help too"
        )

    def broken(self) -> bool:
        """Whether the last drift has NaN or infinite numbers; the sampler then repeats the walk to find out which."""
        return self.last is not None and not is_finite(self.last)
