r"""The whole variational bound of a diffusion model as an objective, for paths that are learnt with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_kind
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import Decoder, GaussianDecoder
from sde_diffusion.density.prior import GaussianPrior
from sde_diffusion.sde import Time, float64
from sde_diffusion.training.adaptive_times import AdaptiveTimes
from sde_diffusion.training.objective import DenoisingScoreMatching, Objective
from sde_diffusion.training.time_sampling import TimeSampling
from sde_diffusion.training.weighting import ELBOWeighting


class DiffusionELBO(Objective, nn.Module):
    """-(E log p(x | z_0) - KL(q(z_1 | x) || N(0, sigma^2 I)) - diffusion) / D, z_0 at t_min and z_1 at t_max.

    The diffusion term is `DenoisingScoreMatching` with the weights of the bound. On a path with fixed ends the other
    two terms do not depend on anything that is learnt; on a `LearnedVPSDE` they are what its ends are learnt by.

    Args:
        times: The distribution of t; `AdaptiveTimes()` by default, which learns the one with the least variance.
        decoder: p(x | z_0): `LevelDecoder(L)` for data on levels; `GaussianDecoder()` by default.

    Raises:
        TypeError: If times is not a `TimeSampling`, or decoder not a `Decoder`.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", equations 11 to 18.
    """

    def __init__(self, times: TimeSampling | None = None, decoder: Decoder | None = None) -> None:
        nn.Module.__init__(self)
        self.times: TimeSampling = AdaptiveTimes() if times is None else times
        self.decoder: Decoder = GaussianDecoder() if decoder is None else decoder
        check_kind("times", self.times, TimeSampling)
        check_kind("decoder", self.decoder, Decoder)
        self._matching = DenoisingScoreMatching(ELBOWeighting(), self.times)

    def draw(self, model: Denoiser, x0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """As `DenoisingScoreMatching.draw`, and the noise `end_noise` of z_0, [B, *]."""
        found = self._matching.draw(model, x0, generator)
        if generator is None:
            return {**found, "end_noise": torch.randn_like(x0)}
        return {**found, "end_noise": torch.randn(x0.shape, generator=generator).to(x0)}

    def __call__(  # type: ignore[override]
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Time | None = None,
        noise: Tensor | None = None,
        end_noise: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Loss of each sample, [B]; see `DenoisingScoreMatching.__call__`."""
        sde, size = denoiser.sde, x0[0].numel()
        t = self.times(sde, len(x0), x0.device) if t is None else float64(t).expand(len(x0))
        diffusion = self._matching(denoiser, x0, t, noise, **conditions)
        if denoiser.training:
            with torch.no_grad():
                weight = ELBOWeighting()(sde, t) * self.times.importance(sde, t) / (0.5 * size)
                self.times.observe(sde, t, (diffusion.double() / weight).square())
        with sde.on_cpu():
            end_noise = torch.randn_like(x0) if end_noise is None else end_noise
            reconstruction = self.decoder.expected(sde, sde.t_min, x0, end_noise)
            alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
            entropy = 0.5 * size * (math.log(2 * math.pi) + 2 * sigma.log() + 1)
            prior = -entropy - GaussianPrior.standard(sde).expected(alpha.to(x0.device) * x0, sigma, end_noise)
        return diffusion + ((prior - reconstruction) / size).to(diffusion)

    __repr__ = Objective.__repr__
