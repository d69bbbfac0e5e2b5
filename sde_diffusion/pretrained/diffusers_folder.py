"""Denoisers written as folders that diffusers loads: `DDPMPipeline` and `ScoreSdeVePipeline`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_diffusion.config import find_class, is_description
from sde_diffusion.denoiser import PARAMETERIZATIONS, NetworkDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.nn import UNet
from sde_diffusion.nn.features import FORMER_NAMES, features
from sde_diffusion.pretrained import own
from sde_diffusion.pretrained.description import Description, Settings
from sde_diffusion.pretrained.diffusers_unet import other_groups, settings_of, table_for
from sde_diffusion.pretrained.names import Weights, exported
from sde_diffusion.pretrained.schedulers import PREDICTIONS

STEPS = 1000
"""Steps of the table that is made of a path."""

VERSION = "0.31.0"
IGNORED = {"conditions", "n_classes", "learned_null", "stem_channels", "channels", "channel_mult", "norm_groups"}
"""Settings that are compared in another way, or hold no more than others do."""


def write(folder: Path, description: Description, denoiser: NetworkDenoiser, weights: Weights) -> None:
    """Write a denoiser as a pipeline of diffusers.

    Args:
        folder: The folder, which is made.
        description: What the denoiser was made of.
        denoiser: The denoiser.
        weights: Its network's weights.

    Raises:
        UserError: If diffusers has no such network or schedule; nothing is written then.
    """
    scheduler = scheduler_of(denoiser, clip=description.data.get("levels") is not None)
    config = network_config(description.denoiser["network"], denoiser.network)
    if config["out_channels"] > config["in_channels"]:
        scheduler["variance_type"] = "learned_range"
    names = exported(weights, table_for(settings_of(config, folder)))
    pipeline = "ScoreSdeVePipeline" if scheduler["_class_name"] == "ScoreSdeVeScheduler" else "DDPMPipeline"
    index = {
        "_class_name": pipeline,
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    own.write_weights(folder / "unet" / "diffusion_pytorch_model.safetensors", names)
    own.write_json(folder / "unet" / "config.json", config)
    own.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    own.write_json(folder / "model_index.json", index)


def network_config(settings: Mapping[str, Any], network: nn.Module) -> Settings:
    """diffusers' configuration of a network, if reading it again gives the same network.

    Raises:
        UserError: If it is not one of diffusers'; the message has the settings in which its nearest differs.
    """
    if not isinstance(network, UNet):
        raise UserError(f"a folder of diffusers is written of a UNet, and this network is a {type(network).__name__}")
    given = _complete(settings)
    widths = [given["channels"] * factor for factor in given["channel_mult"]]
    fourier = given["embedding"] == "gaussian_fourier"
    embedding: Mapping[str, Any] = given["embedding"] if is_description(given["embedding"]) else {}
    family = "Skip" if fourier else ""
    if fourier and (strange := other_groups(widths[resolution] for resolution in given["attention"])):
        raise UserError(f"diffusers has no such U-Net. Its NCSN++ has {', '.join(strange)}; network=ncsnpp_256 fits")
    down = [f"{'Attn' * (resolution in given['attention'])}{family}DownBlock2D" for resolution in range(len(widths))]
    groups = {part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)}
    table = network.conditioning.embeddings
    rows = len(table["label"].weight) if "label" in table else None  # type: ignore[arg-type]
    sides = list(network.shape[1:])
    config = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": sides[0] if sides[0] == sides[-1] else sides,
        "in_channels": network.shape[0],
        "out_channels": network.shape[0] * (2 if given["learned_variance"] else 1),
        "center_input_sample": fourier and not given["unit_range"],
        "time_embedding_type": "fourier" if fourier else "positional",
        "time_embedding_dim": given["embedding_dim"],
        "freq_shift": int(bool(embedding.get("endpoint", True))),
        "flip_sin_to_cos": bool(embedding.get("cos_first", False)),
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "layers_per_block": given["blocks"],
        "mid_block_scale_factor": math.sqrt(2) if fourier else 1,
        "downsample_padding": 0 if given["resampling"] == "convolution" else 1,
        "dropout": given["dropout"],
        "attention_head_dim": given["head_channels"],
        "norm_num_groups": None if fourier else min(groups),
        "norm_eps": given["norm_eps"],
        "add_attention": bool(given["attention"]),
        "num_class_embeds": rows,
    }
    _check_same(given, _complete(settings_of(config, "its nearest network in diffusers")), network, groups)
    return config


def _check_same(given: Settings, back: Settings, network: UNet, groups: set[int]) -> None:
    """Check that reading a configuration of diffusers again, `back`, gives the same network."""
    other = [name for name in given if name not in IGNORED and given[name] != back[name]]
    other += ["norm_groups"] * (len(groups) > 1 and given["embedding"] != "gaussian_fourier")
    other += ["stem_channels"] * (network.input.out_channels != given["channels"] * given["channel_mult"][0])
    other += ["head_channels"] * bool(_uneven(given))
    strange = sorted(set(network.conditioning.conditions) - {"label"})
    if other or strange:
        needed = [f"{name}={_short(back[name])} (here {_short(given[name])})" for name in other if name in back]
        needed += [f"no other condition than label (here {name})" for name in strange]
        raise UserError(
            f"diffusers has no such U-Net. The nearest that it has needs {', '.join(needed)}; network=ddpm and "
            "network=ncsnpp_256, of any size, are U-Nets of diffusers, and format='safetensors' writes any network"
        )


def scheduler_of(denoiser: NetworkDenoiser, clip: bool) -> Settings:
    """diffusers' configuration of a path, prediction, time index and input scale.

    On a variance-preserving path, the table has alpha_bar_i = alpha^2 at the time where the network is told i, so that
    it is exact for DDPM's tables and for StepNumber.

    Args:
        denoiser: The denoiser.
        clip: Whether diffusers' samplers clip predictions of x0 to [-1, 1].

    Raises:
        UserError: If diffusers has no such combination.
    """
    sde, t = denoiser.sde, torch.linspace(denoiser.sde.t_min, denoiser.sde.t_max, 33, dtype=torch.float64)
    name = next((key for key, kind in PARAMETERIZATIONS.items() if type(denoiser.parameterization) is kind), "its own")
    told = denoiser.noise_conditioning(sde, t)
    unscaled = torch.allclose(denoiser.input_scale(sde, t, denoiser.sigma_data), torch.ones_like(t))
    preserving = torch.allclose(sde.alpha(t).square() + sde.sigma(t).square(), torch.ones_like(t))
    numbered = abs(float(told[0])) < 0.5 and abs(float(told[-1]) - (STEPS - 1)) < 0.5 and bool((told.diff() > 0).all())
    kinds = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if unscaled and preserving and numbered and name in kinds:
        return {
            "_class_name": "DDPMScheduler",
            "_diffusers_version": VERSION,
            "num_train_timesteps": STEPS,
            "trained_betas": _betas(denoiser),
            "prediction_type": kinds[name],
            "clip_sample": clip,
        }
    exploding = torch.allclose(sde.alpha(t), torch.ones_like(t)) and torch.allclose(told, (sde.sigma(t) / 2).log())
    if unscaled and exploding and name == "score":
        return {
            "_class_name": "ScoreSdeVeScheduler",
            "_diffusers_version": VERSION,
            "num_train_timesteps": 2000,
            "sigma_min": float(sde.sigma(sde.t_min)) / 2,
            "sigma_max": float(sde.sigma(sde.t_max)) / 2,
        }
    raise UserError(
        f"diffusers has no schedule for this denoiser ({denoiser.extra_repr()}): its networks see x_t itself "
        "(denoiser.input_scale=none, or sigma_data=1 on a variance-preserving path), are told step numbers 0 ... 999 "
        "(denoiser.noise_conditioning=step), and predict eps, x0 or v; format='safetensors' writes any denoiser"
    )


def _betas(denoiser: NetworkDenoiser) -> list[float]:
    """beta_i = 1 - alpha_bar_i / alpha_bar_(i-1), at the times where the network is told i, found by bisection."""
    sde, steps = denoiser.sde, torch.arange(STEPS, dtype=torch.float64)
    low, high = torch.full_like(steps, sde.t_min), torch.full_like(steps, sde.t_max)
    for _ in range(60):
        middle = (low + high) / 2
        early = denoiser.noise_conditioning(sde, middle) < steps
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    falls = (2 * sde.log_alpha((low + high) / 2)).diff(prepend=torch.zeros(1, dtype=torch.float64))
    found: list[float] = (-torch.expm1(falls)).tolist()
    return found


def _complete(settings: Mapping[str, Any]) -> Settings:
    """The settings of a U-Net with its defaults, in one form for those that have several."""
    parameters = inspect.signature(find_class(str(settings["_target_"]))).parameters
    whole = {name: one.default for name, one in parameters.items()} | dict(settings)
    whole = {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}
    dim = whole["feature_dim"] or whole["embedding_dim"]
    if isinstance(whole["embedding"], str):
        whole["embedding"] = FORMER_NAMES.get(whole["embedding"], whole["embedding"])
    if whole["embedding"] in ("timestep", "timestep_cos"):
        named = features(whole["embedding"], dim)
        whole["embedding"] = {
            "_target_": "sde_diffusion.nn.TimestepEmbedding",
            "dim": dim,
            "cos_first": named.cos_first,
            "endpoint": named.endpoint,
        }
    if not (whole["n_classes"] or whole["conditions"]):
        whole["condition_place"] = "output"  # of nothing
    whole["feature_dim"], whole["levels"] = dim, whole["levels"] if whole["octaves"] else None
    return whole


def _uneven(given: Settings) -> bool:
    """Whether the heads of some attention don't have `head_channels` channels."""
    widths = [given["channels"] * factor for factor in given["channel_mult"]]
    attending = {*given["attention"], len(widths) - 1}
    most = given["head_channels"]
    return most is not None and any(widths[resolution] % most for resolution in attending)


def _short(value: Any) -> Any:
    if value is None:
        return "null"
    return value.get("_target_", value) if isinstance(value, Mapping) else value
