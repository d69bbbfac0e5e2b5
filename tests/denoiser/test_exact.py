"""Closed-form denoisers against scipy's densities, autograd, quadrature of Bayes' rule and 50-digit arithmetic."""

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from reference_paths import PATHS, scales

from sde_diffusion.denoiser import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser

MEANS = torch.tensor([[-1.0, 0.5, 0.0], [0.8, -0.2, 1.5], [0.0, 2.0, -1.0]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.5, 0.1], [0.7, 0.05, 0.4], [0.2, 0.2, 0.9]], dtype=torch.float64)
WEIGHTS = torch.tensor([2.0, 5.0, 1.0])


def mixture(name):
    return GaussianMixtureDenoiser(PATHS[name][0], MEANS, STDS, WEIGHTS)


def states(name, generator_seed=0):
    """Times, and at each one state near a component's mean and one far out in the tail."""
    s = scales(name)
    generator = torch.Generator().manual_seed(generator_seed)
    noise = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    near = s["alpha"] * (MEANS[[0, 1, 2, 0]] + 0.3 * noise) + s["sigma"] * noise.flip(1)
    return torch.cat([s["t"], s["t"]]), torch.cat([near, near + 4 * (s["alpha"] + s["sigma"])])


@pytest.mark.parametrize("name", PATHS)
def test_log_prob_against_scipy(name):
    """scipy's multivariate normals, with covariance alpha^2 diag(std^2) + sigma^2 I by the definition of the path."""
    t, x = states(name)
    found = mixture(name).log_prob(x, t)
    weights = np.array([2, 5, 1]) / 8
    for i, (ti, row) in enumerate(zip(t.tolist(), x.numpy(), strict=True)):
        alpha, sigma = (float(PATHS[name][k](mp.mpf(ti))) for k in (1, 2))
        parts = [
            np.log(w)
            + scipy.stats.multivariate_normal(alpha * m, alpha**2 * np.diag(s**2) + sigma**2 * np.eye(3)).logpdf(row)
            for w, m, s in zip(weights, MEANS.numpy(), STDS.numpy(), strict=True)
        ]
        assert found[i].item() == pytest.approx(scipy.special.logsumexp(parts), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_score_is_the_gradient_of_log_prob(name):
    """Including a point where the responsibilities are all but one zero (far tail): relative to the score's norm."""
    t, x = states(name)
    x.requires_grad_()
    denoiser = mixture(name)
    (gradient,) = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)
    score = denoiser(x.detach(), t).score
    assert ((score - gradient).norm(dim=1) / gradient.norm(dim=1)).max() < 1e-8


