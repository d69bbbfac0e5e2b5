"""Methods for ordinary differential equations: torchdiffeq's, and Adams' with steps of its own choosing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sde_diffusion.checks import as_positive, check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.sampling.flow import Flow, MonitoredDrift
from sde_diffusion.sampling.ode_adams import Adams
from sde_diffusion.sampling.ode_kinds import (
    Adaptive,
    Ends,
    FixedAdams,
    FixedSteps,
    Keep,
    Method,
    Norm,
    SciPy,
    Solution,
    worst_rms,
)

METHODS: dict[str, Method] = {
    "adams": Adams("adams"),
    **{name: Adaptive(name) for name in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")},
    "scipy_solver": SciPy("scipy_solver"),
    "euler": FixedSteps("euler", single_pass=True),
    **{name: FixedSteps(name) for name in ("midpoint", "heun2", "heun3", "rk4")},
    "explicit_adams": FixedAdams("explicit_adams", implicit=False),
    "implicit_adams": FixedAdams("implicit_adams", implicit=True),
    "fixed_adams": FixedAdams("fixed_adams", implicit=True),  # torchdiffeq's former name of implicit_adams
}
"""The methods by name: all of torchdiffeq's, and `adams`."""


class ODESolver:
    """One of `METHODS` with its tolerances, or its number of steps.

    Adaptive: adams (options={"order": 4}: 1 to 6; one pass a step, see `adams`), torchdiffeq's dopri5, dopri8, bosh3,
    fehlberg2, adaptive_heun (orders 5, 8, 3, 2, 2) and scipy_solver (options={"solver": "RK45"}, or "RK23", "DOP853").
    The error of a step is the worst over the samples of each sample's root mean square, so that no sample is let off
    because others are easy (SciPy only knows the mean over the batch: its tolerances are divided by sqrt B, which
    bounds each sample's). The tolerance is each step's: errors of ten to twenty tolerances at the end are usual with
    adams, and of a hundred with fehlberg2, whose estimate is of its first-order part and small.

    Where the slope is rough in time, adams does not follow every turn: it solves with rtol = 0.01, then with a quarter
    of that, and so on, until two solutions in a row differ by less than 300 tolerances as asked for, or the next is
    likely to take more than 1,000 passes. That last difference is what it can say of its error, in a warning or by
    `solution`.

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
        method: One of these names, or a `Method` of your own.
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
        method: str | Method,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        max_nfe: int = 10_000,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.method: Method = as_instance("method", method, METHODS, Method)
        self.name = method if isinstance(method, str) else type(method).__name__
        if steps is not None and self.method.adaptive:
            fixed = ", ".join(name for name, other in METHODS.items() if not other.adaptive)
            raise ValueError(f"{self.name} chooses its own steps by rtol and atol; methods that take steps: {fixed}")
        self.rtol, self.atol = as_positive("rtol", rtol), as_positive("atol", atol)
        self.steps = check_count("steps", 50 if steps is None else steps)
        self.max_nfe = check_count("max_nfe", max_nfe)
        self.options = self.method.options(self.name, {} if options is None else options)
        if steps is not None and "step_size" in self.options:
            raise ValueError("give steps or the option step_size, not both")
        self.settles = False  # for what the tolerance gives, however rough the slope

    @property
    def single_pass(self) -> bool:
        """Whether `steps` counts network passes."""
        return self.method.single_pass

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
        return self.method.solve(self, flow, y, Ends(start, end, places, keep), norm)

    def solution(self, flow: Flow, y: Tensor, start: float, end: float, norm: Norm = worst_rms) -> Solution:
        """`__call__`, with what is known of the error where the tolerance was out of reach."""
        return self.method.solution(self, flow, y, Ends(start, end), norm)

    def monitor(self, flow: Flow) -> MonitoredDrift:
        """The flow, monitored for as many passes as an adaptive method may make."""
        other = "dopri5" if self.name != "dopri5" else "adams"
        advice = f"rtol={100 * self.rtol:g} atol={100 * self.atol:g}, method={other}, or max_nfe={4 * self.max_nfe}"
        return MonitoredDrift(flow, self.max_nfe, advice)

    def odeint(
        self,
        method: str,
        drift: Callable[[Tensor, Tensor], Tensor],
        y: Tensor,
        ends: Tensor,
        options: Any,
        tighter: float = 1.0,
    ) -> Tensor:
        """torchdiffeq's `odeint` with one of its methods by name and this solver's tolerances (times `tighter`)."""
        from torchdiffeq import odeint  # SciPy comes with it: half a second that `import sde_diffusion` need not cost

        rtol, atol = self.rtol * tighter, self.atol * tighter
        solution: Tensor = odeint(drift, y, ends, rtol=rtol, atol=atol, method=method, options=options)
        return solution
