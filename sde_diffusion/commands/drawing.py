"""Draw the samples that a command's configuration asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Samples

if TYPE_CHECKING:
    from sde_diffusion.commands.editing import Edit
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)


def draw(
    cfg: DictConfig,
    model: GenerativeModel,
    conditions: Mapping[str, Tensor],
    device: torch.device,
    folder: Path,
    edit: Edit | None = None,
) -> Sampled:
    """Draw the samples that a configuration asks for, in batches that are stored as they are finished.

    Args:
        cfg: A configuration with ckpt, sampler, guidance, n, seed, batch_size and overwrite.
        model: The model of `cfg.ckpt`.
        conditions: Conditions of the samples, one for each.
        device: Where to sample.
        folder: Where the batches are stored until `files.forget` removes them.
        edit: Items to begin with, for each of which n samples are drawn; None: noise.

    Returns:
        The samples, in files.

    Raises:
        UserError: If a value is not allowed, or the folder has unfinished batches of other samples.
    """
    plan = {
        "checkpoint": model.digest,
        "sampler": resolved(cfg.sampler),
        "guidance": resolved(cfg.guidance),
        **({"guides": model.guides} if model.guides else {}),
        "n": cfg.n,
        "seed": cfg.seed,
        "conditions": digests(conditions),
    }
    sampler, denoiser, known = build(plan["sampler"]), denoiser_of(model), dict(conditions)
    seeds = check_seeds(cfg, 1 if edit is None else len(edit.given))
    check_guided(model, conditions, len(seeds))
    if edit is not None:
        plan["edit"] = {"t_start": edit.t_start, **digests({"given": edit.given})}
        sampler, known = edit.on(sampler), {**known, "latent": edit.each(cfg.n)}
    return draw_in_batches(cfg, model, sampler, denoiser, seeds, known, device, folder, plan)


def draw_in_batches(
    cfg: DictConfig,
    model: GenerativeModel,
    sampler: Callable[..., Samples],
    denoiser: Denoiser,
    seeds: Sequence[int],
    conditions: Mapping[str, Tensor],
    device: torch.device,
    folder: Path,
    plan: Mapping[str, Any],
) -> Sampled:
    """Draw samples as `sample_in_batches` does, of a model's shape, with a command's batch_size and overwrite.

    Raises:
        UserError: Also if the sampler does not support the model's path.
    """
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


def check_guided(model: GenerativeModel, conditions: Mapping[str, Tensor], n: int) -> None:
    """Check that a model's guidance works with the conditions of n samples.

    Raises:
        UserError: If it needs one that is missing, or another value.
    """
    try:
        denoiser_of(model).check_conditions(conditions, n, torch.device("cpu"))
    except ValueError as error:
        raise UserError(f"{error}{override_hint('guidance')}") from error


def check_seeds(cfg: DictConfig, items: int = 1) -> range:
    """The seeds of n samples for each of some items: seed, seed + 1, ...

    Args:
        cfg: A configuration with n and seed.
        items: Number of items.

    Raises:
        UserError: If a seed exceeds 64 bits.
    """
    if cfg.seed + items * cfg.n > 2**63:
        each = f" for each of {items} items" if items > 1 else ""
        raise UserError(f"seeds must lie below 2^63; got seed={cfg.seed} for n={cfg.n} samples{each}")
    return range(cfg.seed, cfg.seed + items * cfg.n)


def first(batches: Iterator[Tensor], n: int) -> Tensor:
    """The first n samples, or all if there are fewer, of batches [B, *shape]."""
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch)
        if sum(map(len, found)) >= n:
            break
    return torch.cat(found)[:n]
