"""What the density tests share: the six paths, closed-form data on them, small networks, bits."""

import math
from functools import cache

import pytest
import torch
from reference_paths import CASES, SIX
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser, NetworkDenoiser
from sde_diffusion.sde import SDE

PATHS: dict[str, SDE] = {name: CASES[name][0] for name in SIX}

EACH_PATH = [
    name if name in ("vp", "ve", "rectified") else pytest.param(name, marks=pytest.mark.slow) for name in PATHS
]
"""All six for `pytest.mark.parametrize`: three that have little in common are quick."""

MEAN = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
STD = torch.tensor([0.5, 0.2, 0.9], dtype=torch.float64)


def gaussian(sde: SDE) -> GaussianDenoiser:
    return GaussianDenoiser(sde, MEAN, STD)


@cache
def _fitted() -> tuple[Tensor, Tensor, Tensor]:
    """Means, standard deviations and weights of ten diagonal components fitted to the digits."""
    data = load_digits().data / 8 - 1
    fit = GaussianMixture(10, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(data)
    return torch.from_numpy(fit.means_), torch.from_numpy(fit.covariances_).sqrt(), torch.from_numpy(fit.weights_)


def digits(sde: SDE) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(sde, *_fitted())


def flat(sde: SDE) -> GaussianMixtureDenoiser:
    """Three unequal components in two dimensions."""
    means = torch.tensor([[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]])
    stds = torch.tensor([[0.10, 0.20], [0.15, 0.10], [0.30, 0.25]])
    return GaussianMixtureDenoiser(sde, means, stds, torch.tensor([0.5, 0.2, 0.3]))


def draw(denoiser: GaussianMixtureDenoiser, n: int, t: float | None = None, seed: int = 0) -> Tensor:
    """Draws of the exact marginal at t (t_min if not given), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = denoiser.sample(n, generator)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return denoiser.sde.perturb(x, denoiser.sde.t_min if t is None else t, noise)


def terminal(denoiser: GaussianMixtureDenoiser):
    """The exact log-density at t_max, to be given as prior=."""
    return lambda x: denoiser.log_prob(x, denoiser.sde.t_max)


def moments(denoiser: GaussianMixtureDenoiser) -> tuple[Tensor, Tensor]:
    """Mean and variance of the data in each dimension."""
    weights = denoiser.log_weights.exp()
    mean = weights @ denoiser.means
    return mean, weights @ (denoiser.means.square() + denoiser.stds.square()) - mean.square()


def bits(nats: Tensor, size: int) -> float:
    """The largest of some differences of log-densities, in bits per dimension."""
    return nats.abs().max().item() / (size * math.log(2))


class Perceptron(nn.Module):
    """A smooth network with random weights that are not small, so that its flow is none of a closed form; counts."""

    def __init__(self, dims: tuple[int, ...], width: int = 24, seed: int = 0, gain: float = 1.5) -> None:
        super().__init__()
        size = math.prod(dims)
        self.first, self.second = nn.Linear(size + 1, width), nn.Linear(width, size)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(gain * torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
        self.passes = 0

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.passes += 1
        flat = x.flatten(1).to(self.first.weight.dtype)
        noise = c_noise.to(flat).expand(len(flat)).unsqueeze(1)
        h = self.first(torch.cat([flat, noise], 1))
        if label is not None:
            h = h + label.unsqueeze(1)
        return self.second(torch.tanh(h)).to(x.dtype).view_as(x)


def network(sde: SDE, *dims: int, seed: int = 0, gain: float = 1.5) -> NetworkDenoiser:
    return NetworkDenoiser(sde, Perceptron(dims, seed=seed, gain=gain))
