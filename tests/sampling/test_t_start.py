"""Walks from a state at t_start (SDEdit): the closed forms for Gaussian data, the steps, the grids, the way up."""

import math

import pytest
import torch
from sampling_cases import MEAN, SIX, STD, Recording, gaussian, gaussian_flow, mixture

from sde_diffusion.errors import UserError
from sde_diffusion.sampling import (
    AncestralSampler,
    AnnealedLangevin,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    Noise,
    ODESampler,
    PredictorCorrector,
    SDESampler,
    UniPC,
    noised,
)
from sde_diffusion.sde import BetaTable, LearnedSDE, QuadraticTime, UniformTime

FLOW = {
    "ddim": (AncestralSampler(100, grid=QuadraticTime(), denoise=False), 0.02),
    "dpm": (DPMSolver(40, denoise=False), 2e-3),
    "unipc": (UniPC(30, denoise=False), 1e-3),
    "deis": (DEISSampler(40, 3, denoise=False), 2e-3),
    "heun": (HeunSampler(30, denoise=False), 2e-3),
    "rk4": (ODESampler("rk4", steps=20, denoise=False, grid=QuadraticTime()), 2e-3),
    "dopri5": (ODESampler(denoise=False), 1e-4),
    "probability_flow": (
        PredictorCorrector("probability_flow", "none", 100, grid=QuadraticTime(), denoise=False),
        0.02,
    ),
    "torchsde": (SDESampler("midpoint", 40, eta=0.0, denoise=False, grid=QuadraticTime()), 2e-3),
}
EVERY = [
    DPMSolver(12),
    UniPC(12),
    DEISSampler(12),
    ODESampler("rk4", steps=6),
    ODESampler(),
    AncestralSampler(12, 1.0),
    PredictorCorrector(steps=12),
    HeunSampler(12, churn=6.0),
    SDESampler(steps=12),
    SDESampler("srk", 12, adaptive=True, rtol=1.0, atol=1.0),
    AnnealedLangevin(12, 2),
]


def start_of(sde, r=0.6):
    """The time where sigma / alpha = r."""
    return float(sde.time(-2 * torch.tensor(r, dtype=torch.float64).log()))


