"""The bound of Gaussian data, of which everything is a closed form, worked out apart from the package's sums of KLs.

In T steps all variables together are jointly Gaussian under the forward process and under the model: the bound is
E_q[log p(x, z)] plus the entropy of q(z | x), from two means and two covariance matrices. In continuous time it is an
integral over the log-SNR, done by scipy's quadrature.
"""

import math

import numpy as np
import pytest
import torch
from density_cases import MEAN, PATHS, STD, draw, gaussian, terminal
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from sde_diffusion.density import GaussianPrior, elbo
from sde_diffusion.sde import SDE, VPSDE, BandLogSNR, BetaTable, KarrasRho, UniformLogSNR, UniformTime

X = np.array([0.9, -0.35, 1.6])
"""A point whose bound is looked at: a standard deviation or two out."""


def chain(sde: SDE, times, m: float, s: float, prior) -> tuple:
    """One dimension of the T-step model, times from clean to noisy: mean and covariance of (x, z_0 ... z_T) under it;
    and alpha, with the covariance of z given x under the forward process.
    """
    alpha = np.array([float(sde.alpha(t)) for t in times])
    sigma = np.array([float(sde.sigma(t)) for t in times])
    n = len(times)
    # q: for s < t, z_t = alpha_t/alpha_s z_s + independent noise.
    forward = np.array(
        [[alpha[max(i, j)] / alpha[min(i, j)] * sigma[min(i, j)] ** 2 for j in range(n)] for i in range(n)]
    )
    # p: each variable a line of the next noisier one, plus noise; built as mean and matrix of independent normals.
    means, rows = np.zeros(n + 1), np.zeros((n + 1, n + 1))
    means[n], rows[n, n] = prior[0], math.sqrt(prior[1])
    for i in range(n - 2, -1, -1):
        t = i + 1
        total = alpha[t] ** 2 * s**2 + sigma[t] ** 2
        gain = alpha[t] * s**2 / total  # x0_hat = m + gain (z_t - alpha_t m)
        pull = forward[i, t] / sigma[t] ** 2  # z_i given z_t and x0: alpha_i x0 + pull (z_t - alpha_t x0)
        clean = alpha[i] - pull * alpha[t]
        slope = pull + clean * gain
        means[i + 1] = slope * means[t + 1] + clean * (m - gain * alpha[t] * m)
        rows[i + 1] = slope * rows[t + 1]
        rows[i + 1, i + 1] = math.sqrt(sigma[i] ** 2 - pull * forward[i, t])
    means[0], rows[0] = means[1] / alpha[0], rows[1] / alpha[0]  # the decoder
    rows[0, 0] = sigma[0] / alpha[0]
    return means, rows @ rows.T, alpha, forward


def bound_of_steps(sde: SDE, times, x, priors) -> float:
    """E_q[log p(x, z)] + H(q(z | x)), summed over the dimensions."""
    total = 0.0
    for value, m, s, prior in zip(x, MEAN.tolist(), STD.tolist(), priors, strict=True):
        means, covariance, alpha, forward = chain(sde, times, m, s, prior)
        at = np.concatenate([[value], alpha * value])
        precision = np.linalg.inv(covariance)
        expected = multivariate_normal(means, covariance).logpdf(at) - 0.5 * np.trace(precision[1:, 1:] @ forward)
        total += expected + 0.5 * np.linalg.slogdet(2 * math.pi * math.e * forward)[1]
    return float(total)


def bound_in_the_limit(sde: SDE, t_end: float, x, priors) -> float:
    """Decoder, 1/2 int E|eps_hat - eps|^2 dlambda and the prior, each by itself; k = e^lambda."""
    low, high = float(sde.log_snr(sde.t_max)), float(sde.log_snr(t_end))
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    total = 0.0
    for value, m, s, (mean, variance) in zip(x, MEAN.tolist(), STD.tolist(), priors, strict=True):

        def error(lam, value=value, m=m, s=s):
            k = math.exp(lam)
            return (k * (value - m) ** 2 + k**2 * s**4) / (1 + k * s**2) ** 2

        total -= 0.5 * quad(error, low, high, limit=200)[0]
        total -= 0.5 * (math.log(2 * math.pi) - high + 1)
        ratio = sigma**2 / variance
        total -= 0.5 * (ratio - 1 - math.log(ratio) + (alpha * value - mean) ** 2 / variance)
    return total


def standard(sde: SDE) -> list[tuple[float, float]]:
    return [(0.0, float(sde.sigma(sde.t_max)) ** 2)] * 3


def exact(sde: SDE) -> list[tuple[float, float]]:
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    return [(alpha * m, (alpha * s) ** 2 + sigma**2) for m, s in zip(MEAN.tolist(), STD.tolist(), strict=True)]


def repeated(n: int = 3000) -> torch.Tensor:
    return torch.from_numpy(X).repeat(n, 1)


def agrees(result, expected: float, most: float) -> None:
    """The mean over seeds is the closed form, within 4.5 standard errors: a false alarm once in 150 000 times."""
    error = float(result.log_prob.std()) / len(result.log_prob) ** 0.5
    assert abs(float(result.log_prob.mean()) - expected) < 4.5 * error + 1e-9
    assert error < most


def own_prior(sde: SDE) -> GaussianPrior:
    """The exact terminal density, for which the KL is a closed form."""
    return GaussianPrior.matched(sde, MEAN, STD.square())


