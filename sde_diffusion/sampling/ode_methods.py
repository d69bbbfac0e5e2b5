"""Methods for ordinary differential equations: torchdiffeq's, and Adams' with steps of its own choosing."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive, check_choice, check_count
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.adams import RoughError, adams
from sde_diffusion.sampling.reverse import Flow, Watch
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
    """A method of torchdiffeq that takes the steps it is given."""

    adaptive = False

    takes: Mapping[str, Option] = {"step_size": SHARE, "interp": one_of("linear", "cubic"), "perturb": BOOLEAN}

    def __init__(self, single_pass: bool = False) -> None:
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
        return ends.hand_over(stops, solver.odeint(flow.drift, y, stops, options))


class FixedAdams(FixedSteps):
    """A multistep method of torchdiffeq, begun with steps of rk4.

    Args:
        implicit: Whether each step is corrected; torchdiffeq counts the corrector's order, also where there is none.
    """

    def __init__(self, implicit: bool) -> None:
        super().__init__()
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
                f"{solver.method}: in {unsettled} of {solver.steps} steps the corrections did not settle to within "
                f"rtol={solver.rtol:g}, atol={solver.atol:g}; if errors of that size matter, take more steps",
                stacklevel=2,
            )
        return solution


class Adaptive(Method):
    """A Runge-Kutta method of torchdiffeq with an error estimate."""

    adaptive = True
    takes: Mapping[str, Option] = {
        **{"min_step": NOT_NEGATIVE, "max_step": POSITIVE, "first_step": POSITIVE, "step_t": PLACES, "jump_t": PLACES},
        **{"safety": SHARE, "ifactor": AT_LEAST_ONE, "dfactor": SHARE, "max_num_steps": COUNT},
    }

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `Method.solve`.

        Raises:
            UserError: If the tolerance is not met.
        """
        return self.watched(solver, solver.watch(flow), y, ends, norm)

    def watched(self, solver: ODESolver, watch: Watch, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """`solve` for a flow that is watched."""
        try:
            solution = self.attempt(solver, watch, y, ends, norm)
        except AssertionError as error:  # torchdiffeq's answer to steps that vanish, to NaN and to too many steps
            if watch.failure is not None:
                raise
            if "max_num_steps" in str(error):
                raise watch.unmet(f"after max_num_steps = {solver.options['max_num_steps']} steps it") from None
            solution = None
        if solution is not None:
            return solution
        if watch.broken():  # the caller finds out where it began
            return torch.full_like(y, torch.nan)
        raise watch.unmet("it")

    def attempt(self, solver: ODESolver, drift: Watch, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """The state at the end; None, or an AssertionError, if the solver gives up."""
        stops, options = ends.stops(y), dict(solver.options)
        # Without a step that ends there it would step past the end, and interpolate back.
        options["step_t"] = torch.cat([stops.new_tensor(options.get("step_t", ())), stops[-1:]])
        if "jump_t" in options:
            options["jump_t"] = stops.new_tensor(options["jump_t"])
        return ends.hand_over(stops, solver.odeint(drift, y, stops, {"norm": norm, **options}))


_LOOSEST, _FACTOR, _ENOUGH, _MOST = 100.0, 4.0, 300.0, 1000
"""Where a slope is rough in time: the first tolerance and the least difference of two solutions worth more passes, in
tolerances; what the next is smaller by; and the most passes that it may be expected to take."""


class Adams(Adaptive):
    """Our own Adams method; see `adams` and `ODESolver`."""

    takes: Mapping[str, Option] = {"order": whole(1, 6)}  # beyond, its steps are tiny

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`order`, 4 if not given."""
        return {"order": 4, **super().options(name, given)}

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `Method.solve`; warns where the tolerance had to be loosened."""
        found = self.solution(solver, flow, y, ends, norm)
        if found.coarser is not None:
            off = float((found.state - found.coarser).detach().square().mean().sqrt())
            warnings.warn(
                f"{ROUGH}: solved with rtol={found.rtol:.2g} in place of {solver.rtol:g}, which changes the states by "
                f"{off:.2g} (root mean square) from four times that",
                stacklevel=2,
            )
        return found.state

    def solution(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Solution:
        """See `Method.solution`: where the slope is rough in time, with the smallest tolerance that passes allow."""
        watch = solver.watch(flow)
        try:
            return Solution(self._kept(solver, watch, y, ends, norm), None, solver.rtol)
        except RoughError:
            factor = _LOOSEST
        found: Solution | None = None
        while True:
            looser = copy(solver)
            looser.rtol, looser.atol, looser.settles = factor * solver.rtol, factor * solver.atol, True
            before = watch.nfe
            try:
                state = self._kept(looser, watch, y, ends, norm)
            except UserError:
                if found is None or found.coarser is None:
                    raise
                return found
            found = Solution(state, None if found is None else found.state, looser.rtol)
            passes = watch.nfe - before
            factor /= _FACTOR
            most = min(_MOST, solver.max_nfe - watch.nfe)
            if found.coarser is not None:
                scale = solver.atol + solver.rtol * state.abs()
                off = float(norm((state - found.coarser).detach() / scale.detach()))
                if not off > _ENOUGH or factor < 1 or _FACTOR * passes > most:
                    return found

    def _kept(self, solver: ODESolver, watch: Watch, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """`watched`, of which only a walk to the end hands over what is wanted on the way."""
        met: list[tuple[float, Tensor]] = []
        own = ends if ends.keep is None else replace(ends, keep=lambda u, y: met.append((u, y)))
        state = self.watched(solver, watch, y, own, norm)
        for u, there in met:
            if ends.keep is not None:
                ends.keep(u, there)
        return state

    def attempt(self, solver: ODESolver, drift: Watch, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """See `Adaptive.attempt`."""
        order, tolerances = int(solver.options["order"]), (solver.rtol, solver.atol)
        if ends.keep is not None and ends.places and ends.places[0] == ends.start:
            ends.keep(ends.start, y)
            ends = replace(ends, places=ends.places[1:])
        test, places, keep = not solver.settles, ends.places, ends.keep
        walk = (drift, y, ends.start, ends.end, *tolerances, norm, order)
        return adams(*walk, test_roughness=test, places=places, keep=keep)


class SciPy(Adaptive):
    """A Runge-Kutta method of SciPy, on the CPU in float64."""

    solvers = ("RK23", "RK45", "DOP853")
    """The explicit ones; the others make matrices of the size of the batch's state squared."""

    takes: Mapping[str, Option] = {"solver": one_of(*solvers), "max_step": POSITIVE}

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`solver`, RK45 if not given, and the others."""
        return {"solver": "RK45", **super().options(name, given)}

    def attempt(self, solver: ODESolver, drift: Watch, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """See `Adaptive.attempt`."""
        stops = ends.stops(y)
        # SciPy's error is the root mean square over the batch, which is at least each sample's over sqrt B.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*arguments have no .* solver.*")  # torchdiffeq's min_step, to SciPy
            solution = solver.odeint(drift, y, stops, solver.options, tighter=len(y) ** -0.5)
        # What was not reached is left out.
        return ends.hand_over(stops, solution) if len(solution) == len(stops) else None


ROUGH = "the denoiser is rough in time (it has noise, or turns thousands of times on the way)"
"""What is said of it."""

METHODS: dict[str, Method] = {
    "adams": Adams(),
    **dict.fromkeys(("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"), Adaptive()),
    "scipy_solver": SciPy(),
    "euler": FixedSteps(single_pass=True),
    **dict.fromkeys(("midpoint", "heun2", "heun3", "rk4"), FixedSteps()),
    "explicit_adams": FixedAdams(implicit=False),
    "implicit_adams": FixedAdams(implicit=True),
    "fixed_adams": FixedAdams(implicit=True),  # torchdiffeq's former name of it
}
"""The methods on offer: all of torchdiffeq's, and `adams`."""


class ODESolver:
    """One of `METHODS` with its tolerances, or its number of steps.

    Adaptive: adams (options={"order": 4}: 1 to 6; one pass a step, see `adams`), torchdiffeq's dopri5, dopri8, bosh3,
    fehlberg2, adaptive_heun (orders 5, 8, 3, 2, 2) and scipy_solver (options={"solver": "RK45"}, or "RK23", "DOP853").
    The error of a step is the worst over the samples of each sample's root mean square, so that no sample is let off
    because others are easy (SciPy only knows the mean over the batch: its tolerances are divided by sqrt B, which
    bounds each sample's). The tolerance is each step's: errors of ten to twenty tolerances at the end are usual with
    adams, and of a hundred with fehlberg2, whose estimate is of its first-order part and small.

    Where the slope is rough in time, adams does not follow every turn: it solves with 100 times the tolerance, then
    with a quarter of that, and so on, until two solutions in a row differ by less than 300 tolerances as asked for, or
    the next is likely to take more than 1,000 passes. That last difference is what it can say of its error, in a
    warning or by `solution`: the true one was 0.1 to 1.0 times as large on models of the digits.

    Options of torchdiffeq's adaptive methods, passed on to it: min_step (taken whatever the error), max_step,
    first_step, step_t and jump_t (lists of places where a step must end, the latter of discontinuities), safety,
    ifactor, dfactor, max_num_steps; of scipy_solver also max_step. Steps and places are in the solver's own time u, in
    which a walk is from 1 (t_max) to 0 (t_end): shares of the walk. Of the methods below, which take given steps:
    step_size in place of `steps`, perturb and interp (without effect, since nothing is interpolated; cubic costs
    passes); of the Adams methods also max_iters, and max_order, torchdiffeq's count, in place of order. Not on offer:
    norm (see above), dtype (times are float64), grid_constructor (`grid` is it), implicit (by name), and SciPy's
    implicit methods and min_step, which its explicit ones do not know.

    In `steps` uniform steps: euler (order 1), midpoint, heun2 (2), heun3 (3), rk4 (4), explicit_adams and
    implicit_adams, also called fixed_adams (options={"order": 4}: 3 to 11 and 4 to 12; begun with low orders, so that
    globally 4 and 5 are the most), of 1, 2, 2, 3, 4, 1 and 2 to 5 network passes. implicit_adams repeats a step's
    correction up to four times, until it changes by less than the tolerance; where it does not come to that, a warning
    says in how many steps.

    Args:
        method: See above.
        rtol: Relative tolerance, positive (adaptive methods; the iterations of implicit_adams).
        atol: Absolute tolerance, positive (likewise).
        steps: Number of steps of the methods that do not choose them, at least 1; 50 if not given.
        max_nfe: Most network passes of an adaptive method.
        options: See above.

    Raises:
        ValueError: If the method or an option is unknown, a tolerance is not positive, steps or max_nfe too small, or
            steps are given to a method that chooses its own.
    """

    def __init__(
        self,
        method: str,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        max_nfe: int = 10_000,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        if steps is not None and METHODS[method].adaptive:
            fixed = ", ".join(name for name, other in METHODS.items() if not other.adaptive)
            raise ValueError(f"{method} chooses its own steps by rtol and atol; methods that take steps: {fixed}")
        self.method = method
        self.rtol, self.atol = as_positive("rtol", rtol), as_positive("atol", atol)
        self.steps = check_count("steps", 50 if steps is None else steps)
        self.max_nfe = check_count("max_nfe", max_nfe)
        self.options = METHODS[method].options(method, {} if options is None else options)
        if steps is not None and "step_size" in self.options:
            raise ValueError("give steps or the option step_size, not both")
        self.settles = False  # for what the tolerance gives, however rough the slope

    @property
    def single_pass(self) -> bool:
        """Whether `steps` counts network passes."""
        return METHODS[self.method].single_pass

    def __call__(
        self,
        flow: Flow,
        y: Tensor,
        start: float,
        end: float,
        norm: Norm = worst_rms,
        places: Sequence[float] = (),
        keep: Keep | None = None,
    ) -> Tensor:
        """Solve dy/du = flow.drift(u, y).

        Args:
            flow: The equation.
            y: State at u = start, [B, *].
            start: 0 or 1.
            end: 1 or 0.
            norm: Size of an error.
            places: Where the solution is wanted on the way, in the order of the walk.
            keep: Called with each of these and the state there: exactly there with an adaptive method, which
                interpolates by its own order; with the others at the nearest of its steps' ends.

        Returns:
            The state at u = end; not a number where a slope was none.

        Raises:
            UserError: If an adaptive method cannot meet its tolerance.
        """
        return METHODS[self.method].solve(self, flow, y, Ends(start, end, places, keep), norm)

    def solution(self, flow: Flow, y: Tensor, start: float, end: float, norm: Norm = worst_rms) -> Solution:
        """`__call__`, with what is known of the error where the tolerance was out of reach."""
        return METHODS[self.method].solution(self, flow, y, Ends(start, end), norm)

    def watch(self, flow: Flow) -> Watch:
        """The flow, watched for as many passes as an adaptive method may make."""
        other = "dopri5" if self.method != "dopri5" else "adams"
        advice = f"rtol={100 * self.rtol:g} atol={100 * self.atol:g}, method={other}, or max_nfe={4 * self.max_nfe}"
        return Watch(flow, self.max_nfe, advice)

    def odeint(
        self, drift: Callable[[Tensor, Tensor], Tensor], y: Tensor, ends: Tensor, options: Any, tighter: float = 1.0
    ) -> Tensor:
        """torchdiffeq's `odeint` with this solver's method and tolerances (times `tighter`)."""
        from torchdiffeq import odeint  # SciPy comes with it: half a second that `import sde_diffusion` need not cost

        rtol, atol = self.rtol * tighter, self.atol * tighter
        solution: Tensor = odeint(drift, y, ends, rtol=rtol, atol=atol, method=self.method, options=options)
        return solution