@pytest.mark.parametrize("name", PATHS)
def test_float32_states_get_the_score_of_the_closed_form(name):
    """Down to sigma = 1e-6 (sub-VP at t = 1e-5): (x - alpha x0) / sigma^2 from a rounded x0 would be off by 6e4."""
    sde = PATHS[name][0]
    t = max(sde.t_min, 1e-5)
    denoiser = mixture(name)
    x = (MEANS + 0.2 * STDS).float()
    exact = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.log_prob(exact, t).sum(), exact)
    sigma = float(PATHS[name][2](mp.mpf(t)))
    found = denoiser(x, t)
    assert found.score.dtype == found.eps.dtype == found.velocity.dtype == torch.float32
    torch.testing.assert_close(found.score.double(), gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.eps.double(), -sigma * gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t_index", [1, 2, 3])
def test_belief_and_density_by_quadrature_in_one_dimension(name, t_index):
    """p(x_0) N(x_t; alpha x_0, sigma^2) integrated over x_0: its mass is q_t(x_t), its mean E[x_0 | x_t]."""
    sde, _, _, times = PATHS[name]
    t = times[t_index]
    s = {key: value.item() for key, value in scales(name, [t]).items()}
    means, stds, weights = [-1.0, 0.6], [0.2, 0.5], [0.25, 0.75]
    denoiser = GaussianMixtureDenoiser(sde, torch.tensor(means)[:, None], torch.tensor(stds), torch.tensor(weights))

    def joint(x0, x_t):
        data = sum(w * scipy.stats.norm.pdf(x0, m, d) for w, m, d in zip(weights, means, stds, strict=True))
        return data * scipy.stats.norm.pdf(x_t, s["alpha"] * x0, s["sigma"])

    for x0_near in (-1.1, 0.1, 0.9):
        x_t = s["alpha"] * x0_near + 0.3 * s["sigma"]
        # The integrand lives where both factors do; 12 widths of the narrower, split at the likelihood's peak.
        peak, width = x_t / s["alpha"], 12 * s["sigma"] / s["alpha"]
        low, high = max(-7.0, peak - width), min(7.0, peak + width)
        grid = np.linspace(low, high, 40_001)
        values = joint(grid, x_t)
        mass = scipy.integrate.simpson(values, x=grid)
        mean = scipy.integrate.simpson(values * grid, x=grid) / mass
        x = torch.tensor([[x_t]], dtype=torch.float64)
        # float32 inputs above: 0.6 is exact to 2e-8 only.
        assert denoiser(x, t).x0.item() == pytest.approx(mean, rel=1e-6, abs=1e-7)
        assert denoiser.log_prob(x, t).item() == pytest.approx(math.log(mass), abs=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_gaussian_denoiser_is_a_kalman_update(name):
    """Observation y = alpha x_0 + sigma eps of a state N(m, P): gain K = P H^T (H P H^T + R)^-1 by matrix inversion."""
    generator = torch.Generator().manual_seed(9)
    mean, std = torch.randn(2, 2, generator=generator), torch.rand(2, 2, generator=generator) + 0.1
    mean, std = mean.double(), std.double()
    t, x = scales(name)["t"], torch.randn(4, 2, 2, generator=generator, dtype=torch.float64)
    found = GaussianDenoiser(PATHS[name][0], mean, std)(x, t)
    for i, ti in enumerate(t.tolist()):
        alpha, sigma = (float(PATHS[name][k](mp.mpf(ti))) for k in (1, 2))
        p, h, r = np.diag(std.numpy().ravel() ** 2), alpha * np.eye(4), sigma**2 * np.eye(4)
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + r)
        m = mean.numpy().ravel()
        update = m + gain @ (x[i].numpy().ravel() - h @ m)
        np.testing.assert_allclose(found.x0[i].numpy().ravel(), update, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_of_a_gaussian_moves_it_along_its_path(name):
    """The probability flow of N(m, s^2) data keeps the standard score: d/dt (mean_t + z std_t), by differentiation at
    50 digits, is the velocity at mean_t + z std_t."""
    sde, alpha, sigma, times = PATHS[name]
    m, s, z = mp.mpf(0.75), mp.mpf(0.5), mp.mpf(-1.25)

    def trajectory(t):
        return alpha(t) * m + z * mp.sqrt(alpha(t) ** 2 * s**2 + sigma(t) ** 2)

    t = torch.tensor(times[1:], dtype=torch.float64)
    x = torch.tensor([[float(trajectory(mp.mpf(v)))] for v in times[1:]], dtype=torch.float64)
    denoiser = GaussianDenoiser(sde, torch.tensor([0.75]), 0.5)
    expected = torch.tensor([[float(mp.diff(trajectory, mp.mpf(v)))] for v in times[1:]], dtype=torch.float64)
    # alpha' x0 and sigma' eps are much larger than their sum where sigma' is: absolute to their scale.
    scale = (sde.alpha_rate(t).abs() + sde.sigma_rate(t))[:, None]
    assert ((denoiser(x, t).velocity - expected).abs() / scale).max() < 1e-9


def test_samples_of_a_mixture():
    """200,000 draws: weights, means, variances and each component's distribution; 3 + 9 + 9 comparisons and 9
    Kolmogorov-Smirnov tests (components 10 apart, so that none is misassigned), all passed but once in 10,000 seeds."""
    n, level = 200_000, 1e-4 / 30
    z_max = scipy.stats.norm.isf(level / 2)
    means = MEANS + torch.tensor([[-20.0], [0.0], [20.0]])
    denoiser = GaussianMixtureDenoiser(PATHS["vp"][0], means, STDS, WEIGHTS)
    x = denoiser.sample(n, generator=torch.Generator().manual_seed(11)).numpy()
    again = denoiser.sample(n, generator=torch.Generator().manual_seed(11)).numpy()
    assert np.array_equal(x, again)
    component = np.digitize(x[:, 0], [-10, 10])
    for k, share in enumerate([2 / 8, 5 / 8, 1 / 8]):
        points = (x[component == k] - means[k].numpy()) / STDS[k].numpy()
        count = len(points)
        assert abs(count - n * share) < z_max * math.sqrt(n * share * (1 - share))
        assert np.abs(points.mean(0)).max() < z_max / math.sqrt(count)
        assert np.abs(points.var(0) - 1).max() < z_max * math.sqrt(2 / count)
        for j in range(3):
            assert scipy.stats.kstest(points[:, j], "norm").pvalue > level


def test_shapes_of_stds_and_weights():
    """A number, one for each component, one for each value: each equals its written-out form."""
    sde = PATHS["vp"][0]
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def log_prob(stds, weights=None):
        return GaussianMixtureDenoiser(sde, MEANS, stds, weights).log_prob(x, 0.3)

    by_component = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(log_prob(0.5), log_prob(torch.full((3, 3), 0.5, dtype=torch.float64)))
    torch.testing.assert_close(log_prob(by_component), log_prob(by_component[:, None].expand(3, 3)))
    torch.testing.assert_close(log_prob(STDS, torch.tensor([7.0, 7.0, 7.0])), log_prob(STDS))
    assert bool((log_prob(STDS, WEIGHTS) != log_prob(STDS)).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda sde: GaussianMixtureDenoiser(sde, torch.zeros(3), 1.0), r"\[K, \*\].*got \[3\]"),
        (lambda sde: GaussianMixtureDenoiser(sde, MEANS, torch.ones(5)), r"broadcast to.*\[3, 3\]; got shape \[5\]"),
        (lambda sde: GaussianMixtureDenoiser(sde, MEANS, -1.0), "must not be negative"),
        (lambda sde: GaussianMixtureDenoiser(sde, MEANS, 1.0, torch.ones(2)), "3 positive numbers"),
        (lambda sde: GaussianMixtureDenoiser(sde, MEANS, 1.0, torch.tensor([1.0, 0.0, 1.0])), "3 positive numbers"),
        (lambda sde: GaussianDenoiser(sde, torch.tensor(1.0), 1.0), "at least one dimension"),
        (lambda sde: GaussianDenoiser(sde, torch.ones(2), torch.ones(3)), r"broadcast to.*\[2\]; got shape \[3\]"),
        (lambda sde: EmpiricalDenoiser(sde, torch.zeros(0, 2)), r"N >= 1; got \[0, 2\]"),
        (lambda sde: EmpiricalDenoiser(sde, torch.zeros(4)), r"\[N, \*\].*got \[4\]"),
        (lambda sde: EmpiricalDenoiser(sde, torch.zeros(4, 2), chunk=0), "chunk must be an integer of at least 1"),
    ],
)
def test_misfits_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(PATHS["vp"][0])
