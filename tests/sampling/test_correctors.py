"""Langevin correctors: their step sizes by the published rules, what they leave of the marginal, no coupled samples."""

import dataclasses
import math

import pytest
import torch
from order_cases import SMOOTH, options, walk
from sampling_cases import SIX, gaussian
from weak_cases import MEAN, affine, variance_at

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.sampling import Noise, PredictorCorrector
from sde_diffusion.sampling.predictor_corrector import PREDICTORS
from sde_diffusion.sde import VESDE, VPSDE, SubVPSDE, UniformTime


@pytest.mark.parametrize("path", [VPSDE(), SubVPSDE(), VESDE()])
def test_langevin_corrector(path):
    """eps = 2 a (snr |z| / |score|)^2 with norms over the sample, a = 1 - beta of the step, and 1 on VE; on images."""
    snr, t_end = 0.16, 0.7 if path.t_max == 1 else 10.0
    generator = torch.Generator().manual_seed(1)
    denoiser = GaussianMixtureDenoiser(path, torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=generator), 0.1)
    latent = torch.randn(7, 3, 5, 6, dtype=torch.float64, generator=generator)
    latent *= float(path.sigma(path.t_max)) * torch.linspace(1.5, 4, 7, dtype=torch.float64).reshape(7, 1, 1, 1)
    sampler = PredictorCorrector("none", "langevin", 1, snr, denoise=False, t_end=t_end)
    ours = sampler(denoiser, latent.shape, latent=latent, dtype=torch.float64)
    z = Noise(range(7), (3, 5, 6), dtype=torch.float64).normal(1)
    score = denoiser(latent, path.t_max).score
    share = math.exp(-(10.05 - (0.1 * t_end + 9.95 * t_end**2))) if isinstance(path, VPSDE | SubVPSDE) else 1.0
    grow = float(path.alpha(t_end) / path.alpha(path.t_max))  # then on to t_end, with x / alpha as it is
    for k in range(7):
        eps = 2 * share * (snr * float(z[k].norm()) / float(score[k].norm())) ** 2
        want = grow * (latent[k] + eps * score[k] + math.sqrt(2 * eps) * z[k])
        assert (ours.x[k] - want).abs().max() < 1e-9 * grow * latent.abs().max()


