"""Methods for ordinary differential equations: torchdiffeq's, and Adams' with steps of its own choosing."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number
from sde_diffusion.sampling.adams import adams
from sde_diffusion.sampling.base import check_count
from sde_diffusion.sampling.reverse import Flow, Watch

Norm = Callable[[Tensor], Tensor]
"""Size of an error: [B, *] -> []."""


def worst_rms(error: Tensor) -> Tensor:
    """Largest over the batch of each sample's root mean square; error: [B, *]."""
    return error.flatten(1).square().mean(1).max().sqrt()


class Method(ABC):
    """How one method is called."""

    adaptive: bool
    """Whether it chooses its steps by their error."""

    single_pass = False
    """Whether each step costs one network pass, the number of steps being given."""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The method's own options, checked and completed.

        Raises:
            ValueError: If one is unknown or out of range.
        """
        if given:
            takers = "adams, explicit_adams, implicit_adams and scipy_solver"
            raise ValueError(f"only {takers} take options; got {dict(given)}")
        return {}

    @abstractmethod
    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, start: float, end: float, norm: Norm) -> Tensor:
        """The state at u = end, from y at u = start."""


class FixedSteps(Method):
    """A method of torchdiffeq that takes the steps it is given."""

    adaptive = False

    def __init__(self, single_pass: bool = False) -> None:
        self.single_pass = single_pass

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, start: float, end: float, norm: Norm) -> Tensor:
        """See `Method.solve`."""
        places = torch.linspace(start, end, solver.steps + 1, dtype=torch.float64, device=y.device)
        # By a constructor: given as times, torchdiffeq would keep the state at each.
        options = {"grid_constructor": lambda drift, y, ends: places, **solver.options}
        return solver.odeint(flow.drift, y, places[[0, -1]], options)[-1]


class FixedAdams(FixedSteps):
    """A multistep method of torchdiffeq, begun with steps of rk4.

    Args:
        implicit: Whether each step is corrected; torchdiffeq counts the corrector's order, also where there is none.
    """

    def __init__(self, implicit: bool) -> None:
        super().__init__()
        self.implicit = implicit

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`order`, 4 if not given."""
        low, high = (4, 12) if self.implicit else (3, 11)
        order = dict(given).pop("order", 4)
        if set(given) - {"order"} or order not in range(low, high + 1):
            raise ValueError(f"the options of this method are order={low} to {high}; got {dict(given)}")
        return {"max_order": order + (not self.implicit)}

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, start: float, end: float, norm: Norm) -> Tensor:
        """See `Method.solve`."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = super().solve(solver, flow, y, start, end, norm)
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

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, start: float, end: float, norm: Norm) -> Tensor:
        """See `Method.solve`.

        Raises:
            UserError: If the tolerance is not met.
        """
        watch = Watch(flow, solver.max_nfe)
        try:
            solution = self.attempt(solver, watch, y, start, end, norm)
        except AssertionError:  # torchdiffeq's answer to steps that vanish and to NaN
            if watch.failure is not None:
                raise
            solution = None
        if solution is not None:
            return solution
        if watch.broken():  # the caller finds out where it began
            return torch.full_like(y, torch.nan)
        raise watch.unmet("it")

    def attempt(
        self, solver: ODESolver, drift: Watch, y: Tensor, start: float, end: float, norm: Norm
    ) -> Tensor | None:
        """The state at the end; None, or an AssertionError, if the solver gives up."""
        ends = torch.tensor([start, end], dtype=torch.float64, device=y.device)
        # Without a step that ends there it would step past the end, and interpolate back.
        return solver.odeint(drift, y, ends, {"norm": norm, "step_t": ends[1:]})[-1]


class Adams(Adaptive):
    """Our own Adams method; see `adams`."""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`order`, 4 if not given."""
        order = dict(given).pop("order", 4)
        if set(given) - {"order"} or order not in range(1, 7):
            raise ValueError(f"the options of adams are order=1 to 6 (beyond, its steps are tiny); got {dict(given)}")
        return {"order": order}

    def attempt(
        self, solver: ODESolver, drift: Watch, y: Tensor, start: float, end: float, norm: Norm
    ) -> Tensor | None:
        """See `Adaptive.attempt`."""
        return adams(drift, y, start, end, solver.rtol, solver.atol, norm, **solver.options)


