"""The probability flow, walked back to data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sde_diffusion.sampling.base import Sampler, Walk
from sde_diffusion.sampling.ode_methods import ODESolver
from sde_diffusion.sampling.reverse import Coordinate, ReverseProcess
from sde_diffusion.sde import Grid


class ODESampler(Sampler):
    """Solve dx/dt = v(x, t), the probability flow, from t_max to t_end with one of `ODESolver`'s methods.

    Methods that choose their steps by rtol and atol: adams, dopri5, dopri8, bosh3, fehlberg2, adaptive_heun,
    scipy_solver. Methods that take `steps` steps of the grid: euler, midpoint, heun2, heun3, rk4, explicit_adams,
    implicit_adams; `denoise` costs one pass more, but with euler `steps` counts network passes: steps - 1 steps and one
    prediction, without `denoise` `steps` steps. No method looks beyond t_end or t_max.

    An adaptive method takes the steps that the most difficult sample of its batch needs: to within the tolerance,
    samples depend on the batch that they are drawn in (about 2e-4 at the default tolerances).

    Args:
        method: See above and `ODESolver`.
        rtol: Relative tolerance, positive (adaptive methods; the iterations of implicit_adams).
        atol: Absolute tolerance, positive (likewise).
        steps: Number of steps of the methods that do not choose them, at least 1 (2 for euler with `denoise`); 50 if
            not given.
        max_nfe: Most network passes of an adaptive method.
        options: See `ODESolver`.
        coordinate: The variable that is solved for (`State`, `NoiseToSignal`, `UnitVariance`); x itself if not given.
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
        self.solver = ODESolver(method, rtol, atol, steps, max_nfe, options)
        if denoise and self.solver.single_pass:  # the last prediction is one of the `steps` passes
            if self.solver.steps < 2:
                raise ValueError("with denoise=True one step goes to the last prediction: steps must be at least 2")
            self.solver.steps -= 1
        self.coordinate = coordinate
        self.grid = grid

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the flow; see `Sampler.walk`."""
        grid = self.grid or run.sde.default_grid()
        process = ReverseProcess(run.predict, run.sde, grid, run.t_end, coordinate=self.coordinate)
        y = self.solver(process, x * process.scale(1.0), 1.0, 0.0)
        x = y / process.scale(0.0)
        return run.predict(x, run.t_end).x0 if self.denoise else x
