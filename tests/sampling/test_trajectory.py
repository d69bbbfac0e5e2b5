"""Trajectories: beliefs and states, at each pass, at a number of places, at chosen times; on the way up too."""

import numpy as np
import pytest
import torch
from sampling_cases import MEAN, SIX, STD, Recording, gaussian, gaussian_flow, latent, mixture

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
)

SAMPLERS = {
    "ddim": AncestralSampler(20),
    "ddpm": AncestralSampler(20, eta=1.0),
    "dpm": DPMSolver(20, 3, singlestep=True),
    "unipc": UniPC(20),
    "deis": DEISSampler(20),
    "heun": HeunSampler(12),
    "pc": PredictorCorrector(steps=12),
    "langevin": AnnealedLangevin(12, 2),
    "rk4": ODESampler("rk4", steps=12),
    "rk4, another size": ODESampler("rk4", options={"step_size": 0.09}),
    "explicit_adams": ODESampler("explicit_adams", steps=12),
    "adams": ODESampler("adams"),
    "dopri5": ODESampler(),
    "scipy": ODESampler("scipy_solver"),
    "euler-maruyama": SDESampler(steps=12),
    "srk": SDESampler("srk", steps=12),
    "adaptive sde": SDESampler("heun", steps=12, adaptive=True, rtol=0.3, atol=0.3, t_end=0.05),
}
EXACT = ("adams", "dopri5", "scipy", "adaptive sde")
"""Those that answer for any time."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_at_each_pass(name):
    denoiser = Recording(mixture(SIX["ve"]))
    out = SAMPLERS[name](denoiser, (3, 2), dtype=torch.float64, trajectory=True)
    assert len(out.states) == len(out.trajectory) == len(out.times) == out.nfe
    assert out.times == denoiser.times
    assert all(torch.equal(x, asked) for x, (asked, *_) in zip(out.states, denoiser.calls, strict=True))
    k = out.nfe // 2
    assert torch.equal(out.trajectory[k], mixture(SIX["ve"])(out.states[k], out.times[k]).x0)


@pytest.mark.parametrize("wanted", [5, [1.0, 0.7, 0.31, 0.05]], ids=["5", "times"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_frames(name, wanted):
    """So many, in order, from t_max to t_end; at chosen times; the samples are the same; beliefs are of the states."""
    denoiser, sampler = mixture(SIX["vp"]), SAMPLERS[name]
    plain = sampler(denoiser, (3, 2), dtype=torch.float64)
    out = sampler(denoiser, (3, 2), dtype=torch.float64, trajectory=wanted)
    assert torch.equal(out.x, plain.x)
    assert out.nfe == plain.nfe
    assert out.times == sorted(out.times, reverse=True)
    assert out.trajectory.shape == out.states.shape == (len(out.times), 3, 2)
    assert torch.equal(
        out.states[0], Noise(range(3), (2,), dtype=torch.float64).normal(0) * float(SIX["vp"].sigma(1.0))
    )
    if isinstance(wanted, list):
        assert out.times == pytest.approx(wanted, abs=1e-9 if name in EXACT else 0.2)
    else:
        assert len(out.times) == 5
        assert out.times[0] == 1.0
        assert out.times[-1] == pytest.approx(sampler.t_end or SIX["vp"].t_min)
        # With denoise, x is what is believed there; Langevin steps are still to come.
        assert name == "langevin" or (out.trajectory[-1] - out.x).abs().max() < 1e-9
    for x, t, x0 in zip(out.states, out.times, out.trajectory, strict=True):
        assert torch.equal(x0, denoiser(x, t).x0)


def test_numpys_integers_are_numbers_of_frames():
    out = SAMPLERS["ddim"](mixture(SIX["vp"]), (3, 2), trajectory=np.int64(5))
    assert len(out.times) == len(out.states) == 5


@pytest.mark.parametrize("method", ["adams", "dopri5", "bosh3", "dopri8", "scipy_solver"])
@pytest.mark.parametrize("up", [False, True])
def test_adaptive_methods_are_at_the_times_themselves(method, up):
    """Against the exact flow of Gaussian data, in units of the standard deviation there: within 500 tolerances."""
    for name in ("vp", "rectified", "edm"):
        sde = SIX[name]
        x = latent(sde, 8)
        sampler = ODESampler(method, rtol=1e-6, atol=1e-6, t_end=float(sde.time(4.0)), denoise=False)
        wanted = [t * sde.t_max for t in (0.83, 0.5, 0.21)]
        start, end = sde.t_max, sampler.t_end
        if up:
            x, start, end = gaussian_flow(sde, x, start, end), end, start
            out = sampler.invert(gaussian(sde), x, dtype=torch.float64, trajectory=[start, *wanted])
            assert out.times == pytest.approx([start, *wanted[::-1]])
        else:
            out = sampler(gaussian(sde), x.shape, latent=x, dtype=torch.float64, trajectory=[start, *wanted])
            assert out.times == pytest.approx([start, *wanted])
        for state, t in zip(out.states, out.times, strict=True):
            spread = ((float(sde.alpha(t)) * STD) ** 2 + float(sde.sigma(t)) ** 2).sqrt()
            assert ((state - gaussian_flow(sde, x, start, t)) / spread).abs().max() < 5e-4, (name, t)


def test_states_have_the_marginals():
    """Means and variances of 4000 walks of ancestral sampling at three times, to 5 standard errors and 3%."""
    sde, n = SIX["vp"], 4000
    out = AncestralSampler(200, eta=1.0)(gaussian(sde), (n, 3), dtype=torch.float64, trajectory=[0.7, 0.4, 0.1])
    for x, t in zip(out.states, out.times, strict=True):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        spread = ((alpha * STD) ** 2 + sigma**2).sqrt()
        assert ((x.mean(0) - alpha * MEAN) / spread).abs().max() < 5 / n**0.5 + 0.03
        assert (x.std(0) / spread - 1).abs().max() < 5 / (2 * n) ** 0.5 + 0.03


def test_a_stopped_walk_has_the_frames_so_far():
    out = AncestralSampler(20)(gaussian(SIX["vp"]), (2, 3), trajectory=5, callback=lambda step, t, x, x0: t < 0.5)
    assert out.times[0] == 1.0
    assert len(out.times) == 3


def test_what_is_refused():
    denoiser = gaussian(SIX["vp"])
    for wanted, message in (
        (1, "at least 2"),
        (-3, "at least 2"),
        ([], r"lie in \[t_end, t_max\]"),
        ([0.5, 1.2], r"lie in \[t_end, t_max\] = \[1e-05, 1\]; got \[0.5, 1.2\]"),
        ([float("nan")], "lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            AncestralSampler(5)(denoiser, (2, 3), trajectory=wanted)
