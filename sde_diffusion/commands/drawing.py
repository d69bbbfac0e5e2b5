"""Draw the samples that a command's configuration asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import override_hint, resolved
from sde_diffusion.commands.conditions import digests
from sde_diffusion.commands.loading import denoiser_of
from sde_diffusion.commands.sampling_run import Sampled, sample_in_batches
from sde_diffusion.config import build
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)


def draw(
    cfg: DictConfig, model: GenerativeModel, conditions: Mapping[str, Tensor], device: torch.device, folder: Path
) -> Sampled:
    """Draw the samples that a configuration asks for, in batches that are stored as they are finished.

    Args:
        cfg: A configuration with ckpt, sampler, guidance, n, seed, batch_size and overwrite.
        model: The model of `cfg.ckpt`.
        conditions: Conditions of the samples, [n, *] each.
        device: Where to sample.
        folder: Where the batches are stored until `files.forget` removes them.

    Returns:
        The samples, in files.

    Raises:
        UserError: If a value is not allowed, or the folder has unfinished batches of other samples.
    """
    guidance = {"guidance": resolved(cfg.guidance), **({"guides": model.guides} if model.guides else {})}
    return draw_seeds(cfg, model, conditions, check_seeds(cfg), guidance, device, folder)


def draw_seeds(
    cfg: DictConfig,
    model: GenerativeModel,
    conditions: Mapping[str, Tensor],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    device: torch.device,
    folder: Path,
) -> Sampled:
    """Draw samples of a model with given seeds; see `draw`.

    Args:
        cfg: A configuration with sampler, n, seed, batch_size and overwrite.
        model: The model.
        conditions: See `draw`.
        seeds: A function of cfg.seed and cfg.n.
        settings: What the samples depend on apart from the checkpoint, sampler, n, seed and conditions.
        device: See `draw`.
        folder: See `draw`.
    """
    plan = {
        "checkpoint": model.digest,
        "sampler": resolved(cfg.sampler),
        **settings,
        "n": cfg.n,
        "seed": cfg.seed,
        "conditions": digests(conditions),
    }
    sampler, denoiser = build(plan["sampler"]), denoiser_of(model)
    try:
        return sample_in_batches(
            sampler,
            denoiser,
            model.data["shape"],
            seeds,
            cfg.batch_size,
            {name: values.to(device) for name, values in conditions.items()},
            folder=folder,
            plan=plan,
            overwrite=cfg.overwrite,
            device=device,
        )
    except ValueError as error:  # from checks that a sampler can only make with the model's path
        raise UserError(f"{error}{override_hint('sampler')}") from error


def check_seeds(cfg: DictConfig) -> range:
    """The seeds of n samples, seed, seed + 1, ...

    Args:
        cfg: A configuration with n and seed.

    Raises:
        UserError: If a seed exceeds 64 bits.
    """
    if cfg.seed + cfg.n > 2**63:
        raise UserError(f"seeds must lie below 2^63; got seed={cfg.seed} for n={cfg.n} samples")
    return range(cfg.seed, cfg.seed + cfg.n)


def first(batches: Iterator[Tensor], n: int) -> Tensor:
    """The first n samples, or all if there are fewer, of batches [B, *shape]."""
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch)
        if sum(map(len, found)) >= n:
            break
    return torch.cat(found)[:n]