def test_langevin_corrector_where_the_score_vanishes():
    """At a mode the norm counts as that of unit data: eps = 2 a snr^2 |z|^2 (alpha^2 + sigma^2) / D, not infinity."""
    sde, snr, s = SIX["ve"], 0.2, 0.9
    denoiser = gaussian(sde)
    latent = denoiser.means.expand(4, 3).clone()
    sampler = PredictorCorrector("none", "langevin", 1, snr, denoise=False, t_end=s)
    ours = sampler(denoiser, (4, 3), latent=latent, dtype=torch.float64)
    z = Noise(range(4), (3,), dtype=torch.float64).normal(1)
    eps = 2 * snr**2 * z.square().sum(1, keepdim=True) * (1 + 50.0**2) / 3
    assert ((ours.x - latent) / ((2 * eps).sqrt() * z) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("name", SIX)
def test_one_annealed_step_keeps_the_marginal_to_second_order(name):
    """Variance v of Gaussian data after one step of size eps = 2 a (snr sigma)^2: v + eps^2 / v, mean unchanged."""
    sde, s = SIX[name], 0.9 * SIX[name].t_max
    v = variance_at(sde, sde.t_max)
    for snr in (0.2, 0.1, 0.05):
        sampler = PredictorCorrector("none", "annealed_langevin", 1, snr, grid=UniformTime(), denoise=False, t_end=s)
        offset, from_x, from_noise = affine(sampler, sde, s, 4)
        shrink = float(sde.alpha(sde.t_max)) / float(sde.alpha(s))
        eps = 2 * shrink**2 * (snr * float(sde.sigma(sde.t_max))) ** 2
        # The walk ends at s: brought there, as it was at t_max.
        variance = shrink**2 * float(from_x**2 * v + from_noise.square().sum())
        assert variance == pytest.approx(v + eps**2 / v, rel=1e-12)
        mean = 0.7 * float(sde.alpha(sde.t_max))
        assert shrink * float(offset + from_x * mean) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("predictor", sorted(set(PREDICTORS) - {"none"}))
def test_correctors_mend_what_predictors_leave(predictor, name):
    """After 100 Langevin steps at each time nothing is left of the predictors' errors but the very last step's.

    Exactly, on Gaussian data: at the last time the variance is v / (1 - eps / 2 v), and one mean-only step follows.
    """
    sde, t_end = walk(name, noisy=-2.0, clean=0.0)
    steps, snr = 4, 0.2
    sampler = PredictorCorrector(predictor, "annealed_langevin", steps, snr, 100, **options(t_end))
    _, from_x, from_noise = affine(sampler, sde, t_end, 101 * steps + 2)
    t = float(SMOOTH.times(sde, steps + 1, t_end)[-2])
    v = variance_at(sde, t)
    eps = 2 * (float(sde.alpha(t)) / float(sde.alpha(t_end)) * snr * float(sde.sigma(t))) ** 2
    last = PredictorCorrector(predictor, "none", 1, **options(t_end))
    _, shrink, _ = affine(last, dataclasses.replace(sde, t_max=t), t_end, 4)
    variance = from_x**2 * variance_at(sde, sde.t_max) + from_noise.square().sum()
    assert float(variance) == pytest.approx(float(shrink**2) * v / (1 - eps / (2 * v)), rel=1e-3)


@pytest.mark.parametrize("name", SIX)
def test_the_fixed_point_of_many_correctors(name):
    """Without a predictor, 400 steps of one size at (nearly) one time: variance v / (1 - eps / 2 v), by hand."""
    sde = SIX[name]
    t, snr = 0.1 * sde.t_max, 0.3
    path = dataclasses.replace(sde, t_max=t, t_min=0.0)
    sampler = PredictorCorrector("none", "annealed_langevin", 1, snr, 400, UniformTime(), False, t * (1 - 1e-9))
    _, from_x, from_noise = affine(sampler, path, t * (1 - 1e-9), 402)
    v = variance_at(sde, t)
    eps = 2 * (snr * float(sde.sigma(t))) ** 2
    variance = float(from_x**2 * v + from_noise.square().sum())
    stuck = (1 - eps / v) ** 800  # of the start's variance
    fixed = v / (1 - eps / (2 * v))
    assert variance == pytest.approx(fixed + stuck * (v - fixed), rel=1e-7)


@pytest.mark.parametrize("name", SIX)
def test_correctors_alone_keep_the_mean(name):
    """Without a predictor x / alpha stays from one time to the next, and with it the mean, exactly for Gaussian data.

    With x kept in its place the mean of data of std 0.1 was off by 0.6 of it on the rectified path.
    """
    sde = SIX[name]
    sampler = PredictorCorrector("none", "annealed_langevin", 100, 0.3, denoise=False)
    offset, from_x, _ = affine(sampler, sde, sde.t_min, 202)
    mean = float(offset + from_x * sde.alpha(sde.t_max) * MEAN)
    assert mean == pytest.approx(MEAN * float(sde.alpha(sde.t_min)), abs=1e-3)


def test_annealed_langevin_in_one_dimension():
    """The standard deviation of 4000 samples: within 3%; with `langevin`, as its documentation says, over twice it."""
    denoiser = GaussianDenoiser(SIX["vp"], torch.zeros(1), 0.3)
    wide, fine = (
        float(PredictorCorrector("reverse_diffusion", corrector, 300)(denoiser, (4000, 1)).x.std()) / 0.3
        for corrector in ("langevin", "annealed_langevin")
    )
    assert abs(fine - 1) < 0.03
    assert 2.2 < wide < 2.7


def test_a_sample_does_not_depend_on_its_neighbours():
    """Norms are each sample's own: alone, beside others, and beside a wild one it is the same."""
    sde = SIX["subvp"]
    sampler = PredictorCorrector("reverse_diffusion", "langevin", 20, 0.16, 2)
    latent = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latent[5] *= 50
    denoiser = GaussianMixtureDenoiser(sde, torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)), 0.2)
    together = sampler(denoiser, latent.shape, seeds=range(6), latent=latent, dtype=torch.float64).x
    for k in (0, 3):
        alone = sampler(denoiser, (1, 1, 4, 4), seeds=[k], latent=latent[k : k + 1], dtype=torch.float64).x
        assert (alone[0] - together[k]).abs().max() < 1e-12
