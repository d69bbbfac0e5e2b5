r"""The times at which a lower bound is evaluated, and the weights of the errors there.

The diffusion term of the bound is an integral over u in [0, 1] (`elbo` draws u),

    int_0^1 w(u) E|eps_hat - eps|^2 du,      z_t = alpha_t x + sigma_t eps  at  t = t(u),

where eps_hat is the denoiser's output at (z_t, t). `Discrete` and `Continuous` map u to t(u) and w(u).

References: Kingma et al. 2021, "Variational Diffusion Models", equations 13, 14 (discrete) and 17, 18 (continuous).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sde import SDE, Grid


class Discrete:
    """T steps: on step i, for u in [i/T, (i+1)/T), t is its noisy end and w = T/2 (e^(lambda_s - lambda_t) - 1).

    s < t are the ends of the step and lambda is log-SNR, so that the integral is the sum over steps of
    1/2 (e^(lambda_s - lambda_t) - 1) E|eps_hat - eps|^2.

    Args:
        sde: The path.
        grid: Spacing of the steps.
        t_end: The clean end of the first step.
        steps: T, at least 1.

    Attributes:
        ends: The clean and the noisy end of the steps. A list of noise levels need not reach t_end and t_max.
    """

    def __init__(self, sde: SDE, grid: Grid, t_end: float, steps: int) -> None:
        self.times = grid.times(sde, steps + 1, t_end).flip(0)
        log_snr = sde.log_snr(self.times)
        self.weights = 0.5 * steps * torch.expm1(log_snr[:-1] - log_snr[1:])
        self.ends = self.times[0].item(), self.times[-1].item()

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(t, w) at u in [0, 1), float64, of any shape."""
        step = (u * len(self.weights)).long().clamp(max=len(self.weights) - 1)
        return self.times[step + 1], self.weights[step]


class Continuous:
    """Continuous time: t(u) is the grid's, and w = -1/2 dlambda/du, with lambda log-SNR.

    Args:
        sde: The path.
        grid: The map u -> t, a continuous one.
        t_end: t at u = 0; at u = 1 it is t_max.

    Attributes:
        ends: t_end and t_max.
    """

    def __init__(self, sde: SDE, grid: Grid, t_end: float) -> None:
        self.sde, self.grid, self.t_end = sde, grid, t_end
        self.ends = t_end, sde.t_max

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(t, w) at u in [0, 1], float64, of any shape; with gradients for a learned path's parameters.

        Raises:
            ValueError: If the grid is a list of times, which has no slope.
        """
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            u = u.clone().requires_grad_()
            t = self.grid.time(self.sde, u, self.t_end)
            rate = None
            if t.requires_grad:
                (rate,) = torch.autograd.grad(t.sum(), u, create_graph=recording, allow_unused=True)
            if rate is None:
                raise ValueError(f"{self.grid} is a list of times: continuous time needs a continuous grid")
        t = (t if recording else t.detach()).clamp(self.t_end, self.sde.t_max)
        return t, -0.5 * self.sde.log_snr_rate(t) * rate
