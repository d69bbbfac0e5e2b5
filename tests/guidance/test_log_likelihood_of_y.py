"""log p(y | x_t) of the measurement likelihoods against dense normal densities."""

import pytest
import torch
from reference_paths import PATHS
from torch.distributions import MultivariateNormal

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.guidance import (
    Blur,
    Downsample,
    Grey,
    JacobianFree,
    LinearOperator,
    Mask,
    MomentMatching,
    PointEstimate,
    PosteriorDenoiser,
    PseudoInverse,
    RowSum,
)
from sde_diffusion.sampling import AncestralSampler

NOISE = 0.2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(operator, dims):
    unit = torch.eye(torch.Size(dims).numel(), dtype=torch.float64)
    return operator(unit.reshape(-1, *dims)).flatten(1).T


def exact(denoiser, operator, x_t, t, y, dims):
    """log N(y; A x0, A V A^T + noise^2 I), V being the covariance of x_0 given x_t."""
    matrix = dense(operator, dims)
    covariance = matrix @ denoiser.covariance(x_t, t) @ matrix.T
    covariance = covariance + NOISE**2 * torch.eye(len(matrix), dtype=torch.float64)
    return MultivariateNormal(denoiser(x_t, t).x0.flatten(1) @ matrix.T, covariance).log_prob(y.flatten(1))


@pytest.mark.parametrize("name", PATHS)
def test_moment_matching_for_gaussians(name):
    factor = random(6, 6, seed=1) / 6**0.5
    denoiser = GaussianDenoiser(PATHS[name][0], random(6, seed=2), covariance=factor @ factor.T)
    operator = LinearOperator(random(3, 6, seed=5))
    x_t, y = random(4, 6, seed=3), random(4, 3, seed=4)
    posterior = PosteriorDenoiser(denoiser, operator, NOISE, MomentMatching(1))
    for log_snr in (-4.0, 0.0, 6.0):
        t = denoiser.sde.time(torch.tensor(log_snr, dtype=torch.float64))
        with torch.inference_mode():
            twist = posterior.twist(x_t, t, y=y)
        torch.testing.assert_close(twist.log_prob, exact(denoiser, operator, x_t, t, y, (6,)), rtol=1e-9, atol=1e-9)
        moved = denoiser.posterior(operator, NOISE)(x_t, t, y=y).x0
        torch.testing.assert_close(twist.prediction.x0 + twist.shift, moved, rtol=1e-9, atol=1e-9)
        assert twist.gradients == 4


OPERATORS = {
    "mask": (Mask(random(3, 4, 4) > 0), (3, 4, 4)),
    "area": (Downsample(2), (3, 4, 4)),
    "grey": (Grey(), (3, 4, 4)),
    "blur": (Blur(torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.4, 0.1], [0.3, 0.0, 0.05]])), (2, 3, 4)),
    "matrix": (LinearOperator(random(5, 8)), (8,)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_others_for_white_data(name):
    """N(m, s^2 I), with s told to those that assume one: through the eigenvalues of A A^T."""
    operator, dims = OPERATORS[name]
    denoiser = GaussianDenoiser(PATHS["vp"][0], random(*dims), 0.5)
    x_t = random(3, *dims, seed=3)
    y = operator(random(3, *dims, seed=4))
    want = exact(denoiser, operator, x_t, 0.3, y, dims)
    likelihoods = [PseudoInverse(0.5), JacobianFree(0.5), MomentMatching(1), *([RowSum()] if name == "mask" else [])]
    for likelihood in likelihoods:
        found = PosteriorDenoiser(denoiser, operator, NOISE, likelihood).twist(x_t, 0.3, y=y)
        torch.testing.assert_close(found.log_prob, want, rtol=1e-9, atol=1e-9)


def test_point_estimate():
    operator, denoiser = Mask(torch.tensor([1, 0, 1])), GaussianDenoiser(PATHS["vp"][0], random(3), 0.5)
    x_t, y = random(2, 3, seed=3), random(2, 2, seed=4)
    found = PosteriorDenoiser(denoiser, operator, NOISE, PointEstimate(0.7)).twist(x_t, 0.3, y=y).log_prob
    normal = torch.distributions.Normal(operator(denoiser(x_t, 0.3).x0), NOISE)
    torch.testing.assert_close(found, 0.7 * normal.log_prob(y).sum(1), rtol=1e-12, atol=1e-12)


def test_projection_with_noise_in_the_measurement():
    """JacobianFree(inf) of data N(0, s^2) ends at std s (noise / s)^(s^2 / (s^2 - noise^2)), 5% below the posterior's;
    what is not observed keeps its own. 4 standard errors (false alarms 2.5e-4), and 2% for the steps."""
    n, s = 4000, 0.5
    denoiser = GaussianDenoiser(PATHS["edm"][0], torch.zeros(2), s)
    posterior = PosteriorDenoiser(denoiser, Mask(torch.tensor([1, 0])), 0.1, JacobianFree(float("inf")))
    found = AncestralSampler(200)(posterior, (n, 2), y=torch.ones(1, 1), dtype=torch.float64).x.std(0)
    want = torch.tensor([s * (0.1 / s) ** (s**2 / (s**2 - 0.01)), s], dtype=torch.float64)
    assert ((found / want - 1).abs() < 4 / (2 * n) ** 0.5 + 0.02).all()
    assert abs(want[0] / (0.25 * 0.01 / 0.26) ** 0.5 - 0.953) < 1e-3