@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("name", PATHS)
def test_discrete_steps(name, steps):
    """From where noise is a third of the signal, so that every step counts for something and so does the decoder."""
    sde = PATHS[name]
    t_end = float(sde.time(2.0))
    times = UniformLogSNR().times(sde, steps + 1, t_end).flip(0).tolist()
    expected = bound_of_steps(sde, times, X, exact(sde))
    result = elbo(gaussian(sde), repeated(), steps, t_end=t_end, prior=own_prior(sde))
    agrees(result, expected, 0.1)
    if steps == 12:
        agrees(elbo(gaussian(sde), repeated(), 12, t_end=t_end), bound_of_steps(sde, times, X, standard(sde)), 0.1)
        agrees(elbo(gaussian(sde), repeated(), 12, 5, t_end=t_end, prior=own_prior(sde)), expected, 0.1)


@pytest.mark.parametrize("name", PATHS)
def test_continuous_time(name):
    sde = PATHS[name]
    result = elbo(gaussian(sde), repeated(), None, 64, prior=own_prior(sde))
    agrees(result, bound_in_the_limit(sde, sde.t_min, X, exact(sde)), 0.05)
    result = elbo(gaussian(sde), repeated(1000), None, 16, t_end=0.02 * sde.t_max)
    agrees(result, bound_in_the_limit(sde, 0.02 * sde.t_max, X, standard(sde)), 0.2)


@pytest.mark.parametrize("grid", [UniformTime(), KarrasRho(), BandLogSNR()], ids=repr)
def test_grids_are_importance_samplers(grid):
    """In continuous time the mean is the same whatever the grid; discrete steps are other chains."""
    for name in ("vp", "edm"):
        sde = PATHS[name]
        t_end = float(sde.time(2.0))
        result = elbo(gaussian(sde), repeated(), None, 64, grid=grid, t_end=t_end, prior=own_prior(sde))
        agrees(result, bound_in_the_limit(sde, t_end, X, exact(sde)), 0.1)
        times = grid.times(sde, 9, t_end).flip(0).tolist()
        result = elbo(gaussian(sde), repeated(), 8, grid=grid, t_end=t_end, prior=own_prior(sde))
        agrees(result, bound_of_steps(sde, times, X, exact(sde)), 0.1)


def test_a_list_of_levels_ends_at_its_own_ends():
    """Three steps of a coarse table: the decoder stands at the first level, and the prior meets the last."""
    grid = BetaTable(4, 0.1, 0.3)
    last = grid.log_snr()[-1]
    sde = VPSDE(t_max=float(VPSDE().time(last - 0.09)))
    times = grid.times(sde, 4).flip(0).tolist()
    assert sde.log_snr(times[0]) < 3
    assert times[-1] < sde.t_max
    agrees(elbo(gaussian(sde), repeated(100_000), 3, grid=grid), bound_of_steps(sde, times, X, standard(sde)), 0.006)


def test_steps_without_end_are_continuous_time():
    """The exact bounds of 10, 100, 1000 steps come near the integral, as 1 / T."""
    sde = PATHS["cosine"]
    limit = bound_in_the_limit(sde, 1e-3, X, exact(sde))
    gaps = []
    for steps in (30, 300):
        times = UniformLogSNR().times(sde, steps + 1, 1e-3).flip(0).tolist()
        gaps.append(limit - bound_of_steps(sde, times, X, exact(sde)))
    assert gaps[0] > 9 * gaps[1] > 0
    result = elbo(gaussian(sde), repeated(200), 3000, 64, t_end=1e-3, prior=own_prior(sde))
    agrees(result, limit - gaps[1] / 10, 0.2)


@pytest.mark.parametrize("name", PATHS)
def test_the_mean_gap_to_the_density_is_the_decoders(name):
    """Over the data, in continuous time with the exact prior: the bound's gap to the data's own density is the KL of
    the decoder, N(z_0 / alpha, 1 / k), from the posterior of x given z_0, of variance 1 / (1 / s^2 + k), k = e^lambda
    at t_end: half the logarithm of the variances' ratio, for the mean square distance to z_0 / alpha is 1 / k.
    """
    sde = PATHS[name]
    denoiser, t_end = gaussian(sde), 0.02 * sde.t_max
    k = float(sde.log_snr(t_end).exp())
    expected = float(0.5 * ((1 / STD.square() + k) / k).log().sum())
    x = denoiser.sample(3000, torch.Generator().manual_seed(0))
    result = elbo(denoiser, x, None, 32, t_end=t_end, prior=own_prior(sde))
    gaps = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1) - result.log_prob
    error = float(gaps.std()) / len(x) ** 0.5
    assert abs(float(gaps.mean()) - expected) < 4.5 * error
    assert error < 0.1


def test_any_density_as_prior_and_the_parts():
    """The terminal density as a function is estimated, with the same mean; the parts add up and are what they say."""
    sde = PATHS["rectified"]
    denoiser = gaussian(sde)
    options = {"steps": 6, "t_end": 0.05}
    closed = elbo(denoiser, repeated(2000), prior=own_prior(sde), **options)
    sampled = elbo(denoiser, repeated(2000), prior=terminal(denoiser), **options)
    torch.testing.assert_close(closed.diffusion, sampled.diffusion)
    difference = sampled.prior - closed.prior
    assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / 2000**0.5 + 1e-12
    for result in (closed, sampled):
        torch.testing.assert_close(result.log_prob, result.reconstruction - result.prior - result.diffusion)
        assert result.nfe == 6
    assert elbo(denoiser, draw(denoiser, 4), 1).std_error is None
