"""Langevin steps keep the marginal, NCSN's walk is the published one, NCSNv2's techniques hold by their own words."""

import itertools
import math

import pytest
import torch
from sampling_cases import SIX, Recording, mixture
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
from weak_cases import MEAN, STD, affine, weak_errors

from sde_diffusion.denoiser import GaussianMixtureDenoiser
from sde_diffusion.sampling import AnnealedLangevin, Noise
from sde_diffusion.sampling.langevin import langevin_step, ncsnv2_levels, ncsnv2_step_size
from sde_diffusion.sde import VESDE, VPSDE, GeometricLevels, RectifiedFlow, UniformTime


def test_one_step_keeps_the_marginal_to_second_order():
    """Mean and variance of a bimodal mixture after a step with its exact score, by quadrature: error eps^2.

    The noise's two-point law z = +-1 has the same first and second moments as the normal's.
    """
    sde = SIX["vp"]
    means, stds = torch.tensor([[-0.9], [0.6]], dtype=torch.float64), torch.tensor([0.25, 0.4], dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(sde, means, stds, torch.tensor([0.3, 0.7], dtype=torch.float64))
    t = 0.2
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    mass = denoiser.log_prob(x, t).exp()
    mass = (mass / mass.sum()).unsqueeze(1)
    mean = float((mass * x).sum())
    variance = float((mass * (x - mean).square()).sum())
    errors = []
    for eps in (1e-2, 5e-3, 2.5e-3):
        step = torch.tensor(eps, dtype=torch.float64)
        ends = [langevin_step(x, denoiser(x, t).score, sign * torch.ones_like(x), step) for sign in (1.0, -1.0)]
        moved = sum(float((mass * end).sum()) for end in ends) / 2
        spread = sum(float((mass * (end - mean).square()).sum()) for end in ends) / 2
        assert abs(moved - mean) < 1e-9  # E[score] = 0
        errors.append(abs(spread - variance))
    for coarse, fine in itertools.pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2) < 0.01


def test_the_walk_is_the_published_one():
    """Algorithm 1 of Song & Ermon 2019: a_i = eps sigma_i^2 / sigma_L^2, and 2020's last denoising, line for line."""
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    denoiser = Recording(mixture(sde))
    levels, steps, eps = 10, 3, 2e-5
    sampler = AnnealedLangevin(levels, steps, eps)
    ours = sampler(denoiser, (4, 2), dtype=torch.float64)
    noise = Noise(range(4), (2,), dtype=torch.float64)
    sigmas = torch.logspace(math.log10(50), -2, levels, dtype=torch.float64)
    x = 50 * noise.normal(0)
    for i, sigma in enumerate(sigmas):
        a = eps * sigma**2 / sigmas[-1] ** 2
        for k in range(steps):
            x = x + a * noisy_score(denoiser.inner, x, sigma) + (2 * a).sqrt() * noise.normal(1 + i * steps + k)
    x = x + sigmas[-1] ** 2 * noisy_score(denoiser.inner, x, sigmas[-1])
    assert (ours.x - x).abs().max() < 1e-9
    assert ours.nfe == len(denoiser.calls) == levels * steps + 1
    plain = AnnealedLangevin(levels, steps, eps, denoise=False)(denoiser, (4, 2), dtype=torch.float64)
    assert plain.nfe == levels * steps


def noisy_score(denoiser, x, sigma):
    """Score of the mixture blurred by sigma, by autograd on torch's own mixture."""
    x = x.detach().requires_grad_()
    family = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=denoiser.log_weights),
        torch.distributions.Independent(
            torch.distributions.Normal(denoiser.means, (denoiser.stds.square() + sigma**2).sqrt()), 1
        ),
    )
    return torch.autograd.grad(family.log_prob(x).sum(), x)[0]


def test_levels_of_a_list_are_walked_as_listed():
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    denoiser = Recording(mixture(sde))
    AnnealedLangevin(7, 2, 1e-5, grid=GeometricLevels(7, 0.01, 50.0))(denoiser, (2, 2), dtype=torch.float64)
    sigmas = torch.tensor([float(sde.sigma(t)) for t in denoiser.times], dtype=torch.float64)
    want = torch.logspace(math.log10(50), -2, 7, dtype=torch.float64).repeat_interleave(2)
    assert (sigmas[:-1] / want - 1).abs().max() < 1e-9
    assert abs(sigmas[-1] / 0.01 - 1) < 1e-9


@pytest.mark.parametrize("dimensions", [20, 64, 784, 3072, 12288])
def test_technique_2(dimensions):
    """The number of levels against the root of the printed equation, found by SciPy."""

    def overlap(gamma):
        shift = math.sqrt(2 * dimensions) * (gamma - 1)
        return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma) - 0.5

    gamma = brentq(overlap, 1 + 1e-9, 2, xtol=1e-14)
    for span in (math.log(5000.0), math.log(348 / 0.01), 1.0):
        levels = ncsnv2_levels(dimensions, span)
        # L levels have L - 1 ratios; one fewer would leave them above gamma.
        assert span / (levels - 1) <= math.log(gamma) * (1 + 1e-9)
        assert levels == 2 or span / (levels - 2) > math.log(gamma)


