"""What the tests of orders share: walks of six paths, an independent reference for the mixture's flow, the samplers."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from sampling_cases import MEAN, SIX, STD, gaussian, gaussian_flow, mixture
from scipy.integrate import solve_ivp
from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling import AncestralSampler, DEISSampler, DPMSolver, HeunSampler, Sampler, UniPC
from sde_diffusion.sde import SDE, UniformLogSNR

SMOOTH = UniformLogSNR()
"""The grid on which the generic order shows early; the samplers with their own default get it too."""


def walk(name: str, noisy: float | None = 1.0, clean: float = 4.0) -> tuple[SDE, float]:
    """A path that begins at log-SNR `noisy` (its own t_max if None), and the time of log-SNR `clean`.

    Begun where the belief changes as fast as anywhere, a walk's first step counts as much as any other; from the prior
    a start of low order is hidden behind the factor alpha(t_max).
    """
    sde = SIX[name]
    if noisy is not None:
        sde = dataclasses.replace(sde, t_max=float(sde.time(noisy)))
    return sde, float(sde.time(clean))


def scales(sde: SDE, t: float) -> tuple[float, float]:
    return float(sde.alpha(t)), float(sde.sigma(t))


def gaussian_case(sde: SDE, t_end: float) -> tuple[Denoiser, Tensor, Tensor]:
    """Denoiser, states drawn from the marginal at t_max, [16, 3], and where the flow takes them."""
    alpha, sigma = scales(sde, sde.t_max)
    z = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = alpha * MEAN + ((alpha * STD) ** 2 + sigma**2).sqrt() * z
    return gaussian(sde), x, gaussian_flow(sde, x, sde.t_max, t_end)


def mixture_case(sde: SDE, t_end: float) -> tuple[Denoiser, Tensor, Tensor]:
    """Likewise for the mixture, [16, 2]; reference to 1e-12 by SciPy."""
    denoiser = mixture(sde)
    generator = torch.Generator().manual_seed(3)
    alpha, sigma = scales(sde, sde.t_max)
    noise = torch.randn(16, 2, dtype=torch.float64, generator=generator)
    x = alpha * denoiser.sample(16, generator) + sigma * noise
    end_alpha, end_sigma = scales(sde, t_end)
    parts = (denoiser.means.numpy(), denoiser.stds.numpy(), denoiser.log_weights.numpy())
    y = mixture_flow(*parts, (x / alpha).numpy(), sigma / alpha, end_sigma / end_alpha)
    return denoiser, x, end_alpha * torch.from_numpy(y)


def mixture_flow(means, stds, log_weights, y, start: float, end: float) -> np.ndarray:
    """The probability flow in y = x / alpha from sigma / alpha = start to end: dy / d log r = y - E[x0 | y, r]."""

    def drift(log_r, flat):
        y = flat.reshape(-1, means.shape[1])
        variance = stds**2 + math.exp(2 * log_r)
        offset = y[:, None] - means
        logits = log_weights - 0.5 * (offset**2 / variance + np.log(variance)).sum(2)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return (y - (p[:, :, None] * (means + stds**2 / variance * offset)).sum(1)).ravel()

    span = (math.log(start), math.log(end))
    solution = solve_ivp(drift, span, y.ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
    return solution.y[:, -1].reshape(y.shape)


def options(t_end: float, grid=SMOOTH) -> dict:
    return {"grid": grid, "denoise": False, "t_end": t_end}


DETERMINISTIC: dict[str, tuple[float, Callable[..., Sampler]]] = {
    "ddim": (1, lambda n, **o: AncestralSampler(n, **o)),
    "dpm1": (1, lambda n, **o: DPMSolver(n, 1, **o)),
    "dpm2": (2, lambda n, **o: DPMSolver(n, 2, **o)),
    "dpm3": (2, lambda n, **o: DPMSolver(n, 3, **o)),
    "dpm3 singlestep start": (3, lambda n, **o: DPMSolver(n, 3, singlestep_start=True, **o)),
    "dpm2 singlestep": (2, lambda n, **o: DPMSolver(n, 2, singlestep=True, **o)),
    "dpm3 singlestep": (3, lambda n, **o: DPMSolver(n, 3, singlestep=True, **o)),
    "unipc1": (2, lambda n, **o: UniPC(n, 1, **o)),
    "unipc2": (3, lambda n, **o: UniPC(n, 2, **o)),
    "unipc3": (3, lambda n, **o: UniPC(n, 3, **o)),
    "deis1": (1, lambda n, **o: DEISSampler(n, 1, **o)),
    "deis2": (2, lambda n, **o: DEISSampler(n, 2, **o)),
    "deis3": (2, lambda n, **o: DEISSampler(n, 3, **o)),
    "deis4": (2, lambda n, **o: DEISSampler(n, 4, **o)),
    "heun": (2, lambda n, **o: HeunSampler(n, **o)),
}
"""Name -> (global order with the start it has, sampler of n passes; of n steps for Heun)."""


def error(sampler: Sampler, denoiser: Denoiser, x: Tensor, exact: Tensor) -> float:
    """Root mean square of the walk's end against where it should be."""
    return float((sampler(denoiser, x.shape, latent=x, dtype=torch.float64).x - exact).square().mean().sqrt())


def slopes(errors) -> list[float]:
    """Measured orders, one for each doubling."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]
