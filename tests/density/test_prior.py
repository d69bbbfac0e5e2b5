"""Priors: densities and divergences against torch.distributions, expectations against simulation."""

import pytest
import torch
from density_cases import PATHS, draw, flat, moments, terminal
from torch.distributions import Independent, Normal, kl_divergence

from sde_diffusion.density import GaussianPrior
from sde_diffusion.density.prior import SampledPrior
from sde_diffusion.sde import VESDE

MEAN = torch.tensor([[0.3, -1.0, 0.0], [2.0, 0.1, -0.4]], dtype=torch.float64)
VARIANCE = torch.tensor([[0.5, 2.0, 1.0], [0.01, 9.0, 0.3]], dtype=torch.float64)
X = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def independent(mean, variance) -> Independent:
    return Independent(Normal(mean, variance.sqrt()), mean.ndim)


def test_densities():
    torch.testing.assert_close(GaussianPrior(MEAN, VARIANCE)(X), independent(MEAN, VARIANCE).log_prob(X))
    broad = independent(torch.full_like(MEAN, 0.7), torch.full_like(MEAN, 2.5))
    torch.testing.assert_close(GaussianPrior(0.7, 2.5)(X), broad.log_prob(X))
    assert GaussianPrior(0.7, 2.5)(X.float()).dtype == torch.float64


@pytest.mark.parametrize("name", PATHS)
def test_standard_is_where_samplers_begin(name):
    sde = PATHS[name]
    torch.testing.assert_close(GaussianPrior.standard(sde)(X), sde.prior_log_prob(X).double())


@pytest.mark.parametrize("name", PATHS)
def test_matched_has_the_moments_of_the_marginal(name):
    """Of 200 000 draws at t_max, within 4.5 standard errors; and the prior of a Gaussian's marginal is exact."""
    denoiser = flat(PATHS[name])
    prior = GaussianPrior.matched(denoiser.sde, *moments(denoiser))
    drawn = draw(denoiser, 200_000, denoiser.sde.t_max)
    variance = drawn.var(0)
    assert bool(((drawn.mean(0) - prior.mean).abs() < 4.5 * (variance / 200_000).sqrt()).all())
    assert bool(((variance / prior.variance - 1).abs() < 4.5 * (2 / 200_000) ** 0.5).all())
    whole = GaussianPrior.matched(denoiser.sde, 0.25, 0.5)
    alpha, sigma = denoiser.sde.alpha(denoiser.sde.t_max), denoiser.sde.sigma(denoiser.sde.t_max)
    assert float(whole.mean) == pytest.approx(float(0.25 * alpha))
    assert float(whole.variance) == pytest.approx(float(0.5 * alpha**2 + sigma**2))


def test_kl():
    first, second = GaussianPrior(MEAN, VARIANCE), GaussianPrior(MEAN.flip(0), VARIANCE.flip(1))
    expected = kl_divergence(independent(first.mean, first.variance), independent(second.mean, second.variance))
    assert second.kl_of(first, 6) == pytest.approx(float(expected), rel=1e-12)
    narrow, broad = GaussianPrior(0.1, 1.2), GaussianPrior(0.0, 1.0)
    one = kl_divergence(Normal(0.1, 1.2**0.5), Normal(0.0, 1.0))
    assert broad.kl_of(narrow, 64) == pytest.approx(64 * float(one), rel=1e-6)
    assert narrow.kl_of(narrow, 64) == 0
    # A variance for each channel, [2, 1], counts for all its places.
    wide = GaussianPrior(0.0, torch.tensor([[1.0], [4.0]]))
    both = 3 * kl_divergence(Normal(0.0, 1.0), Normal(0.1, 1.2**0.5)) + 3 * kl_divergence(
        Normal(0.0, 2.0), Normal(0.1, 1.2**0.5)
    )
    assert narrow.kl_of(wide, 6) == pytest.approx(float(both), rel=1e-6)


def drawn(n: int):
    return torch.randn(n, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_expectations_of_a_gaussian_are_exact():
    """The mean over 200 000 draws of N(x, 1.7^2), within 4.5 standard errors."""
    prior, noise = GaussianPrior(MEAN, VARIANCE), drawn(200_000)
    for x in X:
        simulated = independent(MEAN, VARIANCE).log_prob(x + 1.7 * noise)
        expected = float(prior.expected(x.unsqueeze(0), 1.7, noise[:1]))
        assert abs(float(simulated.mean()) - expected) < 4.5 * float(simulated.std()) / 200_000**0.5


@pytest.mark.parametrize("std", [0.3, 50.0])
def test_sampled_expectations_are_unbiased(std):
    """Of a mixture's density near the data and at the end of a walk; near enough to normal there, that the control
    variate leaves a thousandth of the variance.
    """
    sde = VESDE(sigma_min=0.01, sigma_max=std)
    density = terminal(flat(sde))
    prior, n = SampledPrior(density), 100_000
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.5, -0.2], dtype=torch.float64).expand(n, 2)
    estimates, plain = prior.expected(mean, std, noise), density(mean + std * noise)
    assert torch.equal(prior(mean[:3]), density(mean[:3]))
    difference = estimates - plain  # without expectation
    assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / n**0.5
    assert difference.std() > 0.1
    if std == 50.0:
        assert estimates.var() < 1e-3 * plain.var()


def test_sampled_expectations_of_a_gaussian():
    """Against its own closed form; at the end of a walk one draw tells it to a few hundredths."""
    prior, noise = GaussianPrior.matched(VESDE(), 0.1, 0.3), drawn(20_000)
    mean = X[:1].expand(20_000, 2, 3)
    off = SampledPrior(prior).expected(mean, 50.0, noise) - prior.expected(mean, 50.0, noise)
    assert abs(float(off.mean())) < 4.5 * float(off.std()) / 20_000**0.5
    assert off.std() < 0.1


def test_what_is_refused():
    for variance in (0.0, -1.0, torch.tensor([1.0, 0.0]), torch.tensor([float("nan")])):
        with pytest.raises(ValueError, match=r"variance must be (positive|finite)"):
            GaussianPrior(0.0, variance)
    with pytest.raises(ValueError, match=r"prior must return one log-density for each sample, \[4\]; got \[4, 2\]"):
        SampledPrior(lambda x: x.sum(2)).expected(X, 1.0, X)
