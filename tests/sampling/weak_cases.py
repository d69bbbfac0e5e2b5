"""Exact moments of a walk on Gaussian data: there every sampler is an affine map of its latent and its noises."""

import torch
from torch import Tensor

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.sampling import Sampler, Walk
from sde_diffusion.sde import SDE

MEAN, STD = 0.7, 0.5


class UnitDraws:
    """Noise in which sample k sees the number 1 in draw k - 1 and 0 in all others."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def normal(self, draw: int) -> Tensor:
        z = torch.zeros(self.samples, 1, dtype=torch.float64)
        if 1 + draw < self.samples:
            z[1 + draw] = 1
        return z


def affine(sampler: Sampler, sde: SDE, t_end: float, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offset [], coefficient of the latent [] and of the draws [draws]; `draws` at least the largest number + 1."""
    denoiser = GaussianDenoiser(sde, torch.tensor([MEAN], dtype=torch.float64), STD)
    noise = UnitDraws(draws + 1)
    x = torch.zeros(draws + 1, 1, dtype=torch.float64)
    x[1] = 1  # draw 0 is the prior's
    out = sampler.walk(x, Walk(denoiser, noise, t_end))[:, 0]
    return out[0], out[1] - out[0], out[2:] - out[0]


def weak_errors(sampler: Sampler, sde: SDE, t_end: float, draws: int) -> tuple[float, float]:
    """Of the mean, and of the variance over the exact one, started from the exact marginal at t_max."""
    offset, from_x, from_noise = affine(sampler, sde, t_end, draws)
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    mean = offset + from_x * alpha * MEAN
    variance = from_x**2 * ((alpha * STD) ** 2 + sigma**2) + from_noise.square().sum()
    exact = variance_at(sde, t_end)
    return float(mean - sde.alpha(t_end) * MEAN), float(variance / exact - 1)


def variance_at(sde: SDE, t: float) -> float:
    return float((sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2)
