"""How each kind of method for ordinary differential equations is called; `ode_methods` has the methods by name."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion.sampling.flow import Flow, MonitoredDrift
from sde_diffusion.sampling.solver_options import (
    AT_LEAST_ONE,
    BOOLEAN,
    COUNT,
    NOT_NEGATIVE,
    PLACES,
    POSITIVE,
    SHARE,
    Option,
    check_options,
    one_of,
    whole,
)

if TYPE_CHECKING:
    from sde_diffusion.sampling.ode_methods import ODESolver

Norm = Callable[[Tensor], Tensor]
"""Size of an error: [B, *] -> []."""

Keep = Callable[[float, Tensor], None]
"""Called with places u on the way and the states there."""


def worst_rms(error: Tensor) -> Tensor:
    """Largest over the batch of each sample's root mean square; error: [B, *]."""
    return error.flatten(1).square().mean(1).max().sqrt()


@dataclass(frozen=True)
class Solution:
    """What a solver has found.

    Attributes:
        state: The state at the end, [B, *].
        coarser: The same with four times the tolerance, where that of the solver was beyond reach; else None.
        rtol: The relative tolerance of `state`; the absolute one has been loosened by the same factor.
    """

    state: Tensor
    coarser: Tensor | None
    rtol: float


@dataclass(frozen=True)
class Ends:
    """From where to where, and what is wanted on the way.

    Attributes:
        start: u where the solution begins, 0 or 1.
        end: u where it ends, 1 or 0.
        places: Where it is wanted on the way, in this order, ends included or not.
        keep: Gets it.
    """

    start: float
    end: float
    places: Sequence[float] = ()
    keep: Keep | None = None

    def stops(self, y: Tensor) -> Tensor:
        """All of them, each once, [stops], float64 on y's device."""
        inner = [u for u in self.places if u not in (self.start, self.end)]
        return torch.tensor([self.start, *inner, self.end], dtype=torch.float64, device=y.device)

    def hand_over(self, stops: Tensor, solution: Tensor) -> Tensor:
        """Show what was wanted of the solution at `stops`, [stops, B, *]; the state at the end."""
        wanted = set(self.places)
        for u, y in zip(stops.tolist(), solution, strict=True):
            if self.keep is not None and u in wanted:
                self.keep(u, y)
        return solution[-1]


class Method(ABC):
    """How one method is called."""

    adaptive: bool
    """Whether it chooses its steps by their error."""

    single_pass = False
    """Whether each step costs one network pass, the number of steps being given."""

    takes: Mapping[str, Option] = {}
    """The options that it takes."""

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the method of that name, checked and completed.

        Raises:
            ValueError: If one is unknown or out of range.
        """
        return check_options(name, given, self.takes)

    @abstractmethod
    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """The state at the end, from y at the start."""

    def solution(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Solution:
        """The state at the end with what is known of its error."""
        return Solution(self.solve(solver, flow, y, ends, norm), None, solver.rtol)


class FixedSteps(Method):
    """A method of torchdiffeq with a given number of steps.

    Args:
        name: torchdiffeq's name of it.
        single_pass: See `Method`.
    """

    adaptive = False

    takes: Mapping[str, Option] = {"step_size": SHARE, "interp": one_of("linear", "cubic"), "perturb": BOOLEAN}

    def __init__(self, name: str, single_pass: bool = False) -> None:
        self.name = name
        self.single_pass = single_pass

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `Method.solve`."""
        own = dict(solver.options)
        size = own.pop("step_size", 1 / solver.steps)
        steps = math.ceil(1 / size - 1e-9)  # the last one is what is left
        done = (torch.arange(steps + 1, dtype=torch.float64) * size).clamp(max=1.0)
        done[-1] = 1.0
        places = (ends.start + (ends.end - ends.start) * done).to(y.device)
        # What is wanted on the way is given where the steps end: there nothing is interpolated.
        near = [places[(places - wanted).abs().argmin()].item() for wanted in ends.places]
        ends = replace(ends, places=list(dict.fromkeys(near)))
        # By a constructor: given as times, torchdiffeq would keep the state at each.
        options = {"grid_constructor": lambda drift, y, stops: places, **own}
        stops = ends.stops(y)
        return ends.hand_over(stops, solver.odeint(self.name, flow.drift, y, stops, options))


