"""The samples to evaluate: drawn from a checkpoint, or read from a file or a folder of pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import for_items, requested_conditions
from sde_diffusion.commands.drawing import check_seeds, draw
from sde_diffusion.commands.sample_folder import read_pictures
from sde_diffusion.commands.sampling_run import Sampled
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Stored, modality_of, read_samples

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel


@dataclass(frozen=True)
class SampleSet:
    """Samples, and where they are from.

    Attributes:
        n: Number of samples N.
        batches: Returns an iterator over batches [B, *shape], as metrics take them.
        conditions: Their conditions by name, [N, *] each, if known.
        origin: What the report says of their origin.
        seconds: Time that drawing them took.
    """

    n: int
    batches: Callable[[], Iterator[Tensor]]
    conditions: Mapping[str, Tensor]
    origin: dict[str, Any]
    seconds: float


def check_shape(data: DataModule, model: GenerativeModel) -> None:
    """Check that the data's items have the kind and the shape of the model's samples.

    Raises:
        UserError: If they are not.
    """
    has, made = data.modality.kind, modality_of(model.data).kind
    if has != made:
        raise UserError(f"{data.name} has {has}, and the model generates {made}")


def is_checkpoint(source: str) -> bool:
    """Whether a path is treated as a checkpoint: all except .npz files and folders."""
    return not source.endswith(".npz") and not Path(source).is_dir()


def read_source(cfg: DictConfig, source: str, data: DataModule) -> Stored:
    """Read the samples of a file, or of a folder: of the samples.npz in it, or else of its pictures.

    Raises:
        UserError: If there are none, or they have another shape or kind than the data.
    """
    path = Path(source)
    if path.is_dir() and not (path / "samples.npz").is_file():
        return Stored(read_pictures(path, data.modality, cfg.resize), {}, data.modality)
    classes = [name for name, kind in data.conditions.items() if kind.in_turn(1) is not None]
    return read_samples(path / "samples.npz" if path.is_dir() else path, data.modality, classes)


def stored_samples(source: str, file: Stored, data: DataModule) -> SampleSet:
    """The samples of a file or folder that `read_source` has read."""
    origin = {"samples": source, "nfe": None, "sampler": None, "seeds": None}
    return SampleSet(len(file), lambda: map(data.modality.for_metrics, file.batches()), file.classes, origin, 0.0)


def drawn_samples(
    cfg: DictConfig, model: GenerativeModel, data: DataModule, device: torch.device, parts: Path
) -> SampleSet:
    """Draw samples from a model; finished batches are stored in the folder `parts`.

    Raises:
        UserError: If the configuration does not allow it.
    """
    seeds = check_seeds(cfg)
    requested = requested_conditions(cfg, model)
    conditions = for_items(model, requested, data.split(cfg.split), cfg.n)
    drawn = draw(cfg, model, conditions, device, parts)
    origin = {
        "nfe": drawn.nfe,
        "sampler": resolved(cfg.sampler),
        "guidance": resolved(cfg.guidance),
        "seeds": [seeds[0], seeds[-1]],
        "batch_sizes": drawn.finished.sizes,  # those that were used; smaller than batch_size where memory ran out
        "conditions": resolved(cfg.conditions) or {},
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": model.digest,
    }
    batches = functools.partial(_for_metrics, data, drawn)
    return SampleSet(drawn.n, batches, conditions, origin, drawn.seconds)


def _for_metrics(data: DataModule, drawn: Sampled) -> Iterator[Tensor]:
    return map(data.modality.for_metrics, drawn.batches())
