"""Replacement and RePaint: their bias in closed form, the noise of the measurement, passes, refusals."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from posterior_cases import correlated, random
from sampling_cases import SIX, Recording
from scipy.integrate import solve_ivp

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.guidance import Blur, Downsample, Grey, LinearOperator, Mask, Nonlinear, PosteriorDenoiser
from sde_diffusion.sampling import (
    AncestralSampler,
    AnnealedLangevin,
    DPMSolver,
    HeunSampler,
    ODESampler,
    PredictorCorrector,
    RePaint,
    Replacement,
    SDESampler,
    UniPC,
)
from sde_diffusion.sde import VPSDE

FIRST = Mask(torch.tensor([1, 0]))
ONE = torch.ones(1, 1, dtype=torch.float64)


def derived(rho, start, end):
    """Mean and standard deviation of the unknown number, y = 1 (the equations of `Replacement`, by SciPy)."""

    def slope(r, state):
        precision = np.linalg.inv(np.array([[1 + r * r, rho], [rho, 1 + r * r]]))
        mean = 2 * r * (precision[1, 1] * state[0] + precision[1, 0])
        return [mean, 4 * r * precision[1, 1] * state[1] - 2 * r]

    mean, variance = solve_ivp(slope, (start, end), [0.0, start**2], method="LSODA", rtol=1e-9, atol=1e-12).y[:, -1]
    return mean, variance**0.5


@pytest.mark.parametrize(("rho", "mean", "std"), [(0.5, 0.268, 0.908), (0.9, 0.627, 0.558), (0.99, 0.868, 0.231)])
def test_the_bias_is_the_derived_one(rho, mean, std):
    """4 standard errors (false alarms 1.3e-4 for each rho), and .02 for the steps."""
    n, sde = 4000, SIX["edm"]
    assert derived(rho, sde.t_max, sde.t_min) == pytest.approx((mean, std), abs=1e-3)
    posterior = PosteriorDenoiser(correlated(sde, rho), FIRST, 0.0)
    found = Replacement(AncestralSampler(400, 1.0))(posterior, (n, 2), y=ONE, dtype=torch.float64).x
    assert abs(found[:, 1].mean() - mean) < 4 * std / n**0.5 + 0.02
    assert abs(found[:, 1].std() - std) < 4 * std / (2 * n) ** 0.5 + 0.02
    assert torch.equal(found[:, 0], torch.ones(n, dtype=torch.float64))


def test_repaint_reduces_the_bias():
    """rho = .9, 100 levels in jumps of 10: from .627 towards .9, as resamples grow. Standard errors are .02 to .03."""
    posterior = PosteriorDenoiser(correlated(SIX["edm"], 0.9), FIRST, 0.0)
    for resamples, mean in ((1, 0.62), (5, 0.85), (20, 0.9)):
        found = RePaint(100, 10, resamples)(posterior, (400, 2), y=ONE, dtype=torch.float64).x[:, 1]
        assert abs(found.mean() - mean) < 0.1
    # Without correlation nothing is learned: jumps up and down preserve the unit variance, to 4 standard errors and 4%.
    posterior = PosteriorDenoiser(correlated(SIX["edm"], 0.0), FIRST, 0.0)
    found = RePaint(60, 10, 4)(posterior, (2000, 2), y=ONE, dtype=torch.float64).x[:, 1]
    assert abs(found.std() - 1) < 4 / 4000**0.5 + 0.04


def test_the_passes_of_repaint():
    """The published schedule: 2,410 passes and 4,570 moves; here a jump is one draw in place of 10 moves."""
    levels = RePaint().levels()
    down, up = (sum(sign * (b - a) > 0 for a, b in pairwise(levels)) for sign in (-1, 1))
    assert (levels[0], levels[-1], down + 1, down + 1 + 10 * up) == (249, 0, 2410, 4570)
    denoiser = Recording(correlated(SIX["vp"], 0.5))
    posterior = PosteriorDenoiser(denoiser, FIRST, 0.0)
    for denoise in (True, False):
        sampler = RePaint(20, 5, 3, denoise=denoise)
        found = sampler(posterior, (2, 2), y=ONE, trajectory=100)
        assert found.nfe == len(denoiser.calls) - len(found.times) == 20 + 5 * 2 * 3
        assert len(found.times) == 21 - denoise
        denoiser.calls.clear()


ORTHONORMAL = {
    "mask": (Mask(random(3, 4, 4) > 0), (3, 4, 4)),
    "area": (Downsample(2), (3, 4, 4)),
    "grey": (Grey(), (3, 4, 4)),
    "matrix": (LinearOperator(random(3, 8)), (8,)),
    "blur": (Blur(torch.tensor([0.2, 0.6, 0.2])), (9,)),
}


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_known_parts_in_any_basis(name):
    """A x_t is alpha y + sqrt(sigma^2 A A^T) z at each time, the rest is left, and the result has A x = y."""
    operator, dims = ORTHONORMAL[name]
    sde, n = SIX["vp"], 400
    posterior = PosteriorDenoiser(GaussianDenoiser(sde, torch.zeros(dims), 0.5), operator, 0.0)
    y = operator(0.5 * random(1, *dims, seed=2))
    found = Replacement(AncestralSampler(8, 1.0))(posterior, (n, *dims), y=y, dtype=torch.float64, trajectory=[0.4])
    (t,) = found.times
    noise = (operator(found.states[0]) - sde.alpha(t) * y).flatten(1) / sde.sigma(t)
    size = noise.shape[1]
    matrix = operator(torch.eye(int(np.prod(dims)), dtype=torch.float64).reshape(-1, *dims)).flatten(1)
    gram = matrix.T @ matrix
    scale = gram.diagonal().max()
    # 5 standard errors of each entry: false alarms 6e-7 times their number, at most 800.
    assert (noise.mean(0).abs() < 5 * (scale / n) ** 0.5).all()
    assert ((noise.T @ noise / n - gram).abs() < 5 * scale * (2 / n) ** 0.5).all(), size
    torch.testing.assert_close(operator(found.x), y.expand(n, *y.shape[1:]), rtol=1e-9, atol=1e-9)


def test_noise_of_the_measurement_is_no_bias():
    """White data, std .5, noise .1: observed and unobserved numbers by 400 steps; DDRM's own noise gives .020 and .436.

    4 standard errors (false alarms 2.5e-4), and 5% for the steps.
    """
    n = 4000
    posterior = PosteriorDenoiser(GaussianDenoiser(SIX["edm"], torch.zeros(2), 0.5), FIRST, 0.1)
    variance = 0.25 * 0.01 / 0.26
    # Jumps at noise levels below that of y would lose y.
    for sampler in (Replacement(AncestralSampler(400, 1.0)), RePaint(400, 4, 2)):
        found = sampler(posterior, (n, 2), y=ONE, dtype=torch.float64).x
        assert abs(found[:, 0].mean() - 0.25 / 0.26) < 4 * (variance / n) ** 0.5 + 0.005
        assert abs(found[:, 0].std() / variance**0.5 - 1) < 4 / (2 * n) ** 0.5 + 0.05
        assert abs(found[:, 1].std() / 0.5 - 1) < 4 / (2 * n) ** 0.5 + 0.05


SAMPLERS = [
    Replacement(AncestralSampler(6, 1.0)),
    Replacement(DPMSolver(6)),
    Replacement(HeunSampler(6)),
    Replacement(PredictorCorrector("ancestral", "none", 6)),
    RePaint(8, 2, 2),
]


@pytest.mark.parametrize("sampler", [*SAMPLERS, Replacement(PredictorCorrector(steps=6))], ids=repr)
def test_the_network_sees_what_is_known(sampler):
    """At the beginning of each step alpha y + sigma z, for a y that the model would never reach."""
    seen = []
    posterior = PosteriorDenoiser(correlated(SIX["vp"], 0.5), FIRST, 0.0)
    y = torch.full((1, 1), 50.0)
    found = sampler(posterior, (2, 2), y=y, callback=lambda step, t, x, x0: seen.append((t, x)), dtype=torch.float64)
    sde = SIX["vp"]
    for t, x in dict(seen).items():  # the last at each time: Heun's method evaluates the end of a step first
        if "leimkuhler" not in repr(sampler) or t == sde.t_min:  # whose steps end with noise
            assert (x[:, 0] - sde.alpha(t) * 50).abs().max() < 7 * sde.sigma(t)
    assert torch.equal(found.x[:, 0], torch.full((2,), 50.0, dtype=torch.float64))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_each_sample_is_its_own(sampler):
    posterior = PosteriorDenoiser(correlated(SIX["vp"], 0.9), FIRST, 0.05)
    y = random(8, 1, seed=3)
    together = sampler(posterior, (8, 2), y=y, dtype=torch.float64)
    alone = sampler(posterior, (1, 2), seeds=[5], y=y[5:6], dtype=torch.float64)
    torch.testing.assert_close(alone.x[0], together.x[5], rtol=1e-9, atol=1e-9)
    assert torch.pdist(together.x).min() > 1e-6
    assert together.gradients == 0


def test_mistakes():
    denoiser = correlated(SIX["vp"], 0.9)
    posterior = PosteriorDenoiser(denoiser, FIRST, 0.0)
    for sampler in (Replacement(AncestralSampler(4)), RePaint(4, 2, 2)):
        with pytest.raises(TypeError, match=r"needs a PosteriorDenoiser.*got the class GaussianDenoiser"):
            sampler(denoiser, (1, 2))
        with pytest.raises(ValueError, match=r"y has shape \[2\], but the operator gives \[1\]"):
            sampler(posterior, (1, 2), y=torch.ones(1, 2))
        with pytest.raises(ValueError, match="give the measurement y="):
            sampler(posterior, (1, 2))
        for operator in (Blur(torch.ones(3), "zero"), Nonlinear(torch.sin)):
            with pytest.raises(ValueError, match="for which the eigenvectors of A A"):
                sampler(PosteriorDenoiser(denoiser, operator, 0.0), (1, 2), y=torch.ones(1, 2))
    for sampler in (ODESampler("rk4", steps=4), SDESampler(steps=4)):
        with pytest.raises(ValueError, match="needs a sampler with steps of a grid"):
            Replacement(sampler)(posterior, (1, 2), y=ONE)
    with pytest.raises(TypeError, match="sampler must be a Sampler"):
        Replacement("ddpm")
    for arguments in ((1,), (10, 10), (10, 0), (10, 2, 0)):
        with pytest.raises(ValueError, match="must be an integer"):
            RePaint(*arguments)


KNOWN = torch.tensor([[1.0]])


def replaced(sampler, noise, n=2000):
    """Draws of a number N(0, 1) of which y = 1 was measured, with a second one beside it."""
    denoiser = PosteriorDenoiser(GaussianDenoiser(VPSDE(), torch.zeros(2), 1.0), Mask(torch.tensor([1, 0])), noise)
    return Replacement(sampler)(denoiser, (n, 2), y=KNOWN).x[:, 0]


def test_a_multistep_corrector_does_not_undo_what_is_replaced():
    """UniPC's second look at a step is of the state before: y would be lost. Its mean, within 4 standard errors."""
    found = [replaced(sampler, 0.5).mean() for sampler in (UniPC(100), DPMSolver(100))]
    assert float((found[0] - found[1]).abs()) < 0.02
    assert float(found[0]) > 0.75  # 0.4 if the corrector undoes it


@pytest.mark.parametrize("sampler", [PredictorCorrector(steps=20), AnnealedLangevin(20)])
def test_langevin_steps_cannot_keep_a_noisy_measurement(sampler):
    """Without noise they can."""
    with pytest.raises(ValueError, match="Langevin steps lead away from it; take noise=0"):
        replaced(sampler, 0.5, 4)
    torch.testing.assert_close(replaced(sampler, 0.0, 4), torch.ones(4), atol=1e-4, rtol=0)
