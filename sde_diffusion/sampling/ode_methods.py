"""Methods for ordinary differential equations by name: torchdiffeq's, and an adaptive Adams method."""

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
    Norm,
    ODEMethod,
    SciPy,
    Solution,
    worst_rms,
)

METHODS: dict[str, ODEMethod] = {
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
    """A method with its tolerances, or its number of steps.

    Adaptive methods:

        adams             options={"order": 4}, 1 to 6; one pass a step, see `adams`
        dopri5, dopri8, bosh3, fehlberg2, adaptive_heun      torchdiffeq's, of orders 5, 8, 3, 2 and 2
        scipy_solver      options={"solver": "RK45"}, or "RK23", "DOP853"

    The error of a step is the largest over the samples of each sample's root mean square (in likelihoods with adams,
    each sample's own, with steps of its own and orders up to the given one), so that a difficult sample is not averaged
    away (SciPy uses the mean over the batch: its tolerances are divided by sqrt B, which bounds each
    sample's error). The tolerance is that of a step: at the end errors of ten to twenty tolerances are usual with
    adams, and of a hundred with fehlberg2, whose error estimate is of first order and small.

    If the slope is rough in time, adams does not resolve it: it solves with rtol = 0.01, then with a quarter of that,
    and so on, until two consecutive solutions differ by less than 300 requested tolerances, or the next would probably
    take more than 1,000 passes. That difference is its error estimate, in a warning or from `solution`.

    Methods with `steps` uniform steps:

        euler                            order 1        1 pass a step
        midpoint, heun2                  order 2        2 passes
        heun3                            order 3        3 passes
        rk4                              order 4        4 passes
        explicit_adams                   options={"order": 4}, 3 to 11; 1 pass
        implicit_adams or fixed_adams    options={"order": 4}, 4 to 12; 2 to 5 passes

    The Adams methods start with low orders, so that their global orders are at most 4 and 5. implicit_adams repeats the
    correction of a step up to four times, until it changes by less than the tolerance; if it does not converge, a
    warning says in how many steps.

    Options of torchdiffeq's adaptive methods: min_step (taken whatever the error), max_step, first_step, step_t and
    jump_t (lists of places where a step must end, the latter of discontinuities), safety, ifactor, dfactor,
    max_num_steps; of scipy_solver also max_step. Steps and places are in the solver's own time u, in which a walk is
    from 1 (t_max) to 0 (t_end). Options of the methods with given steps: step_size in place of `steps`, perturb and
    interp (without effect, since nothing is interpolated; cubic costs passes); of the Adams methods also max_iters, and
    torchdiffeq's max_order in place of order. Not available: norm (see above), dtype (times are float64),
    grid_constructor (use `grid`), implicit (use the name), and SciPy's implicit methods and min_step.

    Args:
        method: One of these names, or an `ODEMethod` of your own.
        rtol: Relative tolerance, positive, of adaptive methods and of the iterations of implicit_adams.
        atol: Absolute tolerance, positive, of the same.
        steps: Number of steps of a method that is not adaptive, at least 1; 50 by default.
        max_nfe: Largest number of network passes of an adaptive method.
        options: See above.

    Raises:
        ValueError: If the method or an option is unknown, a tolerance is not positive, steps or max_nfe too small, or
            steps are given to an adaptive method.
    """

    def __init__(
        self,
        method: str | ODEMethod,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        max_nfe: int = 10_000,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.method: ODEMethod = as_instance("method", method, METHODS, ODEMethod)
        self.name = method if isinstance(method, str) else type(method).__name__
        if steps is not None and self.method.adaptive:
            fixed = ", ".join(name for name, other in METHODS.items() if not other.adaptive)
            raise ValueError(
                f"steps cannot be given with {self.name}, which chooses its own steps by rtol and atol; got {steps}; "
                f"methods that take steps: {fixed}"
            )
        self.rtol, self.atol = as_positive("rtol", rtol), as_positive("atol", atol)
        self.steps = check_count("steps", 50 if steps is None else steps)
        self.max_nfe = check_count("max_nfe", max_nfe)
        self.options = self.method.options(self.name, {} if options is None else options)
        if steps is not None and "step_size" in self.options:
            raise ValueError("give steps or the option step_size, not both")
        self.settles = False  # whether to solve to this tolerance however rough the slope is; see `Adams`

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
            places: Values of u where the solution is wanted in between, in the order of the walk.
            keep: Called with each of these and the state there. An adaptive method interpolates with its own order; the
                others record the nearest end of a step.

        Returns:
            The state at u = end; NaN if a slope was NaN.

        Raises:
            UserError: If an adaptive method cannot meet its tolerance.
        """
        return self.method.solve(self, flow, y, Ends(start, end, places, keep), norm)

    def solution(self, flow: Flow, y: Tensor, start: float, end: float, norm: Norm = worst_rms) -> Solution:
        """`__call__`, with a second solution as an error estimate if the tolerance could not be met."""
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
