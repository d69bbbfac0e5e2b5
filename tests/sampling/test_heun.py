"""EDM's sampler: its algorithm 2 with churn, what churn may touch, counts and endings (orders: test_multistep_*)."""

import dataclasses
import math

import pytest
import torch
from sampling_cases import SIX, Recording, mixture

from sde_diffusion.sampling import HeunSampler, Noise
from sde_diffusion.sde import EDMSDE, KarrasRho, UniformTime


def edm_algorithm_2(denoiser, noise, n, churn, s_min, s_max, s_noise):
    """Karras et al. 2022, algorithm 2, with the times of their equation 5; D is the denoiser's x0."""
    sde = denoiser.sde
    i = torch.arange(n, dtype=torch.float64)
    t = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = [*t.tolist(), 0.0]
    x = noise.normal(0) * t[0]
    for i in range(n):
        gamma = min(churn / n, math.sqrt(2) - 1) if s_min <= t[i] <= s_max else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * noise.normal(1 + i)
        d = (x_hat - denoiser(x_hat, min(t_hat, sde.t_max)).x0) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1]:
            d_ahead = (x - denoiser(x, t[i + 1]).x0) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_ahead / 2)
    return x


@pytest.mark.parametrize(
    ("n", "churn", "s_min", "s_max", "s_noise"),
    [
        (18, 0.0, 0.0, math.inf, 1.0),
        (18, 40.0, 0.05, 50.0, 1.003),
        (64, 5.0, 0.01, 1.0, 1.007),
        (7, 1.0, 0.0, 70.0, 1.0),
    ],
)
def test_algorithm_2(n, churn, s_min, s_max, s_noise):
    denoiser = mixture(EDMSDE())
    sampler = HeunSampler(n, churn, s_min, s_max, s_noise)
    ours = sampler(denoiser, (6, 2), dtype=torch.float64)
    noise = Noise(range(6), (2,), dtype=torch.float64)
    want = edm_algorithm_2(denoiser, noise, n, churn, s_min, s_max, s_noise)
    assert ours.nfe == 2 * n - 1
    assert (ours.x - want).abs().max() < 1e-9


@pytest.mark.parametrize("name", SIX)
def test_the_walk_is_the_same_on_every_path(name):
    """In x / alpha against sigma / alpha all paths are one: from the same y at the same r to the same r."""
    sde, reference = SIX[name], EDMSDE(sigma_max=1000.0)
    r, z = 20.0, torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for path in (sde, reference):
        t, t_end = (float(path.time(-2 * math.log(r))) for r in (r, 0.05))
        path = dataclasses.replace(path, t_max=t)
        x = float(path.alpha(t)) * (r * z)
        out = HeunSampler(12, churn=3.0, churn_max=15.0, denoise=False, t_end=t_end)(
            mixture(path), x.shape, latent=x, dtype=torch.float64
        )
        ends.append(out.x / float(path.alpha(t_end)))
    assert (ends[0] - ends[1]).abs().max() < 1e-9


def test_churn_stays_in_its_window_and_on_the_path():
    """Steps within [churn_min, churn_max] begin at r (1 + gain), others at r; none begins beyond t_max."""
    sde, n = EDMSDE(), 20
    grid = KarrasRho().times(sde, n)
    for low, high, churn in ((0.1, 10.0, 4.0), (0.0, math.inf, 4.0), (0.0, math.inf, 1e6)):
        denoiser = Recording(mixture(sde))
        HeunSampler(n, churn, low, high)(denoiser, (3, 2), dtype=torch.float64)
        begins = torch.tensor(denoiser.times[::2], dtype=torch.float64)  # first passes of the steps
        gain = min(churn / n, math.sqrt(2) - 1)
        inside = (grid >= low) & (grid <= high)
        want = torch.where(inside, grid * (1 + gain), grid).clamp(max=80.0)
        assert (begins / want - 1).abs().max() < 1e-9
        assert (torch.tensor(denoiser.times[1::2], dtype=torch.float64) - grid[1:]).abs().max() < 1e-9


def test_without_churn_no_noise_is_drawn():
    sde = SIX["vp"]
    latent = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [
        HeunSampler(6, **options)(mixture(sde), (3, 2), seeds=seeds, latent=latent, dtype=torch.float64).x
        for seeds in ([0, 1, 2], [7, 8, 9])
        for options in ({}, {"churn": 5.0, "churn_min": 1e6}, {"churn": 5.0})
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[3])
    assert not torch.equal(ends[2], ends[5])


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_passes_times_and_endings(steps, churn):
    sde = SIX["vp"]
    for denoise in (True, False):
        denoiser = Recording(mixture(sde))
        sampler = HeunSampler(steps, churn, grid=UniformTime(), denoise=denoise, t_end=0.1)
        out = sampler(denoiser, (4, 2), dtype=torch.float64)
        assert out.nfe == len(denoiser.calls) == (2 * steps - 1 if denoise else 2 * steps)
        x, t, _ = denoiser.calls[-1]
        assert torch.equal(out.x, mixture(sde)(x, t).x0) == denoise
        if not denoise or steps > 1:
            ahead = torch.tensor(denoiser.times[1::2], dtype=torch.float64)
            want = torch.linspace(1.0, 0.1, max(steps + (not denoise), 2), dtype=torch.float64)[1:]
            assert (ahead - want[: len(ahead)]).abs().max() < 1e-12


def test_what_is_refused():
    for options, message in (
        ({"steps": 0}, "at least 1"),
        ({"churn": -1.0}, "churn must not be negative"),
        ({"churn": float("nan")}, "churn must not be negative"),
        ({"churn_noise": 0.0}, "churn_noise must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            HeunSampler(**options)
