"""What the sampler tests share: the six paths, Gaussian data and its exact flow, a mixture, a recording denoiser."""

from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser, Prediction
from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE, Time

SIX: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
}

MEAN = torch.tensor([0.7, -0.3, 0.0], dtype=torch.float64)
STD = torch.tensor([0.5, 0.1, 1.3], dtype=torch.float64)


def gaussian(sde: SDE) -> GaussianDenoiser:
    return GaussianDenoiser(sde, MEAN, STD)


def gaussian_flow(sde: SDE, x: Tensor, start: float, end: float) -> Tensor:
    """The probability flow of Gaussian data maps quantiles to quantiles: it stretches x about the mean."""
    a, s, b, t = (float(scale(time)) for time in (start, end) for scale in (sde.alpha, sde.sigma))
    return b * MEAN + ((b * STD) ** 2 + t**2).sqrt() / ((a * STD) ** 2 + s**2).sqrt() * (x - a * MEAN)


def latent(sde: SDE, n: int = 64) -> Tensor:
    """States at t_max, [n, 3]."""
    return float(sde.sigma(sde.t_max)) * torch.randn(
        n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )


def mixture(sde: SDE) -> GaussianMixtureDenoiser:
    """Three unequal components in two dimensions; its means and stds are not symmetric in anything."""
    means = torch.tensor([[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]])
    stds = torch.tensor([[0.10, 0.20], [0.15, 0.10], [0.30, 0.25]])
    return GaussianMixtureDenoiser(sde, means, stds, torch.tensor([0.5, 0.2, 0.3]))


def mixture_moments(denoiser: GaussianMixtureDenoiser, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean [2] and covariance [2, 2] of alpha x0 + sigma eps."""
    weights = denoiser.log_weights.exp()
    mean = weights @ denoiser.means
    second = torch.einsum("k,ki,kj->ij", weights, denoiser.means, denoiser.means)
    covariance = second + torch.diag(weights @ denoiser.stds.square()) - torch.outer(mean, mean)
    return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)


class Recording(Denoiser):
    """Passes on to another denoiser and keeps every (x, t, conditions)."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.sde = inner.sde
        self.calls: list[tuple[Tensor, float, dict[str, Any]]] = []

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        self.calls.append((x_t.clone(), float(t), conditions))
        return self.inner(x_t, t)

    @property
    def times(self) -> list[float]:
        return [t for _, t, _ in self.calls]
