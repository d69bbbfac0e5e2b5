"""Samples to be scored: drawn from a checkpoint, or those of a file or of a folder of pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.commands.conditions import for_items, given
from sde_diffusion.commands.drawing import check_seeds, draw
from sde_diffusion.commands.sample_folder import read_pictures
from sde_diffusion.commands.sampling_run import Sampled
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Stored, modality_of, read_samples

if TYPE_CHECKING:
    from sde_diffusion.training.module import ScoreModel


@dataclass(frozen=True)
class Made:
    """N samples in batches [B, *shape] as data would be stored, their labels [N], their origin, and the seconds."""

    n: int
    batches: Callable[[], Iterator[Tensor]]
    labels: Tensor | None
    origin: dict[str, Any]
    seconds: float


def check_shape(data: DataModule, model: ScoreModel) -> None:
    """See that the data's items are of the kind and the shape that the model makes.

    Raises:
        UserError: If they are not.
    """
    has, made = data.modality.kind, modality_of(model.data).kind
    if has != made:
        raise UserError(f"{data.name} has {has}, and the model makes {made}")


def is_checkpoint(source: str) -> bool:
    """Whether a path is taken for a checkpoint: all but .npz files and folders."""
    return not source.endswith(".npz") and not Path(source).is_dir()


def read_source(cfg: DictConfig, source: str, data: DataModule) -> Stored:
    """The samples of a file, or of a folder: those of the samples.npz in it, or else the pictures.

    Raises:
        UserError: If there are none, or they are of another shape or kind than the data.
    """
    path = Path(source)
    if path.is_dir() and not (path / "samples.npz").is_file():
        return Stored(read_pictures(path, data.modality, cfg.resize), None, data.modality)
    return read_samples(path / "samples.npz" if path.is_dir() else path, data.modality)


def of_file(source: str, file: Stored, data: DataModule) -> Made:
    """The samples of a file or folder, as `read_source` read them."""
    origin = {"samples": source, "nfe": None, "sampler": None, "seeds": None}
    return Made(len(file), lambda: map(data.modality.for_metrics, file.batches()), file.labels, origin, 0.0)


def drawn_of(cfg: DictConfig, model: ScoreModel, data: DataModule, device: torch.device, parts: Path) -> Made:
    """Samples drawn from a model as configured, in batches that outlive a killed process in the folder `parts`.

    Raises:
        UserError: If the configuration does not allow it.
    """
    seeds = check_seeds(cfg)
    told = given(cfg, model.conditions)
    conditions = for_items(model, told, data.split(cfg.split), cfg.n)
    drawn = draw(cfg, model, conditions, device, parts)
    origin = {
        "nfe": drawn.nfe,
        "sampler": plain(cfg.sampler),
        "guidance": plain(cfg.guidance),
        "seeds": [seeds[0], seeds[-1]],
        "batch_sizes": drawn.finished.sizes,  # those that memory allowed
        "label": None if told.get("label") is None else int(conditions["label"][0]),
        "conditions": {name: value for name, value in (plain(cfg.conditions) or {}).items() if name != "label"},
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": model.digest,
    }
    batches = functools.partial(_for_metrics, data, drawn)
    return Made(drawn.n, batches, conditions.get("label"), origin, drawn.seconds)


def _for_metrics(data: DataModule, drawn: Sampled) -> Iterator[Tensor]:
    return map(data.modality.for_metrics, drawn.batches())
