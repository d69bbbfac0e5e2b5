"""Mixtures with full covariances and their posteriors, against torch's and scipy's Gaussians and autograd."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from reference_paths import PATHS, scales
from torch.distributions import MultivariateNormal

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
NOISE = 0.3
EYE = torch.eye(4, dtype=torch.float64)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS = 1.5 * _random(3, 4)
FACTORS = 0.5 * _random(3, 4, 4, seed=1)
COVARIANCES = FACTORS @ FACTORS.mT
MATRIX = _random(2, 4, seed=2)


def mixture(name="vp"):
    return GaussianMixtureDenoiser(PATHS[name][0], MEANS, weights=WEIGHTS, covariances=COVARIANCES)


def states(name, measured=False):
    """Two draws of (x_t, y) at each of the reference times."""
    s = scales(name)
    t = torch.cat([s["t"], s["t"]])
    x0 = mixture(name).sample(len(t), torch.Generator().manual_seed(5))
    x_t = torch.cat([s["alpha"], s["alpha"]]) * x0 + torch.cat([s["sigma"], s["sigma"]]) * _random(*x0.shape, seed=3)
    y = x0 @ MATRIX.T + NOISE * _random(len(x0), 2, seed=4)
    return (t, x_t, y) if measured else (t, x_t)


def test_diagonal_covariances_are_stds():
    stds = torch.tensor([[0.3, 0.5], [0.7, 0.05]])
    means = torch.tensor([[[1.0, -1.0]], [[0.5, 2.0]]])  # data of shape [1, 2]
    sde = PATHS["cosine"][0]
    a = GaussianMixtureDenoiser(sde, means, stds[:, None])
    b = GaussianMixtureDenoiser(sde, means, covariances=torch.diag_embed(stds.double().square()))
    x = _random(6, 1, 2)
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    for form in ("x0", "eps", "score", "velocity"):
        torch.testing.assert_close(getattr(b(x, t), form), getattr(a(x, t), form), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b.log_prob(x, t), a.log_prob(x, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b.covariance(x, t), a.covariance(x, t), rtol=1e-12, atol=1e-14)
    assert b.sigma_data == pytest.approx(a.sigma_data, rel=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_density_against_scipy_and_score_against_its_gradient(name):
    t, x = states(name)
    alpha, sigma = (torch.cat([v, v]).flatten() for v in (scales(name)["alpha"], scales(name)["sigma"]))
    x.requires_grad_()
    found = mixture(name).log_prob(x, t)
    for i, (a, b) in enumerate(zip(alpha.tolist(), sigma.tolist(), strict=True)):
        parts = [
            scipy.stats.multivariate_normal(a * m, a**2 * c + b**2 * np.eye(4)).logpdf(x[i].detach().numpy())
            for m, c in zip(MEANS.numpy(), COVARIANCES.numpy(), strict=True)
        ]
        assert found[i].item() == pytest.approx(scipy.special.logsumexp(parts, b=WEIGHTS.numpy()), rel=1e-9, abs=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    score = mixture(name)(x.detach(), t).score
    assert ((score - gradient).norm(dim=1) / gradient.norm(dim=1)).max() < 1e-8


@pytest.mark.parametrize("name", PATHS)
def test_covariance_is_the_jacobian(name):
    """Cov[x_0 | x_t] = (sigma^2 / alpha) d x0 / d x_t."""
    t, x = states(name)
    s = scales(name)
    found = mixture(name).covariance(x, t)
    for i in range(len(t)):
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: mixture(name)(x[None], t[i]).x0[0], x[i])
        expected = jacobian * (s["sigma"].flatten()[i % 4] ** 2 / s["alpha"].flatten()[i % 4])
        assert (found[i] - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("name", PATHS)
def test_posterior_is_the_joint_gaussian_conditioned_by_autograd(name):
    """(x_t, y) is jointly a mixture of Gaussians; its gradient in x_t is the posterior's score."""
    t, x, y = states(name, measured=True)
    posterior = mixture(name).posterior(MATRIX, NOISE)
    s = scales(name)
    for i in range(len(t)):
        alpha, sigma = (s[key].flatten()[i % 4] for key in ("alpha", "sigma"))
        cross = alpha * COVARIANCES @ MATRIX.T
        covariance = torch.cat(
            [
                torch.cat([alpha**2 * COVARIANCES + sigma**2 * EYE, cross], 2),
                torch.cat([cross.mT, MATRIX @ COVARIANCES @ MATRIX.T + NOISE**2 * EYE[:2, :2]], 2),
            ],
            1,
        )
        mean = torch.cat([alpha * MEANS, MEANS @ MATRIX.T], 1)
        point = x[i].clone().requires_grad_()
        joint = MultivariateNormal(mean, covariance).log_prob(torch.cat([point, y[i]]))
        total = (joint + WEIGHTS.log()).logsumexp(0)
        (gradient,) = torch.autograd.grad(total, point)
        found = posterior(x[i : i + 1], t[i], y=y[i : i + 1])
        assert (found.score[0] - gradient).norm() <= 1e-8 * gradient.norm()
        tweedie = (x[i] + sigma**2 * gradient) / alpha
        assert (found.x0[0] - tweedie).norm() <= 1e-8 * (1 + x[i].norm() / alpha)
        evidence = MultivariateNormal(mean[:, 4:], covariance[:, 4:, 4:]).log_prob(y[i])
        evidence = (evidence + WEIGHTS.log()).logsumexp(0)
        assert posterior.log_evidence(y[i : i + 1]).item() == pytest.approx(evidence.item(), rel=1e-10)
        at_x = posterior.log_prob(x[i : i + 1], t[i], y=y[i : i + 1]).item()  # log q(x_t | y)
        assert at_x == pytest.approx((total - evidence).item(), rel=1e-8, abs=1e-8)


