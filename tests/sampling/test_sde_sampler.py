"""SDESampler: Euler-Maruyama by hand with the same noise, and the exact marginals of a mixture for every eta."""

import math

import pytest
import torch
from sampling_cases import SIX, Recording, gaussian, latent, mixture, mixture_moments

from sde_diffusion.sampling import Noise, SDESampler
from sde_diffusion.sampling.brownian import StepBrownian
from sde_diffusion.sde import QuadraticTime, UniformLogSNR, UniformTime


def by_hand(sde, denoiser, x, steps, eta, t_end, noise):
    """Euler-Maruyama on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw in uniform t, from alpha, sigma by finite
    differences: f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2.
    """
    h = (sde.t_max - t_end) / steps
    for k in range(steps):
        t = sde.t_max - k * h
        d = 1e-7 * sde.t_max
        points = (t, t - d, t - 2 * d)  # one-sided: the path ends at t_max
        log_alpha = [math.log(float(sde.alpha(p))) for p in points]
        variance = [float(sde.sigma(p)) ** 2 for p in points]
        f, rate = ((3 * v[0] - 4 * v[1] + v[2]) / (2 * d) for v in (log_alpha, variance))
        g2 = rate - 2 * f * variance[0]
        score = denoiser(x, t).score
        x = x - h * (f * x - 0.5 * (1 + eta**2) * g2 * score) + eta * math.sqrt(g2 * h) * noise.normal(k + 1)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("name", SIX)
def test_euler_maruyama_by_hand(name, eta):
    sde = SIX[name]
    x = latent(sde, 20)[:, :2]
    t_end = 0.2 * sde.t_max
    for steps in (1, 4):
        noise = Noise(range(20), (2,), dtype=torch.float64)
        want = by_hand(sde, mixture(sde), x, steps, eta, t_end, noise)
        denoiser = Recording(mixture(sde))
        sampler = SDESampler(steps=steps, eta=eta, grid=UniformTime(), denoise=False, t_end=t_end)
        out = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)
        assert (out.x - want).abs().max() < 1e-6 * want.abs().max()
        assert out.nfe == len(denoiser.calls) == steps


@pytest.mark.parametrize(
    ("name", "eta"),
    [
        pytest.param(name, eta, marks=[] if eta == 1 or name in ("vp", "edm") else [pytest.mark.slow])
        for name in SIX
        for eta in (0.0, 0.5, 1.0, 1.5)
    ],
)
def test_marginals_of_a_mixture(name, eta):
    """Mean and covariance of 4,000 walks from the exact marginal at t_max to t_end, against the closed form.

    False alarms: 5 numbers at 5 Monte Carlo deviations each, 3e-6, with 0.02 beside for 200 steps' discretisation.
    """
    sde, n = SIX[name], 4000
    denoiser = mixture(sde)
    t_end = {"ve": 0.3, "edm": 0.1}.get(name, 0.03)
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    start = sde.perturb(denoiser.sample(n, generator), sde.t_max, noise)
    sampler = SDESampler(steps=200, eta=eta, grid=UniformLogSNR(), denoise=False, t_end=t_end)
    x = sampler(denoiser, (n, 2), latent=start, dtype=torch.float64).x
    mean, covariance = mixture_moments(denoiser, float(sde.alpha(t_end)), float(sde.sigma(t_end)))
    centred = x - mean
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    for values, want in ((x, mean), (products, covariance)):
        allowed = 5 * values.std(0) / math.sqrt(n) + 0.02
        assert ((values.mean(0) - want).abs() < allowed).all(), (values.mean(0), want, allowed)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_passes_times_and_endings(eta):
    sde = SIX["vp"]
    denoiser = Recording(mixture(sde))
    out = SDESampler(steps=10, eta=eta, grid=QuadraticTime(), t_end=0.01)(denoiser, (3, 2), dtype=torch.float64)
    assert out.nfe == len(denoiser.calls) == 10
    roots = torch.linspace(1.0, 0.1, 10, dtype=torch.float64)
    assert (torch.tensor(denoiser.times, dtype=torch.float64).sqrt() - roots).abs().max() < 1e-12
    x, t, _ = denoiser.calls[-1]
    assert torch.equal(out.x, mixture(sde)(x, t).x0)


def test_a_thousand_steps_and_images():
    """float32 and many steps: no step is repeated or skipped, and a state of several axes keeps its shape."""
    sde = SIX["ve"]
    denoiser = Recording(gaussian(sde))
    out = SDESampler(steps=1000)(denoiser, (2, 4, 5, 3))
    assert out.x.shape == (2, 4, 5, 3)
    assert out.nfe == len(denoiser.calls) == 1000
    gaps = torch.tensor(denoiser.times, dtype=torch.float64).diff()
    assert (gaps + (sde.t_max - sde.t_min) / 999).abs().max() < 1e-7


def test_increments_of_anything_but_whole_steps_are_refused():
    brownian = StepBrownian(Noise([0], (3,)).normal, torch.zeros(1, 3), -2.0)
    for interval in ((-2.0, -1.5), (-2.0, 0.0), (-1.5, -0.5)):
        with pytest.raises(ValueError, match="whole steps"):
            brownian(*interval)
    with pytest.raises(ValueError, match="space-time"):
        brownian(-2.0, -1.0, return_U=True)


def test_what_is_refused():
    for options, message in (
        ({"method": "euler_heuns"}, "euler, milstein, srk, euler_heun, heun"),
        ({"rtol": 0.0}, "positive"),
        ({"max_nfe": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1}, "at least 2"),
        ({"eta": -1.0}, "negative"),
        ({"eta": float("nan")}, "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            SDESampler(**options)
