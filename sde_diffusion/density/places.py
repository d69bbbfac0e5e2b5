"""The times at which a lower bound is evaluated, and the weights of the errors there."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sde import SDE, Grid


class Discrete:
    """Discrete time: the times t and weights of the steps that contain given places in [0, 1)."""

    def __init__(self, sde: SDE, grid: Grid, t_end: float, steps: int) -> None:
        self.times = grid.times(sde, steps + 1, t_end).flip(0)
        log_snr = sde.log_snr(self.times)
        self.weights = 0.5 * steps * torch.expm1(log_snr[:-1] - log_snr[1:])
        # A list of noise levels need not reach t_end and t_max.
        self.ends = self.times[0].item(), self.times[-1].item()

    def __call__(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Times and weights, of places' shape."""
        step = (places * len(self.weights)).long().clamp(max=len(self.weights) - 1)
        return self.times[step + 1], self.weights[step]


class Continuous:
    """Continuous time: the times t and weights 1/2 (-dlambda/du) at places u."""

    def __init__(self, sde: SDE, grid: Grid, t_end: float) -> None:
        self.sde, self.grid, self.t_end = sde, grid, t_end
        self.ends = t_end, sde.t_max

    def __call__(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Times and weights, of places' shape."""
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            u = places.clone().requires_grad_()
            t = self.grid.time(self.sde, u, self.t_end)
            rate = None
            if t.requires_grad:
                (rate,) = torch.autograd.grad(t.sum(), u, create_graph=recording, allow_unused=True)
            if rate is None:
                raise ValueError(f"{self.grid} is a list of times: continuous time needs a continuous grid")
        t = (t if recording else t.detach()).clamp(self.t_end, self.sde.t_max)
        return t, -0.5 * self.sde.log_snr_rate(t) * rate
