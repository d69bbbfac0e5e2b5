"""log_likelihood against the exact marginal log-density of closed-form data, sample by sample, on every path."""

import math

import pytest
import torch
from density_cases import EACH_PATH, MEAN, PATHS, STD, bits, digits, draw, flat, gaussian, moments, terminal
from torch.distributions import Independent, Normal

from sde_diffusion.density import GaussianPrior, log_likelihood
from sde_diffusion.sampling import NoiseToSignal, ODESampler, State, UnitVariance
from sde_diffusion.sampling.ode_methods import METHODS
from sde_diffusion.sde import (
    BandLogSNR,
    CosineVPSDE,
    KarrasRho,
    QuadraticTime,
    RectifiedFlow,
    UniformLogSNR,
    UniformTime,
)


def worst(denoiser, x, **options) -> tuple[float, int]:
    """The largest error of a sample in bits per dimension, the terminal density being exact, and the passes."""
    options = {"trace": "exact", "prior": terminal(denoiser), **options}
    result = log_likelihood(denoiser, x, **options)
    t = options.get("t_end", denoiser.sde.t_min)
    return bits(result.log_prob - denoiser.log_prob(x, t), x[0].numel()), result.nfe


def shares(denoiser, result) -> tuple[float, float]:
    """What N(0, sigma_T^2 I), and the Gaussian of the marginal's moments, are off by at the latents."""
    sde, x = denoiser.sde, result.latent
    exact = denoiser.log_prob(x, sde.t_max)
    priors = GaussianPrior.standard(sde), GaussianPrior.matched(sde, *moments(denoiser))
    return tuple(bits(prior(x) - exact, x[0].numel()) for prior in priors)


def check_digits(name: str, n: int, tight: int, most: int) -> None:
    denoiser = digits(PATHS[name])
    x = draw(denoiser, n)
    result = log_likelihood(denoiser, x, trace="exact", prior=terminal(denoiser))
    assert bits(result.log_prob - denoiser.log_prob(x, denoiser.sde.t_min), 64) < 1e-3
    assert result.nfe < most
    standard, matched = shares(denoiser, result)
    assert matched < standard / 3
    assert worst(denoiser, x[:tight], rtol=1e-7, atol=1e-7)[0] < 1e-5


@pytest.mark.parametrize("name", EACH_PATH)
def test_every_sample_of_the_digits_mixture(name):
    """Measured with 40 items: 3e-5 to 5e-5 in 48 to 51 passes; the shares of the standard prior are 1e-4 (cosine) to
    4e-3 (VE), of the matched one 4e-8 to 6e-5.
    """
    check_digits(name, 8, 2, most=58)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_many_samples_of_the_digits_mixture(name):
    """Each takes its own steps: 256 cost as many passes an item as eight."""
    check_digits(name, 256, 256, most=58)


@pytest.mark.parametrize("name", EACH_PATH)
def test_every_sample_of_two_dimensions(name):
    denoiser = flat(PATHS[name])
    x = draw(denoiser, 64)
    result = log_likelihood(denoiser, x, trace="exact", prior=terminal(denoiser))
    assert bits(result.log_prob - denoiser.log_prob(x, denoiser.sde.t_min), 2) < 1e-3
    assert worst(denoiser, x, rtol=1e-7, atol=1e-7)[0] < 1e-5
    standard, matched = shares(denoiser, result)
    assert matched < standard / 3


def test_the_priors_share_is_reported_and_added():
    """By torch.distributions, and whatever the prior, the rest is the same."""
    sde = PATHS["ve"]
    denoiser = gaussian(sde)
    x = draw(denoiser, 8)
    result = log_likelihood(denoiser, x, trace="exact")
    standard = Independent(Normal(torch.zeros(3), float(sde.sigma(sde.t_max))), 1)
    torch.testing.assert_close(result.prior, standard.log_prob(result.latent))
    own = Independent(Normal(torch.tensor([1.0, 2.0, 3.0]).double(), 60.0), 1)
    other = log_likelihood(denoiser, x, trace="exact", prior=own.log_prob)
    torch.testing.assert_close(other.prior, own.log_prob(other.latent))
    torch.testing.assert_close(result.log_prob - result.prior, other.log_prob - other.prior, rtol=0, atol=1e-12)
    assert result.std_error is None


ENDS = {"vp": 1e-2, "ve": 0.3, "rectified": 0.05}
"""Before t_min and after it."""

COORDINATES = [State(), NoiseToSignal(), UnitVariance(0.2), UnitVariance(2.0)]
GRIDS = [UniformTime(), QuadraticTime(), UniformLogSNR(), KarrasRho(), BandLogSNR(0.01, 5.0)]


