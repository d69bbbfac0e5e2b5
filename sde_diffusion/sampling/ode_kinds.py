"""The kinds of methods for ordinary differential equations; `ode_methods` has the methods by name."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sde_diffusion.checks.hints import Count, Positive
from sde_diffusion.sampling.flow import Flow, MonitoredDrift
from sde_diffusion.sampling.solver_options import AtLeastOne, NotNegative, Places, Share, check_options, integer

if TYPE_CHECKING:
    from sde_diffusion.sampling.ode_methods import ODESolver

Norm = Callable[[Tensor], Tensor]
"""Size of an error: [B, *] -> []."""

Keep = Callable[[float, Tensor], None]
"""Called with values of u along the walk and the states there."""


def worst_rms(error: Tensor) -> Tensor:
    """Largest over the batch of each sample's root mean square; error: [B, *]."""
    return error.flatten(1).square().mean(1).max().sqrt()


@dataclass(frozen=True)
class Solution:
    """The result of a solver.

    Attributes:
        state: The state at the end, [B, *].
        coarser: The state with four times this tolerance, if the solver's own could not be met; else None. Items that
            met it, among others that could not, have the same state.
        rtol: The relative tolerance of `state`, the loosest of its items; the absolute one was loosened by the same
            factor.
    """

    state: Tensor
    coarser: Tensor | None
    rtol: float


@dataclass(frozen=True)
class Ends:
    """The interval of a solution, and where it is wanted in between.

    Attributes:
        start: u where the solution begins, 0 or 1.
        end: u where it ends, 1 or 0.
        places: Values of u where the solution is wanted, in the order of the walk; the ends may be among them.
        keep: Called with each of these and the state there.
    """

    start: float
    end: float
    places: Sequence[float] = ()
    keep: Keep | None = None

    def stops(self, y: Tensor) -> Tensor:
        """Start, places and end, each once, [stops], float64 on y's device."""
        inner = [u for u in self.places if u not in (self.start, self.end)]
        return torch.tensor([self.start, *inner, self.end], dtype=torch.float64, device=y.device)

    def hand_over(self, stops: Tensor, solution: Tensor) -> Tensor:
        """Call `keep` with the wanted states of a solution at `stops`, [stops, B, *]; returns the state at the end."""
        wanted = set(self.places)
        for u, y in zip(stops.tolist(), solution, strict=True):
            if self.keep is not None and u in wanted:
                self.keep(u, y)
        return solution[-1]


class ODEMethod(ABC):
    """A method for ordinary differential equations. A method of your own defines `adaptive` and `solve`."""

    adaptive: bool
    """Whether it chooses its steps by an error estimate."""

    single_pass = False
    """Whether it takes a given number of steps of one network pass each."""

    by_item = False
    """Whether it solves a `Separable` flow with steps of its own for each item."""

    takes: Mapping[str, Any] = {}
    """Its options."""

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check options, and add defaults; `name` is the method's, for messages.

        Raises:
            ValueError: If one is unknown or out of range.
        """
        return check_options(name, given, self.takes)

    @abstractmethod
    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """Solve dy/du = flow.drift(u, y).

        Args:
            solver: The tolerances, number of steps and options.
            flow: The equation.
            y: State at ends.start, [B, *].
            ends: The interval, and where the solution is wanted in between.
            norm: Size of an error, for adaptive methods.

        Returns:
            The state at ends.end, [B, *].
        """

    def solution(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Solution:
        """`solve`, with a second solution as an error estimate if the tolerance could not be met."""
        return Solution(self.solve(solver, flow, y, ends, norm), None, solver.rtol)


class FixedSteps(ODEMethod):
    """A method of torchdiffeq with a given number of steps.

    Args:
        name: torchdiffeq's name of it.
        single_pass: See `ODEMethod`.
    """

    adaptive = False

    takes: Mapping[str, Any] = {"step_size": Share, "interp": Literal["linear", "cubic"], "perturb": bool}

    def __init__(self, name: str, single_pass: bool = False) -> None:
        self.name = name
        self.single_pass = single_pass

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `ODEMethod.solve`."""
        own = dict(solver.options)
        size = own.pop("step_size", 1 / solver.steps)
        steps = math.ceil(1 / size - 1e-9)  # the last may be shorter
        done = (torch.arange(steps + 1, dtype=torch.float64) * size).clamp(max=1.0)
        done[-1] = 1.0
        places = (ends.start + (ends.end - ends.start) * done).to(y.device)
        # States in between are recorded at the ends of steps, so that nothing is interpolated.
        near = [places[(places - wanted).abs().argmin()].item() for wanted in ends.places]
        ends = replace(ends, places=list(dict.fromkeys(near)))
        # By a constructor: torchdiffeq would store the state at each of a list of times.
        options = {"grid_constructor": lambda drift, y, stops: places, **own}
        stops = ends.stops(y)
        return ends.hand_over(stops, solver.odeint(self.name, flow.drift, y, stops, options))