class FixedAdams(FixedSteps):
    """A multistep method of torchdiffeq, begun with steps of rk4.

    Args:
        name: explicit_adams or implicit_adams.
        implicit: Whether each step is corrected; torchdiffeq counts the corrector's order, also where there is none.
    """

    def __init__(self, name: str, implicit: bool) -> None:
        super().__init__(name)
        self.implicit = implicit
        orders = (4, 12) if implicit else (3, 11)
        self.takes = {"order": whole(*orders), "max_order": whole(4, 12), "max_iters": COUNT, **FixedSteps.takes}

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`order`, 4 if not given, for which torchdiffeq has `max_order`; and the others."""
        options = super().options(name, given)
        if "order" in options and "max_order" in options:
            raise ValueError(f"{name}: give order or max_order (torchdiffeq's count), not both")
        order = int(options.pop("order", 4))
        return {"max_order": order + (not self.implicit), **options}

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `Method.solve`."""
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


class Adaptive(Method):
    """A Runge-Kutta method of torchdiffeq with an error estimate.

    Args:
        name: torchdiffeq's name of it.
    """

    adaptive = True
    takes: Mapping[str, Option] = {
        **{"min_step": NOT_NEGATIVE, "max_step": POSITIVE, "first_step": POSITIVE, "step_t": PLACES, "jump_t": PLACES},
        **{"safety": SHARE, "ifactor": AT_LEAST_ONE, "dfactor": SHARE, "max_num_steps": COUNT},
    }

    def __init__(self, name: str) -> None:
        self.name = name

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `Method.solve`.

        Raises:
            UserError: If the tolerance is not met.
        """
        return self.monitored(solver, solver.monitor(flow), y, ends, norm)

    def monitored(self, solver: ODESolver, monitor: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """`solve` for a flow that is monitored."""
        try:
            solution = self.attempt(solver, monitor, y, ends, norm)
        except AssertionError as error:  # torchdiffeq's answer to steps that vanish, to NaN and to too many steps
            if monitor.failure is not None:
                raise
            if "max_num_steps" in str(error):
                raise monitor.unmet(f"after max_num_steps = {solver.options['max_num_steps']} steps it") from None
            solution = None
        if solution is not None:
            return solution
        if monitor.broken():  # the caller finds out where it began
            return torch.full_like(y, torch.nan)
        raise monitor.unmet("it")

    def attempt(self, solver: ODESolver, drift: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """The state at the end; None, or an AssertionError, if the solver gives up."""
        stops, options = ends.stops(y), dict(solver.options)
        # Without a step that ends there it would step past the end, and interpolate back.
        options["step_t"] = torch.cat([stops.new_tensor(options.get("step_t", ())), stops[-1:]])
        if "jump_t" in options:
            options["jump_t"] = stops.new_tensor(options["jump_t"])
        return ends.hand_over(stops, solver.odeint(self.name, drift, y, stops, {"norm": norm, **options}))


class SciPy(Adaptive):
    """A Runge-Kutta method of SciPy, on the CPU in float64."""

    solvers = ("RK23", "RK45", "DOP853")
    """The explicit ones; the others make matrices of the size of the batch's state squared."""

    takes: Mapping[str, Option] = {"solver": one_of(*solvers), "max_step": POSITIVE}

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`solver`, RK45 if not given, and the others."""
        return {"solver": "RK45", **super().options(name, given)}

    def attempt(self, solver: ODESolver, drift: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """See `Adaptive.attempt`."""
        stops = ends.stops(y)
        # SciPy's error is the root mean square over the batch, which is at least each sample's over sqrt B.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*arguments have no .* solver.*")  # torchdiffeq's min_step, to SciPy
            solution = solver.odeint(self.name, drift, y, stops, solver.options, tighter=len(y) ** -0.5)
        # What was not reached is left out.
        return ends.hand_over(stops, solution) if len(solution) == len(stops) else None
