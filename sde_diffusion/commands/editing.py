"""Variations of given items: `python -m sde_diffusion.sample ckpt=PATH edit=PICTURE edit.strength=0.5` (SDEdit)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from sde_diffusion.checks.reprs import few
from sde_diffusion.commands.app import is_overridden, resolved
from sde_diffusion.commands.loading import check_denoiser_space, denoiser_of
from sde_diffusion.commands.measurements import read_items
from sde_diffusion.commands.tuned_grids import with_placeholder
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Modality, modality_of
from sde_diffusion.sampling import Samples, noised, start_time
from sde_diffusion.sde import float64, value_of

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edit:
    """Items to vary.

    Attributes:
        given: The items, [N, *shape].
        t_start: The time at which each walk begins, at the item with noise.
    """

    given: Tensor
    t_start: float

    def each(self, n: int) -> Tensor:
        """Each item n times, [N n, *shape]: sample i n + j begins with item i."""
        return self.given.repeat_interleave(n, 0)

    def on(self, sampler: Callable[..., Samples]) -> Callable[..., Samples]:
        """A sampler whose `latent` are items without noise. The noise of a sample depends on its seed alone."""

        def edited(
            denoiser: Denoiser, shape: Sequence[int], seeds: Sequence[int], latent: Tensor, **options: Any
        ) -> Samples:
            start = noised(denoiser.sde, latent, self.t_start, seeds)
            return sampler(denoiser, shape, seeds=seeds, latent=start, t_start=self.t_start, **options)

        return edited

    def picture(self, modality: Modality, x: Tensor, n: int) -> Image.Image:
        """The first samples [B, *shape] beside the items that they are variations of."""
        rows = max(1, len(x) // n)
        return modality.draw_edits(x[: rows * n].reshape(rows, -1, *x.shape[1:]), self.given[:rows])


def edit_of(cfg: DictConfig, model: GenerativeModel) -> Edit | None:
    """What a configuration asks to edit; None if nothing.

    Raises:
        UserError: If it cannot be read, does not fit the model, or the walk would end before it begins.
    """
    path, strength = cfg.edit.path, cfg.edit.strength
    if path is None:
        if is_overridden("edit.strength"):
            raise UserError(f"edit.strength={strength} needs something to edit: add edit=PATH, such as a picture")
        return None
    check_denoiser_space("edit=", cfg.ckpt, model, on_data=True)
    kind = modality_of(model.data)
    given, names = read_items(Path(path), kind, f"the model's are {kind.kind}", "items to edit")
    wrong = (~given.flatten(1).isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise UserError(f"edit={path}: {few([names[row] for row in wrong])} have NaN or infinite values")
    far = float(given.abs().max())
    if kind.bounded and far > 2:
        raise UserError(
            f"edit={path} has values up to {far:.3g}, and the data lie on [-1, 1]: give uint8 on 0 ... 255, or floats "
            "in the units of the model's data"
        )
    t_start = _start(cfg, denoiser_of(model))
    r = _noise_level(denoiser_of(model), t_start)
    draws = f"{cfg.n} samples of each" if len(given) > 1 else f"{cfg.n} samples"
    log.info("edit of %d %s, %s, from t = %.4g (sigma/alpha = %.3g)", len(given), kind.unit, draws, t_start, r)
    return Edit(given, t_start)


def _start(cfg: DictConfig, denoiser: Denoiser) -> float:
    """The time at which walks begin.

    Raises:
        UserError: If it is not after the end of the sampler's walk.
    """
    sde, sigma_data = denoiser.sde, denoiser.sigma_data or 1.0
    t_start = start_time(sde, cfg.edit.strength, sigma_data)
    end = build(with_placeholder(resolved(cfg.sampler)), "sampler").t_end
    t_end = sde.t_min if end is None else end
    if t_start <= t_end:
        square = (_noise_level(denoiser, t_end) / sigma_data) ** 2
        raise UserError(
            f"edit.strength must exceed {square / (1 + square):.3g}, the share of noise at t_end = {t_end:g}, where "
            f"the sampler's walk ends; got {cfg.edit.strength}"
        )
    return t_start


def _noise_level(denoiser: Denoiser, t: float) -> float:
    """Sigma / alpha."""
    with denoiser.sde.on_cpu(), torch.no_grad():
        return value_of((-0.5 * denoiser.sde.log_snr(float64(t))).exp())
