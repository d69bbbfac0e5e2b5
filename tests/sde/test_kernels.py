"""transition, posterior and prior against Bayes' rule on joint covariances at 50 digits, and other libraries."""

import mpmath as mp
import pytest
import scipy.stats
import torch
from reference_paths import CASES, SIX

from sde_diffusion.sde import VPSDE, RectifiedFlow

PAIRS = {  # (s, t), from far apart to a step of a millionth
    "vp": [(0.0, 1.0), (0.0, 1e-5), (1e-5, 1.0), (0.2, 0.5), (0.5, 0.501), (0.3, 0.300001)],
    "subvp": [(0.0, 1.0), (0.0, 1e-5), (1e-5, 1.0), (0.2, 0.5), (0.5, 0.501), (0.3, 0.300001)],
    "cosine": [(0.0, 1.0), (0.0, 1e-5), (0.2, 0.5), (0.5, 0.501), (0.3, 0.300001)],
    "ve": [(0.0, 1.0), (0.0, 1e-5), (0.2, 0.5), (0.5, 0.501), (0.3, 0.300001)],
    "edm": [(0.0, 80.0), (0.0, 0.002), (0.002, 80.0), (0.4, 1.3), (5.0, 5.001), (0.3, 0.300001)],
    "rectified": [(0.0, 0.999), (0.0, 1e-5), (1e-5, 0.999), (0.2, 0.5), (0.5, 0.501), (0.3, 0.300001)],
}
# A step of 1e-6 in t loses six digits of lambda_t - lambda_s: what float64 lambdas of size 10 leave is 1e-9.
RTOL = 2e-9
ATOL = 1e-18  # the conditioning itself, where the variance left is zero (s = 0): half of 50 digits, as a std


def markov_kernel(reference, s, t):
    """x_t | x_s of a Markov Gaussian path: means compose, variances add (sigma_t^2 = scale^2 sigma_s^2 + std^2)."""
    scale = reference.alpha(t) / reference.alpha(s)
    return scale, reference.variance(t) - scale**2 * reference.variance(s)


def condition(reference, s, t):
    """x_s given (x_0, x_t): weights and variance, by inverting the covariance of the two (prior of x_0: variance 3)."""
    prior = mp.mpf(3)
    alpha_s, (scale, variance) = reference.alpha(s), markov_kernel(reference, s, t)
    cov_0s, cov_0t = alpha_s * prior, scale * alpha_s * prior
    var_s = alpha_s**2 * prior + reference.variance(s)
    var_t, cov_st = scale**2 * var_s + variance, scale * var_s
    cross = mp.matrix([[cov_0s, cov_st]])
    weights = cross * mp.inverse(mp.matrix([[prior, cov_0t], [cov_0t, var_t]]))
    return weights[0], weights[1], var_s - (weights * cross.T)[0]


@pytest.mark.parametrize("name", SIX)
def test_transition_and_posterior_by_conditioning_gaussians(name):
    (sde, reference, _), pairs = CASES[name], PAIRS[name]
    s, t = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    batched = [*sde.transition(s, t), *sde.posterior_coefficients(s, t)]
    for i, pair in enumerate(pairs):
        scale, variance = markov_kernel(reference, *map(mp.mpf, pair))
        a, b, posterior_variance = condition(reference, *map(mp.mpf, pair))
        expected = [scale, mp.sqrt(variance), a, b, mp.sqrt(abs(posterior_variance))]
        alone = [*sde.transition(*pair), *sde.posterior_coefficients(*pair)]
        for label, want, one, many in zip(("scale", "std", "a", "b", "std_s"), expected, alone, batched, strict=True):
            for value in (one.item(), many[i].item()):
                assert abs(value - want) <= RTOL * abs(want) + ATOL, (label, pair, value, mp.nstr(want, 12))


