"""The states along a walk that a trajectory records."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sde_diffusion.sde import Number, value_of


class Timed(Protocol):
    """A map of a solver's own time u in [0, 1] to t, increasing."""

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """t, and dt/du, at u."""


class EachPass:
    """A walk's callback that records belief and state at each network pass.

    Args:
        callback: A callback that is called too.
    """

    def __init__(self, callback: Callable[[int, float, Tensor, Tensor], bool | None] | None) -> None:
        self.callback = callback
        self.beliefs: list[Tensor] = []
        self.states: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, step: int, t: float, x: Tensor, x0: Tensor) -> bool | None:
        """Record; see `walk.Callback`."""
        self.beliefs.append(x0)
        self.states.append(x.clone())
        self.times.append(t)
        return None if self.callback is None else self.callback(step, t, x, x0)


class Frames:
    """States recorded along a walk, a number of them or at chosen times.

    A sampler with fixed steps announces its times once (`choose`) and reports its state at each (`visit`); a solver
    that can interpolate gets the `places` instead.

    Args:
        wanted: A number of at least 2, spread evenly over the sampler's own steps, both ends included; or a list of
            times.
        t_end: Clean end of the walk.
        t_max: Noisy end of the walk.

    Raises:
        ValueError: If wanted is neither, or a time lies outside [t_end, t_max].
    """

    def __init__(self, wanted: int | Sequence[float], t_end: float, t_max: float) -> None:
        self.count: int | None = None
        self.wanted: list[float] = []
        self.times: list[float] = []
        self.states: list[Tensor] = []
        self._chosen: set[float] = set()
        try:
            self.count = operator.index(wanted)  # type: ignore[arg-type]
        except TypeError:
            self.wanted = sorted({value_of(t) for t in wanted}, reverse=True)  # type: ignore[union-attr]
        if self.count is not None and self.count < 2:
            raise ValueError(f"trajectory must be True, a number of frames of at least 2, or times; got {wanted}")
        if self.count is None and not (self.wanted and all(t_end <= t <= t_max for t in self.wanted)):
            ends = f"[t_end, t_max] = [{t_end:g}, {t_max:g}]"
            raise ValueError(f"the times of a trajectory must lie in {ends}; got {wanted}")

    def choose(self, times: Tensor) -> None:
        """Choose among the times of a walk, [N + 1], the nearest to each that is wanted."""
        last = len(times) - 1
        if self.count is not None:
            index = torch.linspace(0, last, min(self.count, last + 1), dtype=torch.float64).round().long()
        else:
            wanted = torch.tensor(self.wanted, dtype=torch.float64)
            index = (wanted.unsqueeze(1) - times.double()).abs().argmin(1)
        self._chosen = set(times[index].tolist())

    def visit(self, x: Tensor, t: Tensor | float) -> None:
        """Record the state x at time t, if t was chosen."""
        if value_of(t) in self._chosen:
            self._chosen.discard(value_of(t))
            self.keep(x, value_of(t))

    def keep(self, x: Tensor, t: float) -> None:
        """Record the state x at time t."""
        self.times.append(t)
        self.states.append(x.clone())

    def places(self, clock: Timed, start: float, end: float) -> list[float]:
        """The values of u at which a solver from start to end (0 and 1, or 1 and 0) records the state."""
        if self.count is not None:
            return torch.linspace(start, end, self.count, dtype=torch.float64).tolist()
        found = []
        for t in self.wanted if start > end else reversed(self.wanted):
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if value_of(clock.time(middle)[0]) < t else (low, middle)
            # The ends exactly, if t is there.
            found.append(next((u for u in (0.0, 1.0) if abs(0.5 * (low + high) - u) < 1e-12), 0.5 * (low + high)))
        return found
