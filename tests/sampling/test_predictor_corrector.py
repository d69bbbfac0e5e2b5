"""Predictors by their published formulas, correctors by theirs, who comes when, and what a sample may depend on."""

import itertools
import math

import pytest
import torch
from order_cases import options, walk
from sampling_cases import SIX, Recording, mixture, mixture_moments
from weak_cases import affine, weak_errors

from sde_diffusion.sampling import Noise, PredictorCorrector
from sde_diffusion.sampling.correctors import CORRECTORS, Langevin, NoCorrector
from sde_diffusion.sampling.predictor_corrector import PREDICTORS, Ancestral, ProbabilityFlow
from sde_diffusion.sde import VESDE, VPSDE, BetaTable, GeometricLevels, SubVPSDE, UniformTime

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def table_score(denoiser, x, variance, scale):
    """The mixture's score at any scale and noise, from its components by hand."""
    spread = (scale * denoiser.stds) ** 2 + variance
    offset = x.unsqueeze(1) - scale * denoiser.means
    p = (denoiser.log_weights - 0.5 * (offset**2 / spread + spread.log()).sum(2)).softmax(1)
    return -(p.unsqueeze(2) * offset / spread).sum(1)


def vp_step(name, x, score, i, alpha_bar):
    """Mean and std of x_{i-1} given x_i (numbers from 1) in DDPM's table, as printed."""
    beta = BETAS[i - 1]
    here, before = alpha_bar[i - 1], alpha_bar[i - 2] if i > 1 else torch.ones((), dtype=torch.float64)
    if name == "reverse_diffusion":  # Song et al. 2021, algorithm 3
        return (2 - (1 - beta).sqrt()) * x + beta * score, beta.sqrt()
    if name == "ancestral":  # Song et al. 2021, equation 4, with Ho et al. 2020's smaller variance
        return (x + beta * score) / (1 - beta).sqrt(), (beta * (1 - before) / (1 - here)).sqrt()
    eps = -(1 - here).sqrt() * score  # probability_flow: Song et al. 2021, "DDIM", equation 12
    return before.sqrt() * (x - (1 - here).sqrt() * eps) / here.sqrt() + (1 - before).sqrt() * eps, 0.0


@pytest.mark.parametrize("name", ["reverse_diffusion", "ancestral", "probability_flow"])
def test_predictors_on_the_beta_table(name):
    """From step 1000 down to step 1, with the published formulas on beta and alpha-bar alone."""
    sde = VPSDE(t_max=float(VPSDE(t_max=1.01).time(BetaTable(1000).log_snr()[-1])))
    denoiser = mixture(sde)
    sampler = PredictorCorrector(name, "none", 999, grid=BetaTable(1000), denoise=False)
    ours = sampler(denoiser, (5, 2), dtype=torch.float64)
    alpha_bar = (1 - BETAS).cumprod(0)
    noise = Noise(range(5), (2,), dtype=torch.float64)
    x = (1 - alpha_bar[-1]).sqrt() * noise.normal(0)
    for k, i in enumerate(range(1000, 1, -1)):
        score = table_score(denoiser, x, 1 - alpha_bar[i - 1], alpha_bar[i - 1].sqrt())
        x, std = vp_step(name, x, score, i, alpha_bar)
        if i > 2:  # the last mean is the result
            x = x + std * noise.normal(1 + 2 * k + 1)
    assert (ours.x - x).abs().max() < 1e-7
    assert ours.nfe == 999


@pytest.mark.parametrize("name", ["reverse_diffusion", "ancestral", "probability_flow"])
def test_predictors_on_geometric_levels(name):
    """VE: x + (sigma_i^2 - sigma_j^2) score, and the published noises (Song et al. 2021, algorithm 2, equation 47);
    DDIM's x + (sigma_i - sigma_j) sigma_i score.
    """
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    denoiser, levels = mixture(sde), 40
    grid = GeometricLevels(levels, 0.01, 50.0)
    ours = PredictorCorrector(name, "none", levels - 1, grid=grid, denoise=False)(denoiser, (5, 2), dtype=torch.float64)
    noise = Noise(range(5), (2,), dtype=torch.float64)
    sigmas = torch.logspace(math.log10(50), -2, levels, dtype=torch.float64)
    x = 50 * noise.normal(0)
    for k, (sigma, ahead) in enumerate(itertools.pairwise(sigmas)):
        fresh = sigma**2 - ahead**2
        score = table_score(denoiser, x, sigma**2, 1.0)
        x = x + (sigma * (sigma - ahead) if name == "probability_flow" else fresh) * score
        std = {"reverse_diffusion": fresh.sqrt(), "ancestral": ahead * fresh.sqrt() / sigma, "probability_flow": 0.0}
        if k < levels - 2:
            x = x + std[name] * noise.normal(1 + 2 * k + 1)
    assert (ours.x - x).abs().max() < 1e-9


