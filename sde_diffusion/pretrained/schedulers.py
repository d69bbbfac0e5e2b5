"""Schedules of diffusers as paths: tables of betas, and the noise levels of NCSN++."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.pretrained.description import Settings

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""diffusers' names of what a network predicts, and ours."""

DEFAULTS: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}

_EVEN = {"timestep_spacing": "linspace"}
_LATENT = {**_EVEN, "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, Settings] = {
    "DDPM": {},
    "DDPMParallel": {},
    "DDIM": {},
    "DDIMParallel": {},
    "PNDM": {},
    "DPMSolverMultistep": _EVEN,
    "DPMSolverSinglestep": _EVEN,
    "UniPCMultistep": _EVEN,
    "DEISMultistep": _EVEN,
    "SASolver": _EVEN,
    "EulerDiscrete": _EVEN,
    "EulerAncestralDiscrete": _EVEN,
    "LMSDiscrete": _EVEN,
    "HeunDiscrete": _LATENT,
    "KDPM2Discrete": _LATENT,
    "KDPM2AncestralDiscrete": _LATENT,
    "DPMSolverSDE": _LATENT,
}
"""diffusers' schedulers of a table of betas, by name without "Scheduler": where their defaults differ from DDPM's."""

SMALLEST = 2.0**-24
"""The most that replaces the last alpha_bar of a table that ends without signal (zero terminal SNR)."""


@dataclass(frozen=True)
class Diffusion:
    """The settings that follow from a schedule."""

    sde: Settings
    prediction: str
    noise_conditioning: Settings
    grid: Settings | None = None


def linear(n: int, start: float, end: float) -> Tensor:
    """betas = linspace(start, end, n), float64."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def scaled_linear(n: int, start: float, end: float) -> Tensor:
    """betas = linspace(sqrt(start), sqrt(end), n)^2: Stable Diffusion's."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), n, dtype=torch.float64).square()


def squared_cosine(n: int, start: float, end: float) -> Tensor:
    """beta_i = min(0.999, 1 - f((i + 1) / n) / f(i / n)), f(t) = cos^2((t + 0.008) / 1.008 pi / 2) (improved DDPM)."""
    t = torch.arange(n + 1, dtype=torch.float64) / n
    f = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def sigmoid(n: int, start: float, end: float) -> Tensor:
    """betas = start + (end - start) sigmoid(linspace(-6, 6, n))."""
    return torch.linspace(-6, 6, n, dtype=torch.float64).sigmoid() * (end - start) + start


TABLES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": squared_cosine,
    "sigmoid": sigmoid,
}
"""The tables of betas, by diffusers' names."""