@pytest.mark.parametrize("dimensions", [1, 2, 4, 5, 8, 12])
def test_technique_2_where_no_ratio_up_to_2_overlaps_by_half(dimensions):
    def overlap(gamma):
        shift = math.sqrt(2 * dimensions) * (gamma - 1)
        return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma)

    assert all(overlap(1 + 0.01 * k) > 0.5 for k in range(1, 101))
    assert ncsnv2_levels(dimensions, 3 * math.log(2) - 1e-9) == 4


@pytest.mark.parametrize(
    ("largest", "levels", "steps", "published"),
    [(50, 232, 5, 6.2e-6), (90, 500, 5, 3.3e-6), (190, 1086, 3, 1.8e-6), (348, 2311, 3, 0.9e-6)],
)
def test_technique_4_gives_the_published_step_sizes(largest, levels, steps, published):
    """CIFAR-10, CelebA, LSUN bedroom and FFHQ, in the authors' configurations, from sigma_L = 0.01.

    (LSUN church's 4.9e-6 is not what the rule gives, 2.3e-6.)
    """
    gamma = (largest / 0.01) ** (1 / (levels - 1))
    assert ncsnv2_step_size(gamma, steps) * 0.01**2 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("gamma", "steps"), [(1.0376, 5), (1.0188, 5), (1.3, 3), (1.9, 10), (1.05, 1)])
def test_technique_4_by_its_own_words(gamma, steps):
    """The variance after T Langevin steps on N(0, 1), simulated step by step, is as near to 1 as a step size makes it.

    And so do 200,000 samples find it, to 5 standard errors (false alarm 6e-7).
    """

    def ratio(e):
        variance = gamma**2
        for _ in range(steps):
            variance = (1 - e) ** 2 * variance + 2 * e
        return variance

    e = ncsnv2_step_size(gamma, steps)
    scan = min((0.001 * k for k in range(1, 1000)), key=lambda e: abs(ratio(e) - 1))
    best = minimize_scalar(lambda e: abs(ratio(e) - 1), bounds=(max(0.0, scan - 0.002), scan + 0.002), method="bounded")
    assert abs(ratio(e) - 1) < best.fun * 1.001 + 1e-3 * e
    n = 200_000
    generator = torch.Generator().manual_seed(2)
    x = gamma * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    for _ in range(steps):
        z = torch.randn(n, 1, dtype=torch.float64, generator=generator)
        x = langevin_step(x, -x, z, torch.tensor(e, dtype=torch.float64))
    assert abs(float(x.square().mean()) / ratio(e) - 1) < 5 * math.sqrt(2 / n)


def test_the_rules_are_what_the_walk_uses():
    """Levels not given: in the plane ratios of 2."""
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    levels = 1 + math.ceil(math.log(5000) / math.log(2))
    denoiser = Recording(mixture(sde))
    assert AnnealedLangevin()(denoiser, (3, 2), dtype=torch.float64).nfe == 5 * levels + 1


@pytest.mark.parametrize("name", SIX)
def test_the_mean_is_kept_on_every_path(name):
    """Between levels x / alpha stays as it is: NCSN in its own variable. Exact on Gaussian data, levels by the rules.

    With x kept in its place the mean of data of std 0.5 was off by 0.2 to 0.4 of it wherever alpha changes. The
    variance is too large, as annealing is coarse (1.8 times with five steps a level), on all paths alike.
    """
    sde = SIX[name]
    mean, variance = weak_errors(AnnealedLangevin(denoise=False), sde, sde.t_min, 200)
    assert abs(mean) < 1e-3
    assert 0.7 < variance < 0.9


@pytest.mark.parametrize("options", [{}, {"levels": 10}, {"levels": 10, "step_size": 1e-5}])
@pytest.mark.parametrize(("sde", "t_end"), [(RectifiedFlow(t_max=1.0), None), (RectifiedFlow(), 0.0), (VPSDE(), 0.0)])
def test_a_path_that_is_singular_at_an_end(sde, t_end, options):
    denoiser = mixture(sde)
    for grid in (UniformTime(), None):
        with pytest.raises(ValueError, match=r"singular at an end: give it t_min > 0"):
            AnnealedLangevin(**options, grid=grid, t_end=t_end)(denoiser, (2, 2))


def test_slower_annealing_comes_nearer_to_the_data():
    """Gaussian data, exact without sampling: the variance lags behind the level by 1 / T at a fixed step size."""
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    excess = []
    for steps in (10, 40):
        offset, from_x, from_noise = affine(AnnealedLangevin(100, steps, 6e-6), sde, sde.t_min, 100 * steps + 2)
        assert float(offset) == pytest.approx(MEAN, abs=1e-3)
        excess.append(float((50 * from_x) ** 2 + from_noise.square().sum()) - STD**2)
    assert 0 < excess[1] < 0.02
    assert excess[0] / excess[1] == pytest.approx(4, rel=0.15)


def test_what_is_refused():
    for options, message in (
        ({"levels": 1}, "at least 2"),
        ({"levels": 2.5}, "integer"),
        ({"steps_per_level": 0}, "at least 1"),
        ({"step_size": 0.0}, "positive"),
        ({"step_size": -1e-5}, "positive"),
        ({"step_size": float("nan")}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            AnnealedLangevin(**options)
    with pytest.raises(ValueError, match="t_end"):
        AnnealedLangevin(5, grid=UniformTime(), t_end=2.0)(mixture(SIX["vp"]), (2, 2))