class SciPy(Adaptive):
    """A Runge-Kutta method of SciPy, on the CPU in float64."""

    solvers = ("RK23", "RK45", "DOP853")
    """The explicit ones; the others make matrices of the size of the batch's state squared."""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`solver`, RK45 if not given."""
        solver = dict(given).pop("solver", "RK45")
        if set(given) - {"solver"} or solver not in self.solvers:
            raise ValueError(f"the options of scipy_solver are solver={' or '.join(self.solvers)}; got {dict(given)}")
        return {"solver": solver}

    def attempt(
        self, solver: ODESolver, drift: Watch, y: Tensor, start: float, end: float, norm: Norm
    ) -> Tensor | None:
        """See `Adaptive.attempt`."""
        ends = torch.tensor([start, end], dtype=torch.float64, device=y.device)
        # SciPy's error is the root mean square over the batch, which is at least each sample's over sqrt B.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*arguments have no .* solver.*")  # torchdiffeq's min_step, to SciPy
            solution = solver.odeint(drift, y, ends, solver.options, tighter=len(y) ** -0.5)
        return solution[-1] if len(solution) == len(ends) else None  # what was not reached is left out


METHODS: dict[str, Method] = {
    "adams": Adams(),
    **dict.fromkeys(("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"), Adaptive()),
    "scipy_solver": SciPy(),
    "euler": FixedSteps(single_pass=True),
    **dict.fromkeys(("midpoint", "heun2", "heun3", "rk4"), FixedSteps()),
    "explicit_adams": FixedAdams(implicit=False),
    "implicit_adams": FixedAdams(implicit=True),
}
"""The methods on offer."""


class ODESolver:
    """One of `METHODS` with its tolerances, or its number of steps.

    Adaptive: adams (options={"order": 4}: 1 to 6; one pass a step, see `adams`), torchdiffeq's dopri5, dopri8, bosh3,
    fehlberg2, adaptive_heun (orders 5, 8, 3, 2, 2) and scipy_solver (options={"solver": "RK45"}, or "RK23", "DOP853").
    The error of a step is the worst over the samples of each sample's root mean square, so that no sample is let off
    because others are easy (SciPy only knows the mean over the batch: its tolerances are divided by sqrt B, which
    bounds each sample's). The tolerance is each step's: errors of ten to twenty tolerances at the end are usual with
    adams, and of a hundred with fehlberg2, whose estimate is of its first-order part and small.

    In `steps` uniform steps: euler (order 1), midpoint, heun2 (2), heun3 (3), rk4 (4), explicit_adams and
    implicit_adams (options={"order": 4}: 3 to 11 and 4 to 12; begun with low orders, so that globally 4 and 5 are the
    most), of 1, 2, 2, 3, 4, 1 and 2 to 5 network passes. implicit_adams repeats a step's correction up to four times,
    until it changes by less than the tolerance; where it does not come to that, a warning says in how many steps.

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
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        rtol, atol = as_number("rtol", rtol), as_number("atol", atol)
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"rtol and atol must be positive; got rtol={rtol}, atol={atol}")
        if steps is not None and METHODS[method].adaptive:
            fixed = ", ".join(name for name, other in METHODS.items() if not other.adaptive)
            raise ValueError(f"{method} chooses its own steps by rtol and atol; methods that take steps: {fixed}")
        self.method = method
        self.rtol, self.atol = float(rtol), float(atol)
        self.steps = check_count("steps", 50 if steps is None else steps)
        self.max_nfe = check_count("max_nfe", max_nfe)
        self.options = METHODS[method].options(options or {})

    @property
    def single_pass(self) -> bool:
        """Whether `steps` counts network passes."""
        return METHODS[self.method].single_pass

    def __call__(self, flow: Flow, y: Tensor, start: float, end: float, norm: Norm = worst_rms) -> Tensor:
        """Solve dy/du = flow.drift(u, y).

        Args:
            flow: The equation.
            y: State at u = start, [B, *].
            start: 0 or 1.
            end: 1 or 0.
            norm: Size of an error.

        Returns:
            The state at u = end; not a number where a slope was none.

        Raises:
            UserError: If an adaptive method cannot meet its tolerance.
        """
        return METHODS[self.method].solve(self, flow, y, start, end, norm)

    def odeint(
        self, drift: Callable[[Tensor, Tensor], Tensor], y: Tensor, ends: Tensor, options: Any, tighter: float = 1.0
    ) -> Tensor:
        """torchdiffeq's `odeint` with this solver's method and tolerances (times `tighter`)."""
        from torchdiffeq import odeint  # SciPy comes with it: half a second that `import sde_diffusion` need not cost

        rtol, atol = self.rtol * tighter, self.atol * tighter
        solution: Tensor = odeint(drift, y, ends, rtol=rtol, atol=atol, method=self.method, options=options)
        return solution
