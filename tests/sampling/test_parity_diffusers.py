"""The same walk as diffusers' schedulers, on the 1000-step linear-beta grid, to 1e-5 with the same noise.

Deliberate differences, switched off here on their side where they have a switch:

- Times: theirs are step numbers 0 to 999; ours are the continuous times of the same alpha-bar, on a path that reaches a
  little beyond t = 1. Their strides start at 900 ("leading") or at 999 ("linspace"); our `BetaTable` strides from 999
  to 0, ends included. Theirs take their tables from a float32 cumulative product (off by 1e-5); here they get ours.
- The end: theirs append a step to sigma = 0, of first order, after the last prediction, which is our `denoise`; DPM and
  UniPC are compared down to the last level (final_sigmas_type="sigma_min").
- Theirs lower the order of the last steps if there are fewer than 15 (lower_order_final); ours do not.
- Theirs clip x0 to [-1, 1] by default in DDPM and DDIM (clip_sample); ours never do.
- Third order of DPM-Solver++: theirs takes half the second divided difference and stays of order 2 even with an exact
  history (measured below); ours takes the whole. SDE form of third order: likewise.
- DPMSolverMultistepScheduler computes its state in float32, ours in the state's type.
- Heun: their state is x / alpha, and they have no churn.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from order_cases import SMOOTH, mixture_case, mixture_flow, slopes, walk
from sampling_cases import latent, mixture

from sde_diffusion.sampling import AncestralSampler, DPMSolver, HeunSampler, Noise, UniPC
from sde_diffusion.sde import VPSDE, BetaTable, NoiseLevels

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[bench]'")

SDE = VPSDE(t_max=1.004)
B = 5


class Chosen(NoiseLevels):
    """Some of the 1000 levels, by their numbers from 0 to 999, increasing."""

    def __init__(self, numbers) -> None:
        self.numbers = torch.as_tensor(numbers)

    def log_snr(self):
        return BetaTable(1000).log_snr()[self.numbers]


def alpha_bar():
    """The table in float64."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def exact_sigmas(numbers, last=None):
    a = alpha_bar()[torch.as_tensor(numbers)]
    sigmas = ((1 - a) / a).sqrt()
    return sigmas if last is None else torch.cat([sigmas, torch.tensor([last], dtype=torch.float64)])


def setting(first=999):
    sde = dataclasses.replace(SDE, t_max=float(SDE.time(BetaTable(1000).log_snr()[first])))
    denoiser, x = mixture(sde), latent(sde, B)[:, :2]
    return denoiser, x, Noise(range(B), (2,), dtype=torch.float64)


def belief(denoiser, x, number, of="x0"):
    return getattr(denoiser(x, SDE.time(BetaTable(1000).log_snr()[number])), of)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_ddim(eta, steps):
    theirs = diffusers.DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = alpha_bar(), torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(steps)
    numbers = theirs.timesteps.tolist()
    denoiser, x, noise = setting(numbers[0])
    sampler = AncestralSampler(steps, eta, Chosen(numbers[::-1]))
    ours = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)
    for step, number in enumerate(numbers):
        eps = belief(denoiser, x, number, "eps")
        z = noise.normal(1 + step)
        x = theirs.step(eps, number, x, eta=eta, variance_noise=z if eta else None).prev_sample
    assert (ours.x - x).abs().max() < 1e-5
    assert ours.nfe == steps


@pytest.mark.parametrize("steps", [2, 10, 100])
def test_ddpm(steps, monkeypatch):
    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    theirs.alphas_cumprod, theirs.one = alpha_bar(), torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(steps)
    numbers = theirs.timesteps.tolist()
    denoiser, x, noise = setting(numbers[0])
    ours = AncestralSampler(steps, 1.0, Chosen(numbers[::-1]))(denoiser, x.shape, latent=x, dtype=torch.float64)
    for step, number in enumerate(numbers):
        draw = noise.normal(1 + step)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, draw=draw, **__: draw)
        x = theirs.step(belief(denoiser, x, number, "eps"), number, x).prev_sample
    assert (ours.x - x).abs().max() < 1e-5


@pytest.mark.parametrize("form", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize(("steps", "order"), [(1, 1), (7, 1), (2, 2), (10, 2), (20, 2)])
def test_dpm_solver(steps, order, form):
    """One, two and more steps of orders 1 and 2 (2M, "midpoint"), deterministic and SDE."""
    denoiser, x, noise = setting()
    numbers = np.linspace(999, 0, steps + 1).round().astype(int).tolist()
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        solver_order=order,
        algorithm_type=form,
        prediction_type="sample",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(timesteps=numbers[:-1])
    theirs.sigmas = exact_sigmas(numbers)
    sde = form.startswith("sde")
    sampler = DPMSolver(steps, order, eta=float(sde), grid=BetaTable(1000), denoise=False)
    ours = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)
    for step, number in enumerate(numbers[:-1]):
        z = noise.normal(1 + step) if sde else None
        x = theirs.step(belief(denoiser, x, number), number, x, variance_noise=z).prev_sample
    assert (ours.x - x).abs().max() < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
