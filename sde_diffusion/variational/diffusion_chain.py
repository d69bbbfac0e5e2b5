"""A diffusion model as a Markovian hierarchical VAE: a chain whose q is the path's own transition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_count, check_kind, check_sizes
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.density import Decoder, GaussianDecoder, GaussianPrior
from sde_diffusion.sampling.arguments import check_t_end
from sde_diffusion.sde import GRIDS, Grid, UniformLogSNR, expand
from sde_diffusion.variational.chain import LatentVariable, LatentVariableModel, PosteriorSample, Shape
from sde_diffusion.variational.gaussian import DiagonalGaussian

Variance = Callable[[Tensor, Tensor], Tensor]
"""Variance of x_0 given x_t in each dimension: ([B, *dims], t []) -> [B, *dims]."""


class DiffusionChain(LatentVariableModel):
    """The latent variables z_1 ... z_{T+1} are the states x_t at T + 1 times from t_end to t_max.

    q is fixed: q(x_{t_end} | x) = N(alpha x, sigma^2 I) and q(x_t | x_s) the path's transition. The model's step down
    is q(x_s | x_t, x_0) with the denoiser's x_0: N(a x0 + b x_t, std^2 I), and with `variance` given N(a x0 + b x_t,
    std^2 + a^2 variance), whose variance is the best. p(x_{t_max}) is N(mean, variance) of the prior, p(x | x_{t_end})
    the decoder.

    The bound is that of `elbo(denoiser, x, steps=T)`, which computes KL(q(x_s | x_t, x) || p) in closed form, while
    here all divergences but that of the last latent variable are estimated by the draw, with more variance.

    Args:
        denoiser: The denoiser.
        shape: Shape of the data.
        steps: T, at least 1.
        variance: Cov[x_0 | x_t] in each dimension; None: no uncertainty, as in DDPM with its smaller variance.
        decoder: p(x | x_{t_end}); `GaussianDecoder()` by default.
        prior: The distribution at t_max, or its mean and standard deviation, numbers or [*shape]; 0 and sigma(t_max) by
            default.
        grid: Spacing of the times, by name or a `Grid`; uniform in log-SNR by default.
        t_end: The time of the first state; the decoder's `default_t_end` by default.

    References:
        Luo 2022, "Understanding Diffusion Models: A Unified Perspective"; Bao et al. 2022, "Analytic-DPM" (the
        variance).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        steps: int = 1000,
        variance: Variance | None = None,
        decoder: Decoder | None = None,
        prior: GaussianPrior | tuple[Any, Any] | None = None,
        grid: str | Grid | None = None,
        t_end: float | None = None,
    ) -> None:
        super().__init__()
        check_denoiser(denoiser)
        self.denoiser, self.variance = denoiser, variance
        self.decoder: Decoder = GaussianDecoder() if decoder is None else decoder
        check_kind("decoder", self.decoder, Decoder)
        sde = denoiser.sde
        steps = check_count("steps", steps)
        chosen: Grid = as_instance("grid", UniformLogSNR() if grid is None else grid, GRIDS, Grid)
        t_end = check_t_end(self.decoder.default_t_end(sde) if t_end is None else t_end, sde)
        self.times = chosen.times(sde, steps + 1, t_end).flip(0)
        prior = (0.0, sde.sigma(self.times[-1])) if prior is None else prior
        self.prior = (prior.mean, prior.variance.sqrt()) if isinstance(prior, GaussianPrior) else prior
        self.shape: Shape = check_sizes("shape", shape)
        self.latent_shapes = [self.shape] * (steps + 1)
        self.nfe = steps * denoiser.passes

    def infer(self, x: Tensor, noise: Sequence[Tensor], **conditions: Any) -> PosteriorSample:
        """Draw x_t at all times given x, and conditions of the denoiser; see `LatentVariableModel.infer`."""
        sde, times = self.denoiser.sde, self.times
        q, z = [], []
        scale, std, below = sde.alpha(times[0]), sde.sigma(times[0]), x
        for index, one in enumerate(noise):
            if index:
                scale, std = sde.transition(times[index - 1], times[index])
            q.append(DiagonalGaussian(expand(scale, x) * below, expand(std.log(), x)))
            z.append(below := q[-1].draw(one))
        p = [self._down(z[index], index, conditions) for index in range(1, len(z))]
        p.append(self._top(x))
        latents = [
            LatentVariable(*parts, closed=index == len(z) - 1) for index, parts in enumerate(zip(z, q, p, strict=True))
        ]
        alpha = expand(sde.alpha(times[0]), x)
        return PosteriorSample(latents, self.decoder.log_prob(sde, float(times[0]), x, z[0] / alpha))

    def generate(self, noise: Sequence[Tensor], **conditions: Any) -> list[Tensor]:
        """Draw x_t at all times from the model: DDPM's walk, the state at t_end first."""
        z = [self._top(noise[-1]).draw(noise[-1])]
        for index in range(len(noise) - 1, 0, -1):
            z.append(self._down(z[-1], index, conditions).draw(noise[index - 1]))
        return z[::-1]

    def _down(self, x_t: Tensor, index: int, conditions: Mapping[str, Any]) -> DiagonalGaussian:
        """p of the state at times[index - 1], given that at times[index]."""
        t, s = self.times[index], self.times[index - 1]
        a, _, _ = self.denoiser.sde.posterior_coefficients(s, t)
        mean, std = self.denoiser.sde.posterior(x_t, self.denoiser(x_t, t, **conditions).x0, s, t)
        if self.variance is None:
            return DiagonalGaussian(mean, std.log())
        variance = std.square() + expand(a, x_t).square() * self.variance(x_t, t)
        return DiagonalGaussian(mean, 0.5 * variance.log())

    def _top(self, like: Tensor) -> DiagonalGaussian:
        mean, std = (torch.as_tensor(value).to(like) for value in self.prior)
        return DiagonalGaussian(mean.expand_as(like), std.log())