@pytest.mark.parametrize("name", ["subvp", "ve", "rectified"])
def test_the_flow_of_gaussian_data(name):
    """Every deterministic sampler follows the closed form from t_start, and back up to it by `invert`."""
    sde = SIX[name]
    t, end = start_of(sde), start_of(sde, 0.05)
    x = noised(sde, MEAN + torch.tensor([[0.4, 0.1, -2.0]] * 16, dtype=torch.float64), t)
    exact = gaussian_flow(sde, x, t, end)
    for method, (sampler, tolerance) in FLOW.items():
        sampler.t_end = end
        found = sampler(gaussian(sde), x.shape, latent=x, t_start=t, dtype=torch.float64)
        assert (found.x - exact).abs().max() < tolerance, method
        back = sampler.invert(gaussian(sde), exact, t_start=t, dtype=torch.float64).x
        assert (back - x).abs().max() < 2 * tolerance, method
        sampler.t_end = None


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_reverse_process_of_gaussian_data(name):
    """Mean m + (x - m) s^2 / v and variance s^4 r^2 / v^2 + s^2 r^2 / v of what x becomes with noise, v = s^2 + r^2.

    Noises come in pairs z, -z, so that the mean of the state at t_start is that of x exactly. Four standard errors of
    four numbers each: false alarms 2.5e-4 each path; beside them 1% for the steps.
    """
    sde, n = SIX[name], 2000
    r = 0.6
    t = start_of(sde, r)
    x0 = MEAN + torch.tensor([[0.4, 0.1, -2.0]] * n, dtype=torch.float64)
    x = noised(sde, x0[: n // 2], t)
    x = torch.cat([x, 2 * sde.alpha(t) * x0[: n // 2] - x])
    v = STD**2 + r**2
    mean, std = MEAN + (x0[0] - MEAN) * STD**2 / v, (STD**4 * r**2 / v**2 + STD**2 * r**2 / v).sqrt()
    for sampler in (AncestralSampler(200, 1.0), SDESampler("srk", 80)):
        found = sampler(gaussian(sde), x.shape, latent=x, t_start=t, dtype=torch.float64).x
        assert ((found.mean(0) - mean).abs() < 4 * std / n**0.5 + 0.01 * STD).all(), sampler
        assert ((found.std(0) / std - 1).abs() < 4 / (2 * n) ** 0.5 + 0.01).all(), sampler


@pytest.mark.parametrize("sampler", EVERY, ids=repr)
def test_the_steps_are_those_asked_for(sampler):
    """From t_start to t_end, never beyond; from t_max, bit for bit, nothing changes."""
    sde = SIX["ve"] if isinstance(sampler, AnnealedLangevin) else SIX["vp"]
    t, x = start_of(sde), torch.ones(3, 2, dtype=torch.float64)
    whole, part = Recording(mixture(sde)), Recording(mixture(sde))
    all_of_it = sampler(whole, x.shape, latent=x, dtype=torch.float64)
    found = sampler(part, x.shape, latent=x, t_start=t, dtype=torch.float64)
    assert max(part.times) <= t
    assert min(part.times) == pytest.approx(sde.t_min)
    if not getattr(sampler, "adaptive", False) and "dopri5" not in repr(sampler):
        assert found.nfe == all_of_it.nfe == len(part.calls)
    same = sampler(mixture(sde), x.shape, latent=x, t_start=sde.t_max, dtype=torch.float64)
    assert torch.equal(same.x, all_of_it.x)


@pytest.mark.parametrize("sampler", [DPMSolver(8), ODESampler(), SDESampler(steps=8), HeunSampler(8)], ids=repr)
def test_frames_begin_at_t_start(sampler):
    x = torch.ones(2, 2)
    for trajectory in (4, [0.3, 0.1]):
        found = sampler(mixture(SIX["vp"]), x.shape, latent=x, t_start=0.3, trajectory=trajectory)
        assert found.times[0] == pytest.approx(0.3)
        assert torch.equal(found.states[0], x)
    with pytest.raises(ValueError, match=r"\[t_end, t_max\] = \[1e-05, 0.3\]"):
        sampler(mixture(SIX["vp"]), x.shape, latent=x, t_start=0.3, trajectory=[0.5])


class Line(LearnedSDE):
    """sigma / alpha = e^(slope t) - 1."""

    def __init__(self):
        super().__init__(t_min=1e-3, t_max=1.0)
        self.slope = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def log_alpha(self, t):
        return torch.zeros_like(t)

    def log_sigma(self, t):
        return torch.expm1(self.slope * t).log()


def test_a_learned_path_and_its_gradient():
    sde = Line()
    x = torch.full((4, 3), 0.8, dtype=torch.float64)
    sampler = DPMSolver(40, denoise=False)
    found = sampler(gaussian(sde), x.shape, latent=x, t_start=0.2, dtype=torch.float64, create_graph=True)
    with torch.no_grad():
        exact = gaussian_flow(sde, x, 0.2, sde.t_min)
    assert (found.x - exact).abs().max() < 1e-3
    (gradient,) = torch.autograd.grad(found.x.sum(), sde.slope)
    assert 0 < abs(gradient) < math.inf


def test_a_list_of_noise_levels():
    """The walk begins at t_start, between two levels of the list, and takes those below."""
    table = BetaTable(n=100, beta_start=1e-3, beta_end=0.19)
    sde = type(SIX["vp"])(t_max=1.01)
    levels = table.level_times(sde)
    t = float(0.5 * (levels[29] + levels[30]))
    denoiser = Recording(mixture(sde))
    sampler = AncestralSampler(30, grid=table, denoise=False)
    found = sampler(denoiser, (1, 2), latent=torch.ones(1, 2), t_start=t, trajectory=40)
    assert found.times == pytest.approx([t, *levels[:30].flip(0).tolist()])


def test_noise_of_the_reference():
    """From the seed alone, of the right size, and unlike any that the sampler draws with that seed."""
    sde, x0 = SIX["vp"], torch.full((2000, 2), 0.5)
    x = noised(sde, x0, 0.4, range(2000))
    z = (x - sde.alpha(0.4).float() * 0.5) / sde.sigma(0.4).float()
    assert z.mean().abs() < 4 / 4000**0.5  # false alarms 6e-5 each
    assert (z.std() - 1).abs() < 4 / 8000**0.5
    torch.testing.assert_close(noised(sde, x0[:3], 0.4, [7, 5, 9]), x[[7, 5, 9]])
    drawn = [Noise(range(2000), (2,)).normal(k) for k in range(3)]
    assert max((z * other).mean().abs() for other in drawn) < 4 / 4000**0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_start": 1.2}, r"t_start must lie in \(t_end, t_max\] = \(1e-05, 1\] of VPSDE.*; got 1.2"),
        ({"t_start": 0.0}, r"t_start must lie in \(t_end, t_max\]"),
        ({"t_start": float("nan")}, r"t_start must lie in"),
        ({"t_start": "0.4"}, "t_start must be a number"),
        ({"t_start": 0.4, "latent": None}, r"t_start=0.4 needs latent=, the state there"),
    ],
)
def test_mistakes(options, message):
    latent = {"latent": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=message):
        AncestralSampler(5)(mixture(SIX["vp"]), (2, 2), **{**latent, **options})
    with pytest.raises(ValueError, match="t_start must lie in"):
        AncestralSampler(5, t_end=0.5).invert(mixture(SIX["vp"]), torch.zeros(2, 2), t_start=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2), 1.5), r"t must lie in \[0, t_max = 1\]"),
        ((torch.zeros(2), 0.5), "x0 must have shape"),
        ((torch.zeros(2, 2), 0.5, [1]), "one seed for each sample"),
        ((torch.full((2, 2), float("nan")), 0.5), "x0 is not finite"),
    ],
)
def test_mistakes_of_the_reference(arguments, message):
    with pytest.raises(ValueError, match=message):
        noised(SIX["vp"], *arguments)


def test_where_a_walk_is_lost():
    """The walk that finds where NaN first occurred begins at t_start too."""

    class Lost(Recording):
        def forward(self, x_t, t, **conditions):
            answer = super().forward(x_t, t)
            return answer if t > 0.2 else answer.shifted(torch.full_like(x_t, torch.nan))

    with pytest.raises(UserError, match=r"network pass 7, t = 0.18"):
        AncestralSampler(11, grid=UniformTime(), t_end=0.0001, denoise=False)(
            Lost(mixture(SIX["vp"])), (1, 2), latent=torch.ones(1, 2), t_start=0.4
        )
