"""The reverse SDE as a sampler, solved by torchsde."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_bool, check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.sampling.arguments import NO_STEP_LEFT
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.coordinates import Coordinate, coordinate_of
from sde_diffusion.sampling.flow import MonitoredDrift
from sde_diffusion.sampling.reverse import ReverseProcess, solver_frames
from sde_diffusion.sampling.sde_methods import METHODS, Drift, SDEMethod
from sde_diffusion.sampling.solver_options import check_options
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import Grid


class SDESampler(Sampler):
    """Solve dx = [v - eta^2 g^2 score / 2] dt + eta g dw_bar with a method of torchsde, in uniform steps of a grid.

    As the diffusion does not depend on the state, the strong (and weak) orders are

        euler, milstein (the same here)      1 (1)     one pass a step
        euler_heun (g the mean of its ends') 1 (1)     one pass a step
        srk (Roessler's SRA1)                1.5 (2)   two passes a step
        heun, midpoint, log_ode (= midpoint) 1 (2)     two passes a step
        reversible_heun                      1 (2)     one pass a step, and one before the first

    reversible_heun oscillates if the drift contracts, as that of all reverse processes does near their end: it needs
    hundreds of steps, and with eta = 1 on the cosine path thousands (benchmarks/README.md). Use eta = 0, or another
    method.

    With euler, milstein and euler_heun `steps` counts network passes: with `denoise` steps - 1 steps and one prediction
    at t_end, without it `steps` steps. With the others it counts steps, and `denoise` costs one further pass.

    An adaptive solver starts with a step of 1 / steps of the walk and compares each step with two half steps.
    torchsde's error is the root mean square over the batch: to within the tolerance, a sample depends on its batch. The
    Brownian path is resolved down to 2^-30 of the walk, below which it is smooth.

    Args:
        method: euler, milstein, euler_heun, srk, heun, midpoint, log_ode or reversible_heun, or an `SDEMethod`.
        steps: Number of steps, at least 1 (see above; with euler, milstein and `denoise` at least 2).
        eta: Scale of the noise, at least 0: 1 is the reverse SDE, 0 the probability flow.
        adaptive: Whether to choose the steps by an error estimate.
        rtol: Relative tolerance of an adaptive solver, positive.
        atol: Absolute tolerance of an adaptive solver, positive.
        max_nfe: Largest number of network passes of an adaptive solver.
        one_path: Whether to follow the same Brownian path whatever the steps (`TreeBrownian`; an adaptive solver always
            does), so that the samples converge as the number of steps grows. Slower: each increment takes several
            draws.
        options: Options of torchsde: dt_min, the smallest step of an adaptive solver, as a share of the walk (it
            continues with that step, with a warning); and grad_free of milstein, which has no effect here.
        coordinate: The variable that is solved for: state (x itself, the default), noise_to_signal, unit_variance, or a
            `Coordinate`.
        grid: See `Sampler`.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If the method is unknown, steps or max_nfe too small, eta < 0 or a tolerance not positive.
        UserError: From a call, if an adaptive solver does not meet its tolerance within max_nfe passes.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equation 6 and appendix D; Roessler 2010,
        "Runge-Kutta Methods for the Strong Approximation of Solutions of SDEs" (srk); Kidger et al. 2021, "Efficient
        and Accurate Gradients for Neural SDEs" (reversible_heun).
    """

    always_shown = ("method", "steps", "eta")

    def __init__(
        self,
        method: str | SDEMethod = "euler",
        steps: int = 1000,
        eta: float = 1.0,
        adaptive: bool = False,
        rtol: float = 1e-2,
        atol: float = 1e-2,
        max_nfe: int = 10_000,
        one_path: bool = False,
        options: Mapping[str, Any] | None = None,
        coordinate: str | Coordinate | None = None,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, grid)
        self.method = method
        solver = self.solver()  # checks the name
        self.steps = check_count("steps", steps)
        self.eta = as_number("eta", eta)
        if not self.eta >= 0:
            raise ValueError(f"eta must not be negative (1: reverse SDE, 0: probability flow); got {eta!r}")
        self.adaptive = check_bool("adaptive", adaptive)
        self.rtol, self.atol = as_positive("rtol", rtol), as_positive("atol", atol)
        self.max_nfe = check_count("max_nfe", max_nfe)
        self.one_path = check_bool("one_path", one_path)
        self.coordinate = coordinate_of(coordinate)
        self.options = None if options is None else check_options(solver.name, options, solver.takes)
        if self.transitions < 1:
            raise ValueError(NO_STEP_LEFT)

    def solver(self) -> SDEMethod:
        """The method, from its name if it has one."""
        found: SDEMethod = as_instance("method", self.method, METHODS, SDEMethod)
        return found

    @property
    def transitions(self) -> int:
        """Number of steps of the walk; with one pass a step, the last prediction is one of the `steps` passes."""
        return self.steps - (self.denoise and self.solver().single_pass)

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the reverse SDE; see `Sampler.walk`."""
        x = self._solve(x, run, 1.0, 0.0)
        return run.predict(x, run.t_end).x0 if self.denoise else x

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the probability flow from t_end to t_max; see `Sampler.climb`."""
        if self.eta:
            raise ValueError(f"only the deterministic walk (eta = 0) can be inverted; got eta={self.eta}")
        return self._solve(x, run, 0.0, 1.0)

    def _solve(self, x: Tensor, run: Walk, start: float, end: float) -> Tensor:
        from sde_diffusion.sampling.brownian import StepBrownian, TreeBrownian  # which imports torchsde

        method, steps, up = self.solver(), self.transitions, end > start
        process = ReverseProcess(
            run.predict,
            run.sde,
            self.grid_on(run.sde),
            run.t_end,
            self.eta,
            self.coordinate,
            passes_at=run.denoiser.passes_at,
        )
        monitor = MonitoredDrift(process, self.max_nfe)
        drift: Drift = monitor if self.adaptive else process.drift
        # After a rejected step torchsde returns to a drift that is at most four evaluations old.
        memory = 4 if self.adaptive else 1
        adapter = method.adapter(process, drift, x.shape, steps, method.sde_type, memory, up)
        y = (x * process.scale(start)).flatten(1)
        frames = solver_frames(run, process, start, end)
        span, wanted = self._span(frames.get("places", ()), up)
        brownian = (TreeBrownian if self.one_path or self.adaptive else StepBrownian)(
            run.normal, y, float(span[0]), method.levy_area
        )
        own = dict(self.options or {})
        smallest = own.pop("dt_min", 0.0) * steps
        options = {"adaptive": self.adaptive, "rtol": self.rtol, "atol": self.atol, "dt_min": smallest, "options": own}
        try:
            found = method.solve(adapter, y, span, brownian, **options)
        except AssertionError:  # torchsde's only answer to an error estimate of NaN
            if not monitor.broken():
                raise
            return torch.full_like(x, torch.nan)
        for tau, state in zip(span.tolist(), found, strict=True):
            if tau in wanted:
                frames["keep"](tau * adapter.rate, state.view(x.shape))
        end_state: Tensor = found[-1].view(x.shape) / process.scale(end)
        return end_state

    def _span(self, places: Sequence[float], up: bool) -> tuple[Tensor, set[float]]:
        """Times tau of both ends and of the places, and the latter alone; at the ends of steps unless adaptive."""
        steps = self.transitions
        wanted = {(u if up else -u) * steps for u in places}
        if not self.adaptive:
            wanted = {float(round(tau)) for tau in wanted}
        ends = (0.0, float(steps)) if up else (-float(steps), 0.0)
        return torch.tensor(sorted({*ends, *wanted}), dtype=torch.float64), wanted
