"""Guided walks of Gaussian data against closed forms: the flow's, the reverse SDE's, and neither is the tilt."""

import math

import pytest
import torch
from guidance_cases import S_C, S_U, Classes, M, by_classifier, gaussians, guided_gaussian, tilt
from reference_paths import PATHS
from scipy.integrate import solve_ivp

from sde_diffusion import (
    AncestralSampler,
    ClassifierFreeGuidance,
    DPMSolver,
    GaussianDenoiser,
    GaussianPrior,
    ODESampler,
    PredictorCorrector,
    UniformLogSNR,
    log_likelihood,
)

SDES = {name: case[0] for name, case in PATHS.items()}
W = 3.0


def guided(sde, size=1, **options):
    return ClassifierFreeGuidance(gaussians(sde, size), W, {"label": 1}, **options)


def moments_of_the_flow(sampler, denoiser):
    """Mean and std of samples: a deterministic walk is affine here, so that two latents say all."""
    sde = denoiser.sde
    start = float(sde.sigma(sde.t_max)) * torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = sampler(denoiser, (2, 1), latent=start, dtype=torch.float64, label=0)
    low, high = found.x.flatten().tolist()
    return (low + high) / 2, (high - low) / 2, found.nfe


@pytest.mark.parametrize("eta", [0, 1])
def test_the_closed_forms_solve_the_equations_of_the_moments(eta):
    """In v = log r: dm/dv = (1 + eta) r^2 (a m - b) and dV/dv = 2 (1 + eta) r^2 a V - 2 eta r^2, from N(0, R^2)."""
    sde = SDES["edm"]

    def slope(v, moments):
        r2 = math.exp(2 * v)
        a, b = W / (S_C**2 + r2) + (1 - W) / (S_U**2 + r2), W * M / (S_C**2 + r2)
        mean, variance = moments
        return [(1 + eta) * r2 * (a * mean - b), 2 * r2 * ((1 + eta) * a * variance - eta)]

    ends = math.log(80), math.log(0.002)
    mean, variance = solve_ivp(slope, ends, [0, 80**2], method="DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
    assert guided_gaussian(sde, W, eta) == pytest.approx((mean, math.sqrt(variance)), rel=1e-4)  # x0 of r = 0.002
    if not eta:
        assert math.sqrt(variance) == pytest.approx(S_C**W * S_U ** (1 - W), rel=1e-3)


@pytest.mark.parametrize("path", SDES)
def test_a_hundred_passes_of_dpm_solver(path):
    """Within 1.5% of the flow's mean and std, both a fifth and more off the tilt's."""
    mean, std, nfe = moments_of_the_flow(DPMSolver(50, order=3), guided(SDES[path]))
    assert nfe == 100
    assert (mean, std) == pytest.approx(guided_gaussian(SDES[path], W, 0), rel=0.015)
    for found, tilted in zip((mean, std), tilt(W), strict=True):
        assert abs(found / tilted - 1) > 0.2


@pytest.mark.parametrize("path", [p if p == "vp" else pytest.param(p, marks=pytest.mark.slow) for p in SDES])
def test_an_adaptive_solver(path):
    mean, std, _ = moments_of_the_flow(ODESampler(rtol=1e-6, atol=1e-6), guided(SDES[path]))
    assert (mean, std) == pytest.approx(guided_gaussian(SDES[path], W, 0), rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("path", SDES)
def test_ddpm(path):
    """A thousand steps leave the std narrow by 0.6% to 1.3%; of 40,000 numbers its standard error is 0.35%."""
    x = AncestralSampler(1000, eta=1.0, grid=UniformLogSNR())(
        guided(SDES[path], 10_000), (4, 10_000), dtype=torch.float64, label=0
    ).x
    assert (float(x.mean()), float(x.std())) == pytest.approx(guided_gaussian(SDES[path], W, 1), rel=0.02)
    assert abs(guided_gaussian(SDES[path], W, 1)[1] / guided_gaussian(SDES[path], W, 0)[1] - 1) > 0.5


@pytest.mark.parametrize("guide", [guided, by_classifier])
def test_a_likelihood_is_the_density_of_the_guided_flow(guide):
    """The flow maps N(0, sigma_T^2) to a Gaussian, whose density at t_end log_likelihood gives."""
    sde = SDES["vp"]
    denoiser = guide(sde)
    x = torch.tensor([[1.3], [1.5], [1.7]], dtype=torch.float64)
    found = log_likelihood(denoiser, x, 1e-7, 1e-7, "exact", label=0, prior=GaussianPrior.standard(sde))
    mean, std, _ = moments_of_the_flow(ODESampler(rtol=1e-8, atol=1e-8, denoise=False), guided(sde))
    want = torch.distributions.Normal(mean, std).log_prob(x).squeeze(1)
    torch.testing.assert_close(found.log_prob, want, rtol=1e-5, atol=1e-5)
    assert (mean, std) == pytest.approx(guided_gaussian(sde, W, 0), rel=1e-3)
    tilted = torch.distributions.Normal(*tilt(W)).log_prob(x).squeeze(1)
    assert (found.log_prob - tilted).abs().min() > 0.2
    assert bool((found.passes % 2 == 0).all()) or guide is by_classifier


def test_guidance_by_the_exact_classifier_has_the_same_flow():
    sde = SDES["rectified"]
    mean, std, nfe = moments_of_the_flow(DPMSolver(50, order=3), by_classifier(sde))
    assert nfe == 50
    assert (mean, std) == pytest.approx(guided_gaussian(sde, W, 0), rel=0.015)


@pytest.mark.parametrize(("away", "std"), [(None, 1 / 0.7), (0.5, 1.4 ** (1 - W + 0.5) * 0.7**-0.5)])
def test_a_negative_condition(away, std):
    """Of Gaussians around 0 the flow has std s_c^w s_u^(1-w+v) s_n^(-v); v = w - 1 leaves the unconditional one out.

    With w = 2, s_n = 0.7 < s_c = 1 no tilt exists: its precision would be 2 - 1 / 0.7^2 < 0.
    """
    sde, zero = SDES["vp"], torch.zeros(1, dtype=torch.float64)
    beliefs = Classes(*(GaussianDenoiser(sde, zero, s) for s in (1.0, 0.7, 1.4)))
    w = 2.0 if away is None else W
    denoiser = ClassifierFreeGuidance(beliefs, w, {"label": 2}, negative={"label": 1}, negative_scale=away)
    mean, found, nfe = moments_of_the_flow(DPMSolver(50, order=3), denoiser)
    assert (mean, found) == pytest.approx((0, std), rel=0.015, abs=1e-9)
    assert nfe == (100 if away is None else 150)


def test_langevin_steps_bring_samples_to_the_tilt():
    """W2 to the tilt at w = 3, in closed form for Gaussians: 0.35 from the flow, less than 0.04 after 602 passes.

    The standard errors of mean and std are 0.006.
    """
    sampler = PredictorCorrector("probability_flow", "annealed_langevin", 50, 0.7, 5, UniformLogSNR())
    out = sampler(guided(SDES["vp"], 1500), (2, 1500), seeds=range(2), dtype=torch.float64, label=0)
    assert math.dist((float(out.x.mean()), float(out.x.std())), tilt(W)) < 0.04
    assert math.dist(guided_gaussian(SDES["vp"], W, 0), tilt(W)) == pytest.approx(0.354, abs=1e-3)
    assert out.nfe == 2 * 301
