"""Reconstructions of a split's items by an autoencoder, to evaluate in place of samples."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import is_overridden
from sde_diffusion.commands.drawing import check_seeds
from sde_diffusion.commands.loading import random_order
from sde_diffusion.commands.sample_sources import SampleSet, Source
from sde_diffusion.commands.sampling_run import Sampled
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.storage.batches import in_batches
from sde_diffusion.storage.progress import Bar

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel


def reconstructed_source(
    cfg: DictConfig, model: GenerativeModel, data: DataModule, device: torch.device, parts: Path
) -> Source:
    """The reconstructions of n items of the split, all if there are fewer, in a fixed random order.

    Their origin reports `rmse`, the root of the mean squared error over all values on [-1, 1], and for bounded data
    `psnr`, the peak signal-to-noise ratio 20 log10(2 / rmse) in dB.

    Raises:
        UserError: If the configuration does not allow it, or the model has no encoder, or one for data of another
            shape.
    """
    if drawing := [key for key in ("guidance", "sampler") if is_overridden(key)] + list(cfg.conditions or {}):
        raise UserError(f"{'= and '.join(drawing)}= cannot be given with of=reconstructions: they are not drawn")
    if not model.reconstructs:
        raise UserError(
            f"of=reconstructions needs an autoencoder, and {cfg.ckpt} contains a {type(model).__name__}: give a "
            "checkpoint of model=vae, hvae, vq or latent, or leave of= out to score samples"
        )
    if list(data.shape) != list(model.data["shape"]):
        raise UserError(f"{data.name} has items of shape {list(data.shape)}, and the model {model.data['shape']}")
    split = data.split(cfg.split)
    rows, seeds = random_order(len(split))[: cfg.n], check_seeds(cfg)
    model.reconstruct(split.tensor(rows[:1]).to(device), seeds=[cfg.seed])  # raises its error now

    def work(items: range, shown: Bar) -> dict[str, Tensor]:
        x, begin = split.tensor(rows[items.start : items.stop]), time.perf_counter()
        made = model.reconstruct(x.to(device), seeds=seeds[items.start : items.stop]).cpu()
        seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        return {"x": made, "squared": (made - x).double().square().flatten(1).mean(1), "seconds": seconds}

    def samples() -> SampleSet:
        plan = {
            "checkpoint": model.digest,
            "of": "reconstructions",
            "split": cfg.split,
            "n": len(rows),
            "seed": cfg.seed,
        }
        plan["data"] = model.data.get("fingerprint")
        held = ["squared", "seconds"]
        made = Sampled(in_batches("reconstructing", len(rows), cfg.batch_size, work, parts, plan, cfg.overwrite, held))
        rmse = float(torch.cat(made.finished.each("squared")).mean().sqrt())
        origin: dict[str, Any] = {
            "nfe": None,
            "sampler": None,
            "of": "reconstructions",
            "rmse": rmse,
            **({"psnr": 20 * math.log10(2 / max(rmse, 1e-12))} if data.modality.bounded else {}),
            "seeds": [seeds[0], seeds[len(rows) - 1]],
            "batch_sizes": made.finished.sizes,
            "ckpt": str(cfg.ckpt),
            "checkpoint_sha256": model.digest,
        }
        conditions = {name: values[rows] for name, values in split.conditions.items()}
        batches = functools.partial(_for_metrics, data, made)
        return SampleSet(len(rows), batches, conditions, origin, made.seconds, rows)

    return Source(str(cfg.ckpt), len(rows), samples)


def _for_metrics(data: DataModule, made: Sampled) -> Iterator[Tensor]:
    return map(data.modality.for_metrics, made.batches())
