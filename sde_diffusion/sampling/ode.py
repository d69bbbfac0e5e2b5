"""The probability flow, through torchdiffeq."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.sampling.base import Sampler, Walk, check_steps
from sde_diffusion.sampling.reverse import Coordinate, ReverseProcess, Watch
from sde_diffusion.sde import Grid


class Method(ABC):
    """How torchdiffeq is asked for one of its methods."""

    adaptive: bool
    """Whether it chooses its steps by their error."""

    single_pass = False
    """Whether each step costs one network pass."""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The method's own options, checked and completed.

        Raises:
            ValueError: If one is unknown or out of range.
        """
        if given:
            raise ValueError(f"this method takes no options; got {dict(given)}")
        return {}

    @abstractmethod
    def solve(self, sampler: ODESampler, process: ReverseProcess, y: Tensor) -> Tensor:
        """The state at u = 0, from y at u = 1."""


class FixedSteps(Method):
    """A method that takes the steps it is given."""

    adaptive = False

    def __init__(self, single_pass: bool = False) -> None:
        self.single_pass = single_pass

    def solve(self, sampler: ODESampler, process: ReverseProcess, y: Tensor) -> Tensor:
        """See `Method.solve`."""
        places = torch.linspace(1, 0, sampler.transitions + 1, dtype=torch.float64, device=y.device)
        # By a constructor: given as times, torchdiffeq would keep the state at each.
        options = {"grid_constructor": lambda drift, y, ends: places, **sampler.options}
        return sampler.odeint(process.drift, y, places[[0, -1]], options)[-1]


class Adams(FixedSteps):
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


class Adaptive(Method):
    """A Runge-Kutta method of torchdiffeq with an error estimate."""

    adaptive = True

    def solve(self, sampler: ODESampler, process: ReverseProcess, y: Tensor) -> Tensor:
        """See `Method.solve`.

        Raises:
            UserError: If the tolerance is not met.
        """
        watch = Watch(process, sampler.max_nfe)
        try:
            solution = self.attempt(sampler, watch, y, torch.tensor([1.0, 0.0], dtype=torch.float64, device=y.device))
        except AssertionError:  # torchdiffeq's answer to steps that vanish and to numbers that are none
            solution = None
        if solution is not None:
            return solution
        if watch.broken():  # the caller finds out where it began
            return torch.full_like(y, torch.nan)
        raise watch.unmet("it")

    def attempt(self, sampler: ODESampler, drift: Watch, y: Tensor, ends: Tensor) -> Tensor | None:
        """The state at the end; None, or an AssertionError, if the solver gives up."""
        # Without a step that ends there it would step past the end, and interpolate back.
        return sampler.odeint(drift, y, ends, {"norm": worst_rms, "step_t": ends[1:]})[-1]


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

    def attempt(self, sampler: ODESampler, drift: Watch, y: Tensor, ends: Tensor) -> Tensor | None:
        """See `Adaptive.attempt`."""
        # SciPy's error is the root mean square over the batch, which is at least each sample's over sqrt B.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*arguments have no .* solver.*")  # torchdiffeq's min_step, to SciPy
            solution = sampler.odeint(drift, y, ends, sampler.options, tighter=len(y) ** -0.5)
        return solution[-1] if len(solution) == len(ends) else None  # what was not reached is left out


def worst_rms(error: Tensor) -> Tensor:
    """Largest over the batch of each sample's root mean square; error: [B, *]."""
    return error.flatten(1).square().mean(1).max().sqrt()


METHODS: dict[str, Method] = {
    **dict.fromkeys(("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"), Adaptive()),
    "scipy_solver": SciPy(),
    "euler": FixedSteps(single_pass=True),
    **dict.fromkeys(("midpoint", "heun2", "heun3", "rk4"), FixedSteps()),
    "explicit_adams": Adams(implicit=False),
    "implicit_adams": Adams(implicit=True),
}
"""torchdiffeq's methods on offer."""