class FixedAdams(FixedSteps):
    """A multistep method of torchdiffeq, started with steps of rk4.

    Args:
        name: explicit_adams or implicit_adams.
        implicit: Whether each step is corrected; torchdiffeq's `max_order` is the corrector's, even if there is none.
    """

    def __init__(self, name: str, implicit: bool) -> None:
        super().__init__(name)
        self.implicit = implicit
        orders = (4, 12) if implicit else (3, 11)
        self.takes = {"order": integer(*orders), "max_order": integer(4, 12), "max_iters": Count, **FixedSteps.takes}

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`order`, 4 by default, which torchdiffeq calls `max_order`, and the others."""
        options = super().options(name, given)
        if "order" in options and "max_order" in options:
            raise ValueError(f"{name}: give order or max_order (torchdiffeq's count), not both")
        order = int(options.pop("order", 4))
        return {"max_order": order + (not self.implicit), **options}

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `ODEMethod.solve`."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = super().solve(solver, flow, y, ends, norm)
        unsettled = 0
        for warning in caught:
            if "Functional iteration did not converge" in str(warning.message):  # torchdiffeq's, one a step
                unsettled += 1
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if unsettled and bool(torch.isfinite(solution).all()):
            warnings.warn(
                f"{self.name}: in {unsettled} of {solver.steps} steps the corrections did not settle to within "
                f"rtol={solver.rtol:g}, atol={solver.atol:g}; if errors of that size matter, take more steps",
                stacklevel=2,
            )
        return solution


class Adaptive(ODEMethod):
    """A Runge-Kutta method of torchdiffeq with an error estimate.

    Args:
        name: torchdiffeq's name of it.
    """

    adaptive = True
    takes: Mapping[str, Any] = {
        "min_step": NotNegative,
        "max_step": Positive,
        "first_step": Positive,
        "step_t": Places,
        "jump_t": Places,
        "safety": Share,
        "ifactor": AtLeastOne,
        "dfactor": Share,
        "max_num_steps": Count,
    }

    def __init__(self, name: str) -> None:
        self.name = name

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `ODEMethod.solve`.

        Raises:
            UserError: If the tolerance is not met.
        """
        return self.monitored(solver, solver.monitor(flow), y, ends, norm)

    def monitored(self, solver: ODESolver, monitor: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """`solve` for a flow that is monitored."""
        try:
            solution = self.attempt(solver, monitor, y, ends, norm)
        except AssertionError as error:  # torchdiffeq's, for vanishing steps, NaN and too many steps
            if monitor.failure is not None:
                raise
            if "max_num_steps" in str(error):
                raise monitor.unmet(f"after max_num_steps = {solver.options['max_num_steps']} steps it") from None
            solution = None
        if solution is not None:
            return solution
        if monitor.broken():  # the caller finds out where it first occurred
            return torch.full_like(y, torch.nan)
        raise monitor.unmet("it")

    def attempt(self, solver: ODESolver, drift: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """The state at the end; None, or an AssertionError, if the solver gives up."""
        stops, options = ends.stops(y), dict(solver.options)
        # Otherwise it would step past the end, and interpolate back.
        options["step_t"] = torch.cat([stops.new_tensor(options.get("step_t", ())), stops[-1:]])
        if "jump_t" in options:
            options["jump_t"] = stops.new_tensor(options["jump_t"])
        return ends.hand_over(stops, solver.odeint(self.name, drift, y, stops, {"norm": norm, **options}))


class SciPy(Adaptive):
    """A Runge-Kutta method of SciPy, on the CPU in float64."""

    solvers = ("RK23", "RK45", "DOP853")
    """The explicit ones; the others form matrices of the squared size of the batch."""

    takes: Mapping[str, Any] = {"solver": Literal[solvers], "max_step": Positive}

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`solver`, RK45 by default, and the others."""
        return {"solver": "RK45", **super().options(name, given)}

    def attempt(self, solver: ODESolver, drift: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """See `Adaptive.attempt`."""
        stops = ends.stops(y)
        # SciPy's error is the root mean square over the batch, at least each sample's divided by sqrt B.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*arguments have no .* solver.*")  # torchdiffeq's min_step, to SciPy
            solution = solver.odeint(self.name, drift, y, stops, solver.options, tighter=len(y) ** -0.5)
        # States that were not reached are missing.
        return ends.hand_over(stops, solution) if len(solution) == len(stops) else None