def without_terminal_signal(alphas_bar: Tensor) -> Tensor:
    """The zero-terminal-SNR table: sqrt(abar) shifted to end at 0, and scaled to begin where it did.

    References:
        Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    root = alphas_bar.sqrt()
    scaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return scaled.square()


def table_of(config: Mapping[str, Any], path: object) -> Tensor:
    """alpha_bar_i = prod_{j <= i} (1 - beta_j) of a scheduler's configuration, [N], float64.

    Raises:
        UserError: If the schedule is unknown or no table.
    """
    config = _with_defaults(config)
    name, betas = config["beta_schedule"], config.get("trained_betas")
    if betas is None and name not in TABLES:
        raise UserError(f"{path}: beta_schedule={name} is not known; those that are: {', '.join(TABLES)}")
    try:
        if betas is None:
            betas = TABLES[name](config["num_train_timesteps"], config["beta_start"], config["beta_end"])
        betas = torch.as_tensor(betas, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its betas are not numbers ({error})") from error
    if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):
        raise UserError(f"{path}: its betas must be two or more numbers in (0, 1]")
    alphas_bar = (1 - betas).cumprod(0)
    return without_terminal_signal(alphas_bar) if config.get("rescale_betas_zero_snr") else alphas_bar


def diffusion_of(config: Mapping[str, Any], path: object) -> Diffusion:
    """Path, prediction and time index of a scheduler's configuration.

    A scheduler is known by its `_class_name`; without one, it is DDPM's.

    A table of linear betas is on DDPM's path, VP with beta_min = N beta_1 and beta_max = N beta_N, others on the cosine
    path between their ends: a network of a table depends on the noise level alone, and so do all variance-preserving
    paths through these levels.

    Raises:
        UserError: If the scheduler or its table is unknown.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    if name.removesuffix("Scheduler") not in SCHEDULERS:
        known = ", ".join(f"{one}Scheduler" for one in SCHEDULERS)
        raise UserError(f"{path} is of {name}, which has no table of betas that is known; those that have: {known}")
    alphas_bar = table_of(config, path)
    config = _with_defaults(config)
    no_signal = float(alphas_bar[-1]) <= 0
    if no_signal:  # log-SNR is minus infinity there, and must be finite
        alphas_bar[-1] = min(SMALLEST, float(alphas_bar[-2]) / 4)
    kind = config["prediction_type"]
    if kind not in PREDICTIONS:
        raise UserError(f"{path}: prediction_type={kind} is not known; those that are: {', '.join(PREDICTIONS)}")
    if kind == "epsilon" and no_signal:
        raise UserError(
            f"{path}: the schedule ends without signal (zero terminal SNR), where a prediction of the noise says "
            "nothing about the data: such networks predict v_prediction or sample"
        )
    table = alphas_bar.tolist()
    numbers = {"_target_": "sde_diffusion.denoiser.TableStep", "alphas_bar": table}
    grid = {
        "_target_": "sde_diffusion.sde.NoiseTable",
        "alphas_bar": table,
        "spacing": config["timestep_spacing"],
        "offset": config.get("steps_offset") or 0,
    }
    is_linear = config["beta_schedule"] == "linear" and config.get("trained_betas") is None
    rescaled = config.get("rescale_betas_zero_snr")
    sde = _vp(config, table) if is_linear and not rescaled else _cosine(table)
    return Diffusion(sde, PREDICTIONS[kind], numbers, grid)


def _with_defaults(config: Mapping[str, Any]) -> Settings:
    kind = str(config.get("_class_name", "DDPMScheduler")).removesuffix("Scheduler")
    return {**DEFAULTS, **SCHEDULERS.get(kind, {}), **config}


def exploding(sigma_min: float, sigma_max: float) -> Diffusion:
    """Path and time index of NCSN++ for images on [0, 1], as one for images on [-1, 1], where noise is twice that.

    The network is told log sigma on [0, 1], and its output F is sigma times the score on both: score = F / sigma.
    """
    sde = {"_target_": "sde_diffusion.sde.VESDE", "sigma_min": 2.0 * sigma_min, "sigma_max": 2.0 * sigma_max}
    return Diffusion(sde, "score", {"_target_": "sde_diffusion.denoiser.LogNoiseLevel", "factor": 0.5})


def _vp(config: Mapping[str, Any], table: list[float]) -> Settings:
    from sde_diffusion.sde import VPSDE

    n = len(table)
    path = VPSDE(n * config["beta_start"], n * config["beta_end"], t_max=2.0)
    ends = path.time(torch.logit(torch.tensor([table[0], table[-1]], dtype=torch.float64)))
    return {
        "_target_": "sde_diffusion.sde.VPSDE",
        "beta_min": path.beta_min,
        "beta_max": path.beta_max,
        "t_min": float(ends[0]),
        "t_max": float(ends[1]),
    }


def _cosine(table: list[float]) -> Settings:
    ends = torch.logit(torch.tensor([table[0], table[-1]], dtype=torch.float64)).tolist()
    return {"_target_": "sde_diffusion.sde.CosineVPSDE", "log_snr_max": ends[0], "log_snr_min": ends[1]}