@pytest.mark.parametrize("name", SIX)
def test_chapman_kolmogorov(name):
    sde = CASES[name][0]
    r, s, t = sde.t_max * torch.tensor([[0.0, 0.1, 0.5], [0.05, 0.3, 0.6], [0.4, 0.9, 1.0]], dtype=torch.float64)
    (first, std_1), (second, std_2), (whole, std) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
    torch.testing.assert_close(first * second, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close((second * std_1) ** 2 + std_2**2, std**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SIX)
def test_ends_of_the_kernels(name):
    sde = CASES[name][0]
    t = 0.5 * sde.t_max
    scale, std = sde.transition(t, t)  # no time passes
    assert (scale.item(), std.item()) == (1.0, 0.0)
    assert [c.item() for c in sde.posterior_coefficients(t, t)] == [0.0, 1.0, 0.0]
    if sde.log_snr(0.0).isinf():  # at time zero the state is the data
        torch.testing.assert_close(sde.transition(0.0, t), (sde.alpha(t), sde.sigma(t)), rtol=1e-15, atol=0)
        assert [c.item() for c in sde.posterior_coefficients(0.0, t)] == [1.0, 0.0, 0.0]


def test_kernels_from_pure_noise():
    """Rectified flow at t = 1: x_1 says nothing of x_s, so the posterior is q(x_s | x_0)."""
    sde = RectifiedFlow(t_max=1.0)
    assert [c.item() for c in sde.transition(0.3, 1.0)] == [0.0, 1.0]
    assert [c.item() for c in sde.posterior_coefficients(0.3, 1.0)] == pytest.approx([0.7, 0.0, 0.3], rel=1e-15)


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4), (3, 2, 6)])
def test_states_of_any_shape_use_their_own_times(shape):
    """perturb, posterior and drift of a batch, sample by sample with numbers from the 50-digit reference."""
    sde, reference, _ = CASES["subvp"]
    generator = torch.Generator().manual_seed(3)
    x0, x_t = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    s, t = torch.tensor([0.1, 0.2, 0.01], dtype=torch.float64), torch.tensor([0.4, 0.21, 1.0], dtype=torch.float64)
    perturbed, drift = sde.perturb(x0, t, x_t), sde.drift(x_t, t)
    mean, std = sde.posterior(x_t, x0, s, t)
    torch.broadcast_shapes(mean.shape, std.shape)
    for i in range(3):
        a, b, variance = (float(v) for v in condition(reference, mp.mpf(s[i].item()), mp.mpf(t[i].item())))
        torch.testing.assert_close(mean[i], a * x0[i] + b * x_t[i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(std[i].squeeze().item(), variance**0.5, rtol=1e-9, atol=0)
        ti = mp.mpf(t[i].item())
        expected = float(reference.alpha(ti)) * x0[i] + float(reference.sigma(ti)) * x_t[i]
        torch.testing.assert_close(perturbed[i], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(drift[i], float(reference.f(ti)) * x_t[i], rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 8, 8), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "edm", "rectified"])
def test_prior_log_prob_against_scipy(name, shape):
    sde, reference, _ = CASES[name]
    scale = float(reference.sigma(mp.mpf(sde.t_max)))
    x = scale * torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = scipy.stats.norm(0, scale).logpdf(x.numpy()).reshape(4, -1).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x), torch.from_numpy(expected), rtol=1e-12, atol=0)
    assert sde.prior_log_prob(x.float()).dtype == torch.float64


def test_prior_log_prob_of_float32_images_keeps_its_digits():
    """3 x 64 x 64 float32 values: the sum is taken in float64 (a float32 sum of 12,288 terms is off by about 1e-3)."""
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    sigma = float(CASES["vp"][1].sigma(mp.mpf(1)))
    expected = torch.distributions.Normal(0, torch.tensor(sigma, dtype=torch.float64)).log_prob(x.double())
    torch.testing.assert_close(VPSDE().prior_log_prob(x), expected.sum((1, 2, 3)), rtol=1e-13, atol=0)
