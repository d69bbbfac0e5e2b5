r"""Posterior samples by replacing what is known of x_t: score_sde's inpainting and colourisation."""

from __future__ import annotations

import copy

from torch import Tensor

from sde_diffusion.checks import check_kind
from sde_diffusion.sampling.ancestral import AncestralSampler
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.measured import KnownPart, PosteriorSampler
from sde_diffusion.sampling.walk import Walk


class Replacement(PosteriorSampler):
    r"""A sampler's walk, in which the known part of x_t is replaced at each time: A x_t <- alpha y + sigma z.

    The denoiser is a `PosteriorDenoiser` for its operator and noise (its likelihood is not used), and y is passed as
    y=. A is any operator whose A A^T has known eigenvectors; noise in y is taken into account, as in DDRM, but with the
    sampler's own noise, whose variance is right (see `measured.KnownPart`). One of the sampler's times is moved to
    where x_t is as noisy as y, along the largest eigenvalue of A A^T. With noise = 0 the belief at the end has A x = y
    to rounding, but for directions whose eigenvalue of A A^T is below 1e-6 of the largest. No derivatives of the
    network are needed.

    It is biased, however many steps there are: each step believes in the noise z of the known part, which the next one
    replaces, so that what the unknown part should have learned from it is partly lost. For x_0 ~ N(0, C) of two numbers
    with unit variances and correlation rho, the first known, and P = (C + r^2 I)^-1, r = sigma / alpha, the fresh noise
    averages out over short steps of the reverse SDE, and mean m and variance v of the second, in x / alpha, follow

        dm/dr = 2 r (P_22 m + P_21 y),      dv/dr = 4 r P_22 v - 2 r.

    rho = .5, .9, .99: m = .268 y, .627 y, .868 y and standard deviation .908, .558, .231, where the posterior has .5 y,
    .9 y, .99 y and .866, .436, .141. `RePaint` reduces the bias; `TwistedSMC` does not have it, nor has, for Gaussian
    data, `MomentMatching`.

    Args:
        sampler: The sampler whose walk it is, one with steps of a grid; AncestralSampler(250, eta=1) by default. With
            deterministic samplers the bias is larger.

    Raises:
        TypeError: If sampler is not a sampler; from a call, if the denoiser is not a `PosteriorDenoiser`.
        ValueError: From a call, if the eigenvectors of A A^T are not known, the sampler does not take steps of a grid
            (`ODESampler`, `SDESampler`), or it takes Langevin steps and there is noise in y.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix I.2 and I.3; there the known part is
        noised to the time before.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        check_kind("sampler", sampler, Sampler, or_none=True)
        self.sampler = AncestralSampler(250, eta=1.0) if sampler is None else sampler
        super().__init__(self.sampler.denoise, self.sampler.t_end)
        self.states = self.sampler.states

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """The sampler's walk; see `Sampler.walk`."""
        run.replace = known = KnownPart(run, type(self).__name__)
        run.fades = known.variance > 0
        sampler = copy.copy(self.sampler)
        sampler.grid = known.through(sampler.grid_on(run.sde))
        x = sampler.walk(x, run)
        return known.projected(x) if self.denoise else x
