"""What the tests of posterior samplers share: a mixture in two dimensions, one number of which is measured."""

import torch

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.guidance import LinearOperator

NOISE = 0.1
OPERATOR = LinearOperator(torch.tensor([[1.0, 0.5]]))
Y = torch.tensor([[0.9], [-0.35], [0.1], [-0.7]], dtype=torch.float64)
"""Four measurements with different weights of the modes."""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def four_modes(sde):
    """Components of full covariances, several of which explain each of Y."""
    means = torch.tensor([[1.0, 0.6], [-0.8, 0.9], [0.2, -1.0], [-0.5, -0.4]])
    factors = 0.25 * random(4, 2, 2, seed=1)
    covariances = factors @ factors.mT + 0.01 * torch.eye(2, dtype=torch.float64)
    return GaussianMixtureDenoiser(sde, means, covariances=covariances, weights=torch.tensor([0.3, 0.2, 0.3, 0.2]))


def correlated(sde, rho):
    """Two numbers of unit variance."""
    return GaussianDenoiser(sde, torch.zeros(2), covariance=torch.tensor([[1.0, rho], [rho, 1.0]]))