def test_unipc(steps, order):
    """Their "bh2"."""
    denoiser, x, _ = setting()
    theirs = diffusers.UniPCMultistepScheduler(
        num_train_timesteps=1000,
        solver_order=order,
        solver_type="bh2",
        prediction_type="sample",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(steps)
    numbers = theirs.timesteps.tolist()
    theirs.sigmas = exact_sigmas([*numbers, 0])
    sampler = UniPC(steps, order, grid=BetaTable(1000), denoise=False)
    ours = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)
    for number in numbers:
        x = theirs.step(belief(denoiser, x, number), number, x).prev_sample
    assert (ours.x - x).abs().max() < 1e-5


@pytest.mark.parametrize("levels", [2, 10, 38])
def test_heun(levels):
    """Down to sigma = 0: levels - 1 steps of two passes, and one of Euler's."""
    denoiser, x, _ = setting()
    theirs = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="sample"
    )
    theirs.set_timesteps(levels)
    numbers = theirs.timesteps.int().tolist()
    each = exact_sigmas(numbers[:1] + numbers[1::2], last=0.0)
    theirs.sigmas = torch.cat([each[:1], each[1:-1].repeat_interleave(2), each[-1:]])
    ours = HeunSampler(levels, grid=BetaTable(1000))(denoiser, x.shape, latent=x, dtype=torch.float64)
    y = x / alpha_bar()[999].sqrt()
    for t, number in zip(theirs.timesteps, numbers, strict=True):
        y = theirs.step(belief(denoiser, y * alpha_bar()[number].sqrt(), number), t, y).prev_sample
    assert ours.nfe == len(numbers)
    assert (ours.x - y).abs().max() < 1e-5


def third_order_errors():
    """Errors of their third-order update, of theirs with the other half added, and of ours, each with exact history."""
    sde, t_end = walk("vp")
    denoiser, x, exact = mixture_case(sde, t_end)
    parts = (denoiser.means.numpy(), denoiser.stds.numpy(), denoiser.log_weights.numpy())
    errors = {"theirs": [], "theirs and the other half": [], "ours": []}
    for n in (24, 48, 96, 192):
        times = SMOOTH.times(sde, n + 1, t_end)
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        r = (sigma / alpha).tolist()
        start = [x, *(a * torch.from_numpy(mixture_flow(*parts, (x / alpha[0]).numpy(), r[0], to))
                      for a, to in zip(alpha[1:3], r[1:3], strict=True))]  # fmt: skip
        known = [denoiser(state, t).x0 for state, t in zip(start[:2], times[:2], strict=True)]
        theirs = diffusers.DPMSolverMultistepScheduler(solver_order=3, prediction_type="sample")
        theirs.set_timesteps(n)
        theirs.sigmas = sigma / alpha
        weights = DPMSolver(n, 3, grid=SMOOTH, denoise=False, t_end=t_end).coefficients(sde, times)
        for which, found in errors.items():
            state, beliefs = start[2], [*known]
            for step in range(2, n):
                beliefs.append(denoiser(state, times[step]).x0)
                if which == "ours":
                    b = weights.from_predictions[step]
                    state = weights.from_x[step] * state + sum(
                        w * m for w, m in zip(b, reversed(beliefs[-3:]), strict=True)
                    )
                    continue
                theirs._step_index = step
                half = alpha[step + 1] * second_difference(sde, times, step, beliefs) * (which != "theirs")
                state = theirs.multistep_dpm_solver_third_order_update(beliefs, sample=state) + half
            found.append(float((state - exact).square().mean().sqrt()))
    return errors


def second_difference(sde, times, step, beliefs):
    """int_0^1 h e^(-h (1 - tau)) tau^2 dtau / 2 times the second divided difference, in units of this step."""
    ell = 0.5 * sde.log_snr(times)
    h, h1, h2 = (float(ell[step + 1 - k] - ell[step - k]) for k in range(3))
    first, before = (beliefs[-1] - beliefs[-2]) / h1, (beliefs[-2] - beliefs[-3]) / h2
    return (0.5 - 1 / h - math.expm1(-h) / h**2) * h**2 * (first - before) / (h1 + h2)


def test_their_third_order_is_of_order_two():
    """Exact beliefs at the first three points, so that nothing is the start's doing."""
    errors = third_order_errors()
    order = {which: slopes(found)[-2:] for which, found in errors.items()}
    assert all(abs(slope - 2) < 0.1 for slope in order["theirs"]), order
    assert all(abs(slope - 3) < 0.3 for slope in order["theirs and the other half"]), order
    assert all(abs(slope - 3) < 0.3 for slope in order["ours"]), order
    assert abs(errors["theirs and the other half"][0] / errors["ours"][0] - 1) < 1e-6