class ODESampler(Sampler):
    """Solve dx/dt = v(x, t), the probability flow, from t_max to t_end with a method of torchdiffeq.

    Adaptive: dopri5, dopri8, bosh3, fehlberg2, adaptive_heun (orders 5, 8, 3, 2, 2) and scipy_solver
    (options={"solver": "RK45"}, or "RK23", "DOP853"). The error of a step is the worst over the samples of each
    sample's root mean square, so that no sample is let off because others are easy (SciPy only knows the mean over the
    batch: its tolerances are divided by sqrt B, which bounds each sample's). fehlberg2's estimate is of its first-order
    part and small: errors of a hundred tolerances are usual.

    In `steps` uniform steps of the grid: euler (order 1), midpoint, heun2 (2), heun3 (3), rk4 (4), explicit_adams and
    implicit_adams (options={"order": 4}: 3 to 11 and 4 to 12; begun with low orders, so that globally 4 and 5 are the
    most). `steps` counts steps, of 1, 2, 2, 3, 4, 1 and 2 to 5 network passes, and `denoise` costs one pass
    more; but with euler it counts network passes: steps - 1 steps and one prediction, without `denoise` `steps` steps.

    No method looks beyond t_end or t_max.

    Args:
        method: See above.
        rtol: Relative tolerance, positive (adaptive methods; the iterations of implicit_adams).
        atol: Absolute tolerance, positive (likewise).
        steps: Number of steps of the methods that do not choose them, at least 1 (2 for euler with `denoise`); 50 if
            not given.
        max_nfe: Most network passes of an adaptive method.
        options: See above.
        coordinate: The variable that is solved for; x itself if not given.
        grid: Time change in which the solver steps; the path's default if not given.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If the method or an option is unknown, a tolerance is not positive, steps or max_nfe too small, or
            steps are given to a method that chooses its own.
        UserError: From a call, if an adaptive method cannot meet its tolerance.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3.
    """

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        max_nfe: int = 10_000,
        options: Mapping[str, Any] | None = None,
        coordinate: Coordinate | None = None,
        grid: Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end)
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"rtol and atol must be positive; got rtol={rtol}, atol={atol}")
        if steps is not None and METHODS[method].adaptive:
            fixed = ", ".join(name for name, other in METHODS.items() if not other.adaptive)
            raise ValueError(f"{method} chooses its own steps by rtol and atol; methods that take steps: {fixed}")
        self.method = method
        self.rtol, self.atol = float(rtol), float(atol)
        self.steps = check_steps(50 if steps is None else steps)
        # With one pass a step, the last prediction is one of the `steps` passes.
        self.transitions = self.steps - (denoise and METHODS[method].single_pass)
        if self.transitions < 1:
            raise ValueError("with denoise=True one step goes to the last prediction: steps must be at least 2")
        self.max_nfe = check_steps(max_nfe)
        self.options = METHODS[method].options(options or {})
        self.coordinate = coordinate
        self.grid = grid

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the flow; see `Sampler.walk`."""
        grid = self.grid or run.sde.default_grid()
        process = ReverseProcess(run.predict, run.sde, grid, run.t_end, coordinate=self.coordinate)
        y = METHODS[self.method].solve(self, process, x * process.scale(1.0))
        x = y / process.scale(0.0)
        return run.predict(x, run.t_end).x0 if self.denoise else x

    def odeint(
        self, drift: Callable[[Tensor, Tensor], Tensor], y: Tensor, ends: Tensor, options: Any, tighter: float = 1.0
    ) -> Tensor:
        """torchdiffeq's `odeint` with this sampler's method and tolerances (times `tighter`)."""
        from torchdiffeq import odeint  # SciPy comes with it: half a second that `import sde_diffusion` need not cost

        rtol, atol = self.rtol * tighter, self.atol * tighter
        solution: Tensor = odeint(drift, y, ends, rtol=rtol, atol=atol, method=self.method, options=options)
        return solution