@pytest.mark.parametrize(
    ("coordinate", "grid", "name"),
    [  # quick: each pair on one path, each path with every coordinate and every grid
        pytest.param(coordinate, grid, name, marks=[pytest.mark.slow] if (i + j + k) % 3 else [])
        for i, coordinate in enumerate(COORDINATES)
        for j, grid in enumerate(GRIDS)
        for k, name in enumerate(ENDS)
    ],
    ids=str,
)
def test_every_coordinate_and_grid(coordinate, grid, name):
    denoiser, t_end = flat(PATHS[name]), ENDS[name]
    x = draw(denoiser, 8, t_end)
    options = {"coordinate": coordinate, "grid": grid, "t_end": t_end, "rtol": 1e-6, "atol": 1e-6}
    assert worst(denoiser, x, **options)[0] < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    """Those that take steps: in 100 (euler's error falls with 1 / steps)."""
    denoiser = flat(PATHS["cosine"])
    x = draw(denoiser, 3, 0.02)
    if METHODS[method].adaptive:
        rough = method in ("fehlberg2", "adaptive_heun", "bosh3")
        tolerance, most = (1e-4, 3e-2) if rough else (1e-6, 1e-3)
        assert worst(denoiser, x, rtol=tolerance, atol=tolerance, method=method, t_end=0.02)[0] < most
        return
    error = worst(denoiser, x, method=method, steps=100, t_end=0.02)[0]
    assert error < (0.1 if method == "euler" else 1e-3)
    if method == "euler":
        assert worst(denoiser, x, method=method, steps=200, t_end=0.02)[0] < 0.6 * error


def test_the_order_of_adams():
    denoiser = flat(PATHS["edm"])
    x = draw(denoiser, 6)
    error, third = worst(denoiser, x, rtol=1e-7, atol=1e-7, options={"order": 3})
    assert error < 1e-5
    assert worst(denoiser, x, rtol=1e-7, atol=1e-7)[1] < 0.8 * third


@pytest.mark.parametrize("sde", [RectifiedFlow(t_max=1.0), CosineVPSDE(-40.0, 15.0)], ids=["rectified", "cosine"])
def test_paths_that_end_without_signal(sde):
    """There the standard prior is exact."""
    denoiser = flat(sde)
    x = draw(denoiser, 16)
    assert worst(denoiser, x, prior=None)[0] < 1e-3
    assert worst(denoiser, x, prior=None, rtol=1e-7, atol=1e-7)[0] < 1e-5


@pytest.mark.parametrize("name", EACH_PATH)
def test_float32_state(name):
    """At a tolerance that float32 can meet."""
    denoiser = flat(PATHS[name])
    x = draw(denoiser, 32)
    result = log_likelihood(denoiser, x, 1e-4, 1e-4, trace="exact", prior=terminal(denoiser), dtype=torch.float32)
    assert result.latent.dtype == torch.float32
    assert result.log_prob.dtype == torch.float64
    assert bits(result.log_prob - denoiser.log_prob(x, denoiser.sde.t_min), 2) < 5e-3


@pytest.mark.parametrize("name", EACH_PATH)
def test_the_latent_goes_back_to_x(name):
    """Down the sampler's flow; and it is where the closed-form flow of Gaussian data, quantile to quantile, ends."""
    sde = PATHS[name]
    denoiser = gaussian(sde)
    x = draw(denoiser, 6)
    result = log_likelihood(denoiser, x, 1e-9, 1e-9)
    spread = [((sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2).sqrt() for t in (sde.t_min, sde.t_max)]
    quantiles = (x - sde.alpha(sde.t_min) * MEAN) / spread[0]
    torch.testing.assert_close(result.latent, sde.alpha(sde.t_max) * MEAN + spread[1] * quantiles, rtol=1e-6, atol=1e-7)
    back = ODESampler("dopri5", 1e-9, 1e-9, denoise=False)
    samples = back(denoiser, x.shape, latent=result.latent, dtype=torch.float64)
    assert (samples.x - x).abs().max() < 1e-5


@pytest.mark.parametrize("trace", ["hutchinson", "gaussian", "hutch++"])
def test_estimates_have_the_exact_mean(trace):
    """Three samples of the digits' mixture, 60 seeds each, within 4.5 standard errors (a false alarm once in 50 000
    times); a single estimate is off by about its spread.
    """
    denoiser = digits(PATHS["cosine"])
    x, n = draw(denoiser, 3), 60
    exact = denoiser.log_prob(x, denoiser.sde.t_min)
    many = log_likelihood(
        denoiser, x.repeat_interleave(n, 0), trace=trace, probes=3, prior=terminal(denoiser), rtol=1e-4, atol=1e-4
    )
    estimates = many.log_prob.reshape(3, n)
    spread = estimates.std(1)
    assert bool(((estimates.mean(1) - exact).abs() < 4.5 * spread / math.sqrt(n)).all())
    assert bool((spread > 0.1).all())
    if trace == "hutch++":
        assert many.std_error is None
    else:  # the standard error that is given is the spread over seeds, as far as 60 of them tell
        assert torch.allclose(many.std_error.reshape(3, n).square().mean(1).sqrt(), spread, rtol=0.35)
