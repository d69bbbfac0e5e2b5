r"""The reverse process of a path, for samplers and likelihoods.

For any eta, the process run backwards in time

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw_bar

has the path's marginals (Song et al. 2021, equations 6 and 13; eta = 1 is the reverse SDE, eta = 0 the probability
flow). As f x - g^2 score / 2 is the velocity v, its drift is v - eta^2 g^2 score / 2: finite wherever v is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import Prediction
from sde_diffusion.sampling.coordinates import Coordinate, State
from sde_diffusion.sampling.flow import is_finite
from sde_diffusion.sampling.walk import Walk, singular
from sde_diffusion.sde import SDE, Grid, Number, float64, number, times, value_of


class ReverseProcess:
    """The reverse process of a path in a chosen coordinate y = scale(t) x and a grid's time u in [0, 1] -> t.

    u = 0 is t_end and u = 1 is t_max: samplers walk from u = 1 to 0, likelihoods from 0 to 1. With eta = 0, `drift` is
    the ordinary differential equation dy/du of the probability flow, differentiable in y.

    Args:
        predict: The denoiser with its conditions: (x [B, *dims], t [] float64) -> Prediction.
        sde: The path.
        grid: The map u -> t, a continuous one.
        t_end: The time at u = 0.
        eta: Scale of the noise, at least 0: 1 is the reverse SDE, 0 the probability flow.
        coordinate: The variable y; x itself by default.
        passes_at: Network passes that `predict` costs at t (`Denoiser.passes_at`); 1 by default.
    """

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor], Prediction],
        sde: SDE,
        grid: Grid,
        t_end: float,
        eta: float = 0.0,
        coordinate: Coordinate | None = None,
        passes_at: Callable[[Tensor], int] = lambda t: 1,
    ) -> None:
        self.predict = predict
        self.sde = sde
        self.grid = grid
        self.t_end = t_end
        self.eta = eta
        self.coordinate = State() if coordinate is None else coordinate
        self.passes_at = passes_at
        self._clock: tuple[float, Tensor, Number] | None = None
        self._clocks: tuple[Tensor, tuple[Tensor, Number]] | None = None
        self._recording = torch.is_grad_enabled()  # whether gradients should reach the path's parameters, if it has any

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """t and dt/du at u, which is clamped to [0, 1] (solvers may step a little beyond); float64, [] or [B] as u."""
        if isinstance(u, Tensor) and u.ndim:
            if self._clocks is None or not torch.equal(self._clocks[0], u):  # a drift asks several times
                self._clocks = u.detach().clone(), self._time(u)
            return self._clocks[1]
        u = min(max(float(u), 0.0), 1.0)
        if self._clock is None or self._clock[0] != u:  # drift and diffusion ask in turn
            t, rate = self._time(torch.tensor([u], dtype=torch.float64))
            self._clock = (u, t.squeeze(0), number(float64(rate).squeeze(0)))
        return self._clock[1:]

    def _time(self, u: Tensor) -> tuple[Tensor, Number]:
        # Outside inference mode, which Lightning uses for validation and in which nothing can be differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            place = u.detach().clone().clamp_(0.0, 1.0).requires_grad_()
            moving = self._recording and self.grid.time(self.sde, place.detach(), self.t_end).requires_grad
            t = self.grid.time(self.sde, place, self.t_end)
            slope = None
            if t.requires_grad:
                (slope,) = torch.autograd.grad(t.sum(), place, create_graph=moving, allow_unused=True)
            if slope is None:
                raise ValueError(
                    f"{self.grid} is a list of times without steps in between, which torchsde and torchdiffeq need: "
                    "use a continuous grid (UniformTime, QuadraticTime, UniformLogSNR, KarrasRho)"
                )
        t = (t if moving else t.detach()).clamp(self.t_end, self.sde.t_max)
        return t, slope

    def passes(self, u: Tensor | float) -> int:
        """Network passes that the drift at u costs."""
        return self.passes_at(self.time(u)[0])

    def scale(self, u: Tensor | float) -> Number:
        """The factor y / x at u, [] or [B].

        Raises:
            ValueError: If the path makes it infinite there.
        """
        scale = number(self.coordinate.scale(self.sde, self.time(u)[0]))
        if not bool(torch.isfinite(float64(scale)).all()):
            raise singular(self.sde)
        return scale

    def drift(self, u: Tensor | float, y: Tensor) -> Tensor:
        """Drift dy/du of the reverse process; u: [], or [B] for items at different times; y: [B, *dims].

        Raises:
            ValueError: If the path makes it infinite at an end. (This cannot be checked before the walk: whether an end
                is evaluated depends on the solver, and whether sigma = 0 is allowed on the denoiser.)
        """
        t, rate = self.time(u)
        scale = self.scale(u)
        x = times(y, 1 / scale) if t.ndim else y if scale == 1 else y / scale
        prediction = self.predict(x, t)
        drift = times(self.coordinate.drift(prediction, self.eta), rate)
        at_an_end = not bool(((float64(u) > 1e-12) & (float64(u) < 1)).all())
        if at_an_end and not is_finite(drift) and is_finite(x) and is_finite(prediction.output):
            raise singular(self.sde)
        return drift

    def diffusion(self, u: Tensor | float) -> Number:
        """Diffusion coefficient of y in u, eta g scale sqrt(dt/du), the same for every dimension and state."""
        if not self.eta:  # also where g is infinite
            return 0.0
        t, rate = self.time(u)
        return number(self.eta * self.sde.diffusion(t) * self.coordinate.scale(self.sde, t) * float64(rate).sqrt())


def solver_frames(run: Walk, process: ReverseProcess, start: float, end: float) -> dict[str, Any]:
    """The arguments `places` and `keep` of a solver for a walk that records frames; none for other walks."""
    frames = run.frames
    if frames is None:
        return {}

    def keep(u: float, y: Tensor) -> None:
        frames.keep(y / process.scale(u), value_of(process.time(u)[0]))

    return {"places": frames.places(process, start, end), "keep": keep}
