r"""Reverse processes, with the faces that torchsde and torchdiffeq ask for.

For any eta, the process run backwards in time

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw_bar

has the path's marginals (Song et al. 2021, equations 6 and 13; eta = 1 is the reverse SDE, eta = 0 the probability
flow). As f x - g^2 score / 2 is the velocity u, its drift is u - eta^2 g^2 score / 2: finite wherever u is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sampling.base import Walk
from sde_diffusion.sde import Grid


class ReverseProcess:
    """The reverse process of a denoiser's path, in the steps of a grid: tau = 0 at t_max, tau = steps at t_end.

    Time for the solvers is the step number tau, in which every step has length one exactly: no rounding can add a last
    tiny step, and a solver that only steps uniformly gets the grid's spacing.

    Args:
        run: The denoiser and its conditions.
        shape: Shape of the state, [B, *dims].
        grid: Spacing of the times.
        steps: Number of steps.
        eta: Share of noise, at least 0.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, run: Walk, shape: torch.Size, grid: Grid, steps: int, eta: float = 0.0) -> None:
        self.run = run
        self.shape = shape
        self.grid = grid
        self.steps = steps
        self.eta = eta
        self._last: tuple[float, Tensor, Tensor] | None = None

    def time(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """T and dt/dtau (negative) at step number tau; float64, []."""
        with torch.enable_grad():
            u = (1 - tau.detach().to("cpu", torch.float64) / self.steps).clamp(0, 1).requires_grad_()
            t = self.grid.time(self.run.sde, u.reshape(1), self.run.t_end).squeeze(0)
            if not t.requires_grad:
                raise ValueError(
                    f"{self.grid} is a list of times without steps in between, which torchsde and torchdiffeq need: "
                    "use a continuous grid (UniformTime, QuadraticTime, UniformLogSNR, KarrasRho)"
                )
            (slope,) = torch.autograd.grad(t, u)
        return t.detach(), -slope / self.steps

    def velocity(self, tau: Tensor, x: Tensor) -> Tensor:
        """dx/dtau of the probability flow for torchdiffeq; x: [B, *dims]."""
        t, rate = self.time(tau)
        return self.run.predict(x, t).velocity * float(rate)

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        """Drift dx/dtau for torchsde; y: [B, d], flattened."""
        # torchsde asks once for the shapes at the first point, where the first step then asks again.
        if self._last is not None and self._last[0] == float(tau) and self._last[1] is y:
            return self._last[2]
        t, rate = self.time(tau)
        prediction = self.run.predict(y.view(self.shape), t)
        drift = prediction.velocity
        if self.eta:
            drift = drift - prediction.score * float(0.5 * self.eta**2 * self.run.sde.diffusion(t) ** 2)
        drift = (drift * float(rate)).flatten(1)
        self._last = (float(tau), y, drift)
        return drift

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        """Diffusion for torchsde, the same for every dimension; [B, d]."""
        t, rate = self.time(tau)
        return torch.full_like(y, float(self.eta * self.run.sde.diffusion(t) * (-rate).sqrt()))