@pytest.mark.parametrize("path", [VPSDE(), SubVPSDE()])
def test_euler_maruyama(path):
    """x + (beta/2 x + g^2 score) dt + g sqrt(dt) z in uniform t; g^2 = beta, on sub-VP beta (1 - e^(-2 B))."""
    denoiser, steps, t_end = mixture(path), 30, 0.05
    sampler = PredictorCorrector("euler_maruyama", "none", steps, grid=UniformTime(), denoise=False, t_end=t_end)
    ours = sampler(denoiser, (5, 2), dtype=torch.float64)
    noise = Noise(range(5), (2,), dtype=torch.float64)
    dt = (1 - t_end) / steps
    grows = isinstance(path, SubVPSDE)
    sigma_of = (lambda b: 1 - math.exp(-b)) if grows else (lambda b: math.sqrt(1 - math.exp(-b)))
    x = sigma_of(10.05) * noise.normal(0)
    for k in range(steps):
        t = 1 - k * dt
        beta, b = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
        g2 = beta * (1 - math.exp(-2 * b)) if grows else beta
        score = table_score(denoiser, x, sigma_of(b) ** 2, math.exp(-b / 2))
        x = x + (0.5 * beta * x + g2 * score) * dt
        if k < steps - 1:
            x = x + math.sqrt(g2 * dt) * noise.normal(1 + 2 * k + 1)
    assert (ours.x - x).abs().max() < 1e-9


@pytest.mark.parametrize("name", SIX)
def test_probability_flow_from_the_prior(name):
    """1000 steps leave the variance of Gaussian data within 1%, also where alpha goes to zero at t_max.

    With the discretisation (2 - scale) x + std^2 score / 2 it was 2.73 times too large on cosine, 1.92 on rectified.
    """
    sde = SIX[name]
    sampler = PredictorCorrector("probability_flow", "none", 1000, denoise=False)
    mean, variance = weak_errors(sampler, sde, sde.t_min, 2)
    assert abs(mean) < 1e-4
    assert abs(variance) < 0.01


def test_order_counts_and_endings():
    """At each time the correctors, then the predictor; nfe as stated; the walk's last step brings no noise."""
    sde, steps = SIX["vp"], 6
    grid = torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64)
    for predictor in PREDICTORS:
        for corrector in CORRECTORS if predictor != "none" else set(CORRECTORS) - {"none"}:
            for each in (1, 3):
                for denoise in (True, False):
                    denoiser = Recording(mixture(sde))
                    sampler = PredictorCorrector(
                        predictor, corrector, steps, 0.1, each, UniformTime(), denoise=denoise, t_end=0.1
                    )
                    out = sampler(denoiser, (3, 2), dtype=torch.float64)
                    passes = (predictor != "none") + (0 if corrector == "none" else each)
                    want = [*grid[:-1].repeat_interleave(passes).tolist(), *[0.1] * denoise]
                    asked = denoiser.times
                    if corrector == "leimkuhler_matthews":  # none at t_max, then a little before the grid's times
                        want = want[each:]
                        start = int(predictor != "none")
                        for k in range(start, len(want) - denoise):
                            if (k - start) % (start + each) < each:
                                assert want[k] < asked[k] < want[k] + 0.05
                                want[k] = asked[k]
                    assert out.nfe == len(denoiser.calls) == len(want)
                    assert asked == pytest.approx(want, abs=1e-12)
                    if denoise:
                        assert torch.equal(out.x, mixture(sde)(*denoiser.calls[-1][:2]).x0)


def test_a_step_of_nothing_is_refused():
    """Neither a predictor nor a corrector; and a predictor of a form that predictions do not have."""

    class Noisy(PREDICTORS["ancestral"]):
        prediction = "noise"

    with pytest.raises(ValueError, match="no step would be made"):
        PredictorCorrector("none", "none")
    with pytest.raises(ValueError, match="one of x0, eps, score, velocity; got 'noise'"):
        PredictorCorrector(Noisy())


