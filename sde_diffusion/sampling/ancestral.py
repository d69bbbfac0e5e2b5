"""DDPM, DDIM, and everything in between, on any path."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.checks import as_fraction
from sde_diffusion.sampling.multistep import Coefficients, MultistepSampler
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import SDE, Grid, numbers


class AncestralSampler(MultistepSampler):
    r"""x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 q) eps + eta sigma_s sqrt(q) z,  q = 1 - e^(lambda_t - lambda_s).

    eta = 1 draws from the exact posterior q(x_s | x_t, x0): DDPM. eta = 0 is DDIM. With `denoise` the walk takes
    steps - 1 transitions and returns x0 at their end; without, it takes `steps` transitions down to t_end. Both cost
    `steps` network passes. Weak order 1; at eta = 0 order 1. At eta = 0 `invert` takes the steps from data to noise.

    Args:
        steps: Number of network passes, at least 1.
        eta: Scale of the posterior's noise, in [0, 1].
        grid: See `Sampler`.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1 or eta lies outside [0, 1].

    References:
        Ho et al. 2020, "Denoising Diffusion Probabilistic Models", algorithm 2; Song et al. 2021, "Denoising Diffusion
        Implicit Models", equation 12, here for any alpha and sigma.
    """

    always_shown = ("steps", "eta")

    def __init__(
        self,
        steps: int = 50,
        eta: float = 0.0,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(steps, grid, denoise, t_end)
        self.eta = as_fraction("eta", eta, " (0: DDIM, 1: DDPM)")

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """Collected on x0 and x_t, with eps = (x_t - alpha_t x0) / sigma_t; see `MultistepSampler.coefficients`."""
        t, s = times[:-1], times[1:]
        kept, noise = sde.sigma(s) / sde.sigma(t), None
        if self.eta:  # without noise the steps may also go up, where the share of fresh noise is not defined
            fresh = -torch.expm1(sde.log_snr(t) - sde.log_snr(s))
            kept = kept * (1 - self.eta**2 * fresh).sqrt()
            noise = numbers(self.eta * sde.sigma(s) * fresh.sqrt())
        return Coefficients(numbers(kept), numbers((sde.alpha(s) - sde.alpha(t) * kept).unsqueeze(1)), noise)

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """DDIM's steps up, each with the prediction at its beginning; see `Sampler.climb`."""
        if self.eta:
            raise ValueError(f"only the deterministic walk (eta = 0, DDIM) can be inverted; got eta={self.eta}")
        return self.follow_up(x, run)
