"""The probability flow ODE as a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sde_diffusion.sampling.arguments import NO_STEP_LEFT
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.coordinates import Coordinate, coordinate_of
from sde_diffusion.sampling.ode_kinds import ODEMethod
from sde_diffusion.sampling.ode_methods import ODESolver
from sde_diffusion.sampling.reverse import ReverseProcess, solver_frames
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import Grid


class ODESampler(Sampler):
    """Solve dx/dt = v(x, t), the probability flow, from t_max to t_end with one of `ODESolver`'s methods.

    Adaptive methods, which choose their steps by rtol and atol: adams, dopri5, dopri8, bosh3, fehlberg2, adaptive_heun,
    scipy_solver. Methods with `steps` steps of the grid: euler, midpoint, heun2, heun3, rk4, explicit_adams,
    implicit_adams (= fixed_adams). These are all of torchdiffeq's, and `adams`, which is this library's. `denoise`
    costs one further pass, except with euler, where `steps` counts network passes: steps - 1 steps and one prediction,
    or `steps` steps without `denoise`. No method evaluates the denoiser beyond t_end or t_max.

    An adaptive method takes the steps that the most difficult sample of the batch needs: to within the tolerance, a
    sample depends on its batch (by about 2e-4 at the default tolerances).

    Args:
        method: One of these names (see `ODESolver`), or an `ODEMethod` of your own.
        rtol: Relative tolerance, positive, of adaptive methods and of the iterations of implicit_adams.
        atol: Absolute tolerance, positive, of the same.
        steps: Number of steps of a method that is not adaptive, at least 1 (2 for euler with `denoise`); 50 by default.
        max_nfe: Largest number of network passes of an adaptive method.
        options: See `ODESolver`.
        coordinate: The variable that is solved for: state (x itself, the default), noise_to_signal, unit_variance, or a
            `Coordinate`.
        grid: See `Sampler`; the time change in which the solver steps, not one of the lists of noise levels.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If the method or an option is unknown, a tolerance is not positive, steps or max_nfe too small, or
            steps are given to an adaptive method.
        UserError: From a call, if an adaptive method cannot meet its tolerance.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3.
    """

    always_shown = ("method", "steps")

    def __init__(
        self,
        method: str | ODEMethod = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        max_nfe: int = 10_000,
        options: Mapping[str, Any] | None = None,
        coordinate: str | Coordinate | None = None,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, grid)
        solver = ODESolver(method, rtol, atol, steps, max_nfe, options)
        self.method, self.rtol, self.atol, self.max_nfe = method, solver.rtol, solver.atol, solver.max_nfe
        self.steps = None if steps is None else solver.steps
        self.options = None if options is None else dict(options)
        self.coordinate = coordinate_of(coordinate)
        self.solver()  # raises errors now rather than at the first call

    def solver(self) -> ODESolver:
        """The method with its settings."""
        solver = ODESolver(self.method, self.rtol, self.atol, self.steps, self.max_nfe, self.options)
        if self.denoise and solver.single_pass and "step_size" not in solver.options:
            # The last prediction is one of the `steps` passes.
            if solver.steps < 2:
                raise ValueError(NO_STEP_LEFT)
            solver.steps -= 1
        return solver

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the flow; see `Sampler.walk`."""
        x = self._solve(x, run, 1.0, 0.0)
        return run.predict(x, run.t_end).x0 if self.denoise else x

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the flow from t_end to t_max; see `Sampler.climb`."""
        return self._solve(x, run, 0.0, 1.0)

    def _solve(self, x: Tensor, run: Walk, start: float, end: float) -> Tensor:
        process = ReverseProcess(
            run.predict,
            run.sde,
            self.grid_on(run.sde),
            run.t_end,
            coordinate=self.coordinate,
            passes_at=run.denoiser.passes_at,
        )
        y = self.solver()(process, x * process.scale(start), start, end, **solver_frames(run, process, start, end))
        return y / process.scale(end)