def test_responsibilities_are_bayes_rule():
    t, x = states("ve")
    s = scales("ve")
    log = mixture("ve").log_responsibility(x, t)
    for i in range(len(t)):
        alpha, sigma = (s[key].flatten()[i % 4] for key in ("alpha", "sigma"))
        parts = MultivariateNormal(alpha * MEANS, alpha**2 * COVARIANCES + sigma**2 * EYE).log_prob(x[i])
        torch.testing.assert_close(log[i], (parts + WEIGHTS.log()).log_softmax(0), rtol=1e-9, atol=1e-9)


def test_one_measurement_gives_a_mixture():
    """An operator as a function, with data and measurements of any shape; noise for each number of y."""
    means, noise = MEANS.reshape(3, 2, 2), torch.tensor([[0.2], [0.4]])

    def operator(x):
        return (x.flatten(1) @ MATRIX.T.to(x)).reshape(-1, 2, 1)

    prior = GaussianMixtureDenoiser(PATHS["vp"][0], means, weights=WEIGHTS, covariances=COVARIANCES)
    y = torch.tensor([[0.3], [-1.0]])
    given, posterior = prior.condition(operator, y, noise), prior.posterior(operator, noise)
    x = _random(5, 2, 2)
    for form in ("x0", "score"):
        expected = getattr(posterior(x, 0.4, y=y[None]), form)
        torch.testing.assert_close(getattr(given(x, 0.4), form), expected, rtol=1e-9, atol=1e-9)
    draws = given.sample(20_000, torch.Generator().manual_seed(0))
    # The model that y was measured on: its predictive mean is the posterior's, to 5 standard errors.
    mean = torch.einsum("k,kd->d", given.log_weights.exp(), given.means.flatten(1))
    error = draws.flatten(1).mean(0) - mean
    assert (error.abs() < 5 * draws.flatten(1).std(0) / 20_000**0.5).all()


def test_without_noise_the_measured_numbers_are_known():
    given = mixture().condition(torch.eye(4)[:1], torch.tensor([0.7]), 0.0)
    draws = given.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws[:, 0], torch.full((100,), 0.7, dtype=torch.float64), rtol=0, atol=1e-7)
    assert draws[:, 1].std() > 0.1


def test_posterior_of_a_gaussian_is_the_textbook_one():
    """N(0, 1) measured once with standard deviation 1 / 2: mean 0.8 y, standard deviation 5^(-1/2)."""
    given = GaussianDenoiser(PATHS["ve"][0], torch.zeros(1), 1.0).condition(torch.eye(1), torch.tensor([2.0]), 0.5)
    assert given.means.item() == pytest.approx(1.6)
    assert given.stds.item() == pytest.approx(0.2**0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixtureDenoiser(PATHS["vp"][0], MEANS), "either stds or covariances"),
        (lambda: GaussianMixtureDenoiser(PATHS["vp"][0], MEANS, covariances=COVARIANCES[:2]), r"\[3, 4, 4\]"),
        (lambda: GaussianMixtureDenoiser(PATHS["vp"][0], MEANS, covariances=-COVARIANCES), "negative eigenvalues"),
        (lambda: GaussianMixtureDenoiser(PATHS["vp"][0], MEANS, covariances=FACTORS), "symmetric"),
        (lambda: mixture().condition(MATRIX[:, :3], torch.zeros(2), 0.1), r"matrix \[M, 4\]"),
        (lambda: mixture().condition(MATRIX, torch.zeros(3), 0.1), "one measurement of shape"),
        (lambda: mixture().condition(lambda x: x.square(), torch.zeros(4), 0.1), "linear"),
        (lambda: mixture().condition(lambda x: x + 1, torch.zeros(4), 0.1), "linear"),
        (lambda: mixture().condition(MATRIX[[0, 0]], torch.zeros(2), 0.0), "no density"),
        (lambda: mixture().condition(MATRIX, torch.zeros(2), -0.1), "at least 0"),
        (lambda: mixture().posterior(MATRIX, 0.1)(torch.zeros(2, 4), 0.5), "give the measurement y="),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
