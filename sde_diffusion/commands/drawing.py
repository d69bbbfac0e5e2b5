"""Draw the samples that a command's configuration asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.checks import check_kind
from sde_diffusion.commands.app import is_overridden, override_hint, resolved
from sde_diffusion.commands.conditions import digests
from sde_diffusion.commands.loading import walks_on_data
from sde_diffusion.commands.sampling_run import Sampled, sample_in_batches
from sde_diffusion.commands.tuned_grids import sampler_settings, with_placeholder
from sde_diffusion.config import build
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
    latents: bool = False,
) -> Sampled:
    """Draw the samples that a configuration asks for, in batches that are stored as they are finished.

    Args:
        cfg: A configuration with ckpt, sampler, guidance, decode, n, seed, batch_size and overwrite.
        model: The model of `cfg.ckpt`.
        conditions: Conditions of the samples, one for each.
        device: Where to sample.
        folder: Where the batches are stored until `files.forget` removes them.
        edit: Items to begin with, for each of which n samples are drawn; None: noise.
        latents: Also store the latent variables, z_1 first, as z_1, z_2, ...

    Returns:
        The samples, in files.

    Raises:
        UserError: If a value is not allowed, or the folder has unfinished batches of other samples.
    """
    model.decode_as = None if model.decode_as is None else cfg.decode
    plan = {
        "checkpoint": model.digest,
        "sampler": None if model.denoiser is None else sampler_settings(cfg, model),
        "guidance": resolved(cfg.guidance),
        **({"guides": model.guides} if model.guides else {}),
        "n": cfg.n,
        "seed": cfg.seed,
        "conditions": digests(conditions),
        **({} if model.decode_as is None else {"decode": model.decode_as}),
        **({"latents": True} if latents else {}),
    }
    if model.decode_as is not None:
        words = {"mean": "is the mean of p(x | z)", "draw": "is drawn from p(x | z)"}[model.decode_as]
        log.info("each of the samples %s", words)
    sampler, known = build(plan["sampler"]), dict(conditions)
    seeds = check_seeds(cfg, 1 if edit is None else len(edit.given))
    check_guided(model, conditions, len(seeds))
    if edit is not None:
        plan["edit"] = {"t_start": edit.t_start, **digests({"given": edit.given})}
        sampler, known = edit.on(sampler), {**known, "latent": edit.each(cfg.n)}
    return draw_in_batches(cfg, model, sampler, seeds, known, device, folder, plan, latents)


def draw_in_batches(
    cfg: DictConfig,
    model: GenerativeModel,
    sampler: Callable[..., Samples],
    seeds: Sequence[int],
    conditions: Mapping[str, Tensor],
    device: torch.device,
    folder: Path,
    plan: Mapping[str, Any],
    latents: bool = False,
) -> Sampled:
    """Draw a model's samples as `sample_in_batches` does, with a command's batch_size and overwrite.

    Raises:
        UserError: Also if the sampler does not support the model's path.
    """
    try:
        return sample_in_batches(
            partial(_drawn, model, sampler),
            model.denoiser,
            model.data["shape"],
            seeds,
            cfg.batch_size,
            {name: values.to(device) for name, values in conditions.items()},
            _with_latents if latents else lambda drawn: {"x": drawn.x},
            in_memory=["levels"] if latents else [],
            folder=folder,
            plan=plan,
            overwrite=cfg.overwrite,
            device=device,
        )
    except ValueError as error:  # from checks that a sampler can only make with the model's path
        raise UserError(f"{error}{override_hint('sampler')}") from error


def _drawn(model: GenerativeModel, sampler: Callable[..., Samples], *arguments: Any, **options: Any) -> Samples:
    found = model.draw_samples(sampler, *arguments, **options)
    assert found is not None  # checked by `check_draws`
    return found


def _with_latents(drawn: Samples) -> dict[str, Tensor]:
    latents = {f"z_{level}": z for level, z in enumerate(drawn.latents or (), 1)}
    return {"x": drawn.x, **latents, "levels": torch.tensor(len(latents))}


def check_draws(cfg: DictConfig, model: GenerativeModel, latents: bool = False) -> None:
    """Check that a model draws samples, and that the settings of how fit it.

    Args:
        cfg: A configuration with ckpt, sampler and decode.
        model: The model of `cfg.ckpt`.
        latents: Whether its latent variables are asked for.

    Raises:
        UserError: If it draws none, or a setting is for another kind of model.
    """
    cascaded = cfg.get("upsampler") is not None and cfg.upsampler.ckpt is not None  # whose second model has a sampler
    kind, has_latents = type(model).__name__, model.denoiser is not None and not walks_on_data(model)
    if model.denoiser is None:
        with torch.no_grad():
            one = model.draw_samples(
                build(with_placeholder(resolved(cfg.sampler))), None, (1, *model.data["shape"]), seeds=[cfg.seed]
            )
        if one is None:
            raise UserError(f"{cfg.ckpt} contains a {kind} ({model.summary()['model']}), which draws no samples")
        check_kind(f"what {kind}.draw_samples returns", one, Samples)
        has_latents = one.latents is not None
        if is_overridden("sampler") and not cascaded:
            given = override_hint("sampler")
            raise UserError(
                f"{cfg.ckpt} contains a {kind}, which draws its samples in one pass: leave sampler out{given}"
            )
    if latents and not has_latents:
        raise UserError(f"{cfg.ckpt} contains a {kind}, which has no latent variables: leave latents=true out")
    if model.decode_as is None and cfg.decode != "mean":
        raise UserError(f"{cfg.ckpt} contains a {kind}, which has no p(x | z): leave decode={cfg.decode} out")


def check_guided(model: GenerativeModel, conditions: Mapping[str, Tensor], n: int) -> None:
    """Check that a model's guidance works with the conditions of n samples.

    Raises:
        UserError: If it needs one that is missing, or another value.
    """
    if model.denoiser is None:
        return
    try:
        model.denoiser.check_conditions(conditions, n, torch.device("cpu"))
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