def test_correctors_come_before_the_predictor():
    """The state of the last pass at a time is the corrected one: what the predictor moves from."""
    sde = SIX["vp"]
    denoiser = Recording(mixture(sde))
    sampler = PredictorCorrector("ancestral", "annealed_langevin", 3, 0.2, grid=UniformTime(), denoise=False, t_end=0.1)
    out = sampler(denoiser, (3, 2), dtype=torch.float64)
    noise = Noise(range(3), (2,), dtype=torch.float64)
    for k in range(3):
        (x, t, _), (corrected, same, _) = denoiser.calls[2 * k : 2 * k + 2]
        s = 1 - 0.3 * (k + 1)
        assert t == same == pytest.approx(1 - 0.3 * k)
        share = (float(sde.alpha(t)) / float(sde.alpha(s))) ** 2
        eps = 2 * share * (0.2 * float(sde.sigma(t))) ** 2
        want = x + eps * mixture(sde)(x, t).score + math.sqrt(2 * eps) * noise.normal(1 + 2 * k)
        assert (corrected - want).abs().max() < 1e-12
        mean, std = sde.posterior(corrected, mixture(sde)(corrected, t).x0, s, t)
        after = out.x if k == 2 else denoiser.calls[2 * k + 2][0]
        z = 0.0 if k == 2 else noise.normal(2 + 2 * k)
        assert (after - mean - std * z).abs().max() < 1e-12


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral", "euler_maruyama"])
def test_the_last_step_returns_the_mean(predictor):
    """In the affine map of a Gaussian walk every predictor draw has a coefficient but the last."""
    sde, t_end = walk("subvp")
    sampler = PredictorCorrector(predictor, "none", 5, **options(t_end))
    _, _, from_noise = affine(sampler, sde, t_end, 12)
    predictors = from_noise[1:10:2]  # even draws are the (absent) corrector's
    assert (predictors[:-1] != 0).all()
    assert predictors[-1] == 0


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("corrector", ["none", "annealed_langevin", "leimkuhler_matthews"])
def test_marginals_of_a_mixture(corrector, name):
    """100 ancestral steps: mean and second moments of 10,000 samples to 5 standard errors and 2% (first order)."""
    sde, n = SIX[name], 10_000
    t_end = float(sde.time(4.0))
    denoiser = mixture(sde)
    generator = torch.Generator().manual_seed(4)
    start = sde.perturb(
        denoiser.sample(n, generator), sde.t_max, torch.randn(n, 2, dtype=torch.float64, generator=generator)
    )
    sampler = PredictorCorrector("ancestral", corrector, 100, 0.05, **options(t_end))
    x = sampler(denoiser, start.shape, latent=start, dtype=torch.float64).x
    end = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    exact = sde.perturb(denoiser.sample(n, generator), t_end, end)
    for a, b in ((x, exact), (x.square(), exact.square()), (x.prod(1), exact.prod(1))):
        allowed = 5 * b.std(0) * math.sqrt(2 / n) + 0.02 * b.std(0)
        assert ((a.mean(0) - b.mean(0)).abs() < allowed).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("corrector", ["none", "annealed_langevin", "leimkuhler_matthews"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral", "euler_maruyama", "probability_flow"])
def test_weak_error_on_a_mixture(predictor, corrector, name):
    """200,000 samples in the plane: the errors of mean and covariance halve as the steps double, to 5 standard errors.

    With a corrector (snr 0.02) they fall at least so fast, but for its bias. False alarms below 1e-4 in all 48 cases.
    """
    sde, t_end = walk(name, noisy=0.0, clean=3.0)
    n, denoiser, generator = 200_000, mixture(sde), torch.Generator().manual_seed(6)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    start = sde.perturb(denoiser.sample(n, generator), sde.t_max, noise)
    mean, covariance = mixture_moments(denoiser, float(sde.alpha(t_end)), float(sde.sigma(t_end)))
    errors = []
    for steps in (16, 32):
        sampler = PredictorCorrector(predictor, corrector, steps, 0.02, **options(t_end))
        x = sampler(denoiser, start.shape, latent=start, dtype=torch.float64).x - mean
        products = (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        values, want = torch.cat([x, products], 1), torch.cat([torch.zeros(2), covariance.flatten()])
        errors.append((values.mean(0) - want, 5 * values.std(0) / math.sqrt(n)))
    (coarse, wide), (fine, narrow) = errors
    bias = 0.02**2 * float(sde.sigma(t_end)) ** 2 * (corrector != "none")
    # Of first order: coarse - 2 fine is of second, here allowed a third of coarse; noise of both on top.
    rest = (coarse - 2 * fine).abs() - wide - 2 * narrow - 40 * bias
    if corrector == "none":
        assert (rest < 0.35 * coarse.abs()).all(), (coarse, fine)
    assert (fine.abs() - narrow < 0.65 * coarse.abs() + wide + 40 * bias).all(), (coarse, fine)


def test_what_is_refused():
    for opts, message in (
        ({"predictor": "euler"}, "predictor must be one of reverse_diffusion, ancestral, euler_maruyama"),
        (
            {"corrector": "ula"},
            "corrector must be one of leimkuhler_matthews, annealed_langevin, langevin, none; got 'ula'",
        ),
        ({"steps": 0}, "at least 1"),
        ({"corrector_steps": 0}, "at least 1"),
        ({"snr": 0.0}, "snr must be positive"),
        ({"snr": float("nan")}, "snr must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            PredictorCorrector(**opts)


def test_names_stand_for_instances():
    """A sampler made of instances draws what the one made of their names draws; a repr of it can be evaluated."""
    denoiser = mixture(SIX["vp"])
    named = PredictorCorrector("ancestral", "langevin", steps=5, snr=0.2)
    own = PredictorCorrector(Ancestral(), Langevin(0.2), steps=5)
    seeds = range(4)
    assert torch.equal(*(sampler(denoiser, (4, 2), seeds=seeds).x for sampler in (named, own)))
    assert repr(own) == "PredictorCorrector(predictor=Ancestral(), corrector=Langevin(snr=0.2), steps=5)"
    assert torch.equal(eval(repr(own))(denoiser, (4, 2), seeds=seeds).x, own(denoiser, (4, 2), seeds=seeds).x)
    flow = PredictorCorrector(ProbabilityFlow(), NoCorrector(0.16), steps=5)
    assert flow.invert(denoiser, torch.zeros(4, 2)).x.isfinite().all()
