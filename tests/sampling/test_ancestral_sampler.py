"""AncestralSampler: its order, exact posteriors, DDPM's algorithm 2 from its own table, counts and endings."""

import itertools
import math

import pytest
import torch
from sampling_cases import SIX, Recording, gaussian, gaussian_flow, latent, mixture

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.sampling import AncestralSampler, Noise
from sde_diffusion.sde import VESDE, VPSDE, BetaTable, GeometricLevels, QuadraticTime, UniformLogSNR

POINT = torch.tensor([0.8, -0.4], dtype=torch.float64)


def slopes(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize("name", SIX)
def test_ddim_has_order_one(name):
    """Error against the exact flow of Gaussian data as the steps double; measured slopes 0.93 to 1.00."""
    sde, x = SIX[name], latent(SIX[name])
    exact = gaussian_flow(sde, x, sde.t_max, sde.t_min)
    for grid in [None, UniformLogSNR()][: 1 + (name == "vp")]:
        errors = []
        for steps in (50, 100, 200):
            sampler = AncestralSampler(steps, eta=0.0, grid=grid, denoise=False)
            out = sampler(gaussian(sde), x.shape, latent=x, dtype=torch.float64)
            errors.append(float((out.x - exact).square().mean().sqrt()))
        assert all(0.7 < slope < 1.3 for slope in slopes(errors)), (grid, slopes(errors))
        assert errors[-1] < 0.03


@pytest.mark.parametrize("name", SIX)
def test_one_transition_is_the_posterior(name):
    """With the data known to be one point, eta = 1 draws q(x_s | x_t, x0), whose mean and std are the path's own."""
    sde = SIX[name]
    s = 0.4 * sde.t_max
    x = latent(sde, 50)[:, :2]
    out = AncestralSampler(1, eta=1.0, denoise=False, t_end=s)(
        GaussianDenoiser(sde, POINT, 0.0), x.shape, latent=x, dtype=torch.float64
    )
    mean, std = sde.posterior(x, POINT, s, sde.t_max)
    z = (out.x - mean) / std
    assert (z - Noise(range(50), (2,), dtype=torch.float64).normal(1)).abs().max() < 1e-9


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SIX)
def test_marginals_are_exact_for_a_point_in_any_number_of_steps(name, eta):
    """x_s ~ N(alpha_s x0, sigma_s^2) after 3 steps as well as 1000; 20,000 samples, false alarms 6e-7 each of 4."""
    sde, n = SIX[name], 20_000
    s = 0.2 * sde.t_max
    start = sde.perturb(POINT, sde.t_max, Noise(range(n), (2,), dtype=torch.float64).normal(99))
    sampler = AncestralSampler(3, eta=eta, denoise=False, t_end=s)
    x = sampler(GaussianDenoiser(sde, POINT, 0.0), (n, 2), latent=start, dtype=torch.float64).x
    z = (x - float(sde.alpha(s)) * POINT) / float(sde.sigma(s))
    assert (z.mean(0) * math.sqrt(n)).abs().max() < 5
    assert ((z.square().mean(0) - 1) * math.sqrt(n / 2)).abs().max() < 5


def test_ddpm_is_algorithm_2():
    """All 1000 steps of Ho et al.'s algorithm 2 from the beta table, with its variance of the posterior."""
    sde = VPSDE(t_max=1.004)
    denoiser = mixture(sde)
    x = latent(sde, 6)[:, :2]
    noise = Noise(range(6), (2,), dtype=torch.float64)
    sampler = AncestralSampler(1000, eta=1.0, grid=BetaTable(1000))
    ours = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    for k, i in enumerate(reversed(range(1000))):
        # The network's eps at step i: minus sigma times the mixture's score by autograd, at variance 1 - alpha_bar_i.
        eps = -(1 - alpha_bar[i]).sqrt() * mixture_score(denoiser, x, alpha_bar[i])
        x = (x - betas[i] / (1 - alpha_bar[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        if i:
            x = x + (betas[i] * (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i])).sqrt() * noise.normal(1 + k)
    assert ours.nfe == 1000
    assert (ours.x - x).abs().max() < 1e-6


def mixture_score(denoiser, x, alpha_bar):
    x = x.detach().requires_grad_()
    components = torch.distributions.Independent(
        torch.distributions.Normal(
            alpha_bar.sqrt() * denoiser.means, (alpha_bar * denoiser.stds.square() + 1 - alpha_bar).sqrt()
        ),
        1,
    )
    family = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=denoiser.log_weights), components
    )
    return torch.autograd.grad(family.log_prob(x).sum(), x)[0]


def test_ncsn_levels_are_walked_as_listed():
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    denoiser = Recording(mixture(sde))
    out = AncestralSampler(10, eta=1.0, grid=GeometricLevels(10))(denoiser, (3, 2), dtype=torch.float64)
    sigmas = torch.tensor([float(sde.sigma(t)) for t in denoiser.times], dtype=torch.float64)
    want = torch.logspace(math.log10(50), -2, 10, dtype=torch.float64)
    assert ((sigmas / want - 1).abs() < 1e-9).all()
    assert out.nfe == 10


@pytest.mark.parametrize("steps", [1, 2, 13])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_passes_times_and_endings(steps, eta):
    sde = SIX["vp"]
    for denoise in (True, False):
        denoiser = Recording(mixture(sde))
        sampler = AncestralSampler(steps, eta, QuadraticTime(), denoise, t_end=1e-3)
        out = sampler(denoiser, (5, 2), dtype=torch.float64)
        assert out.nfe == len(denoiser.calls) == steps
        points = steps if denoise else steps + 1
        roots = torch.linspace(1.0, math.sqrt(1e-3), max(points, 2), dtype=torch.float64)[:steps]
        assert (torch.tensor(denoiser.times, dtype=torch.float64).sqrt() - roots).abs().max() < 1e-12
        x, t, _ = denoiser.calls[-1]
        belief = mixture(sde)(x, t).x0
        assert torch.equal(out.x, belief) == denoise


def test_what_is_refused():
    for options, message in (
        ({"steps": 0}, "at least 1"),
        ({"steps": 2.5}, "integer"),
        ({"eta": 1.1}, r"\[0, 1\]"),
        ({"eta": -0.1}, r"\[0, 1\]"),
        ({"eta": float("nan")}, r"\[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            AncestralSampler(**options)
    with pytest.raises(ValueError, match="fewer steps"):
        AncestralSampler(1001, grid=BetaTable(1000))(gaussian(VPSDE(t_max=1.004)), (1, 3))
