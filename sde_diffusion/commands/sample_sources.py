"""The samples to evaluate: drawn from a checkpoint, or read from a file or a folder of pictures."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import for_items, in_words, requested_conditions, set_by_guidance
from sde_diffusion.commands.drawing import check_draws, check_guided, check_seeds, draw
from sde_diffusion.commands.sample_folder import read_pictures
from sde_diffusion.commands.tuned_grids import sampler_settings
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Stored, modality_of, read_samples

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleSet:
    """Samples, and where they are from.

    Attributes:
        n: Number of samples N.
        batches: Returns an iterator over batches [B, *shape], as metrics take them.
        conditions: Their conditions by name, [N, *] each, if known.
        origin: What the report says of their origin.
        seconds: Time that drawing them took.
        rows: Numbers of the split's items that they were made from, [N]; None: they were drawn.
    """

    n: int
    batches: Callable[[], Iterator[Tensor]]
    conditions: Mapping[str, Tensor]
    origin: dict[str, Any]
    seconds: float
    rows: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """Samples that have been checked, but may not be drawn yet.

    Attributes:
        name: Where they are from.
        n: Number of samples N.
        samples: Returns them; draws those of a checkpoint.
    """

    name: str
    n: int
    samples: Callable[[], SampleSet]


def is_checkpoint(source: str) -> bool:
    """Whether a path is treated as a checkpoint: all except .npz files and folders."""
    return not source.endswith(".npz") and not Path(source).is_dir()


def stored_source(cfg: DictConfig, source: str, data: DataModule) -> Source:
    """The samples of a file, or of a folder: of the samples.npz in it, or else of its pictures.

    Raises:
        UserError: If there are none, or they have another shape or kind than the data.
    """
    path = Path(source)
    if path.is_dir() and not (path / "samples.npz").is_file():
        file = Stored(read_pictures(path, data.modality, cfg.resize), {}, data.modality)
    else:
        classes = [name for name, kind in data.conditions.items() if kind.in_turn(1) is not None]
        file = read_samples(path / "samples.npz" if path.is_dir() else path, data.modality, classes)
    origin = {"samples": source, "nfe": None, "sampler": None, "seeds": None}
    batches = functools.partial(_for_metrics, data, file.batches)
    return Source(source, len(file), lambda: SampleSet(len(file), batches, file.classes, origin, 0.0))


def drawn_source(
    cfg: DictConfig, model: GenerativeModel, data: DataModule, device: torch.device, parts: Path
) -> Source:
    """The samples of a model; finished batches are stored in the folder `parts`.

    Raises:
        UserError: If the configuration does not allow it, or the samples have another shape or kind than the data.
    """
    seeds = check_seeds(cfg)
    has, made = data.modality.kind, modality_of(model.data).kind
    if has != made:
        raise UserError(f"{data.name} has {has}, and {cfg.ckpt} generates {made}")
    conditions = for_items(model, requested_conditions(cfg, model), data.split(cfg.split), cfg.n)
    check_draws(cfg, model)
    check_guided(model, conditions, cfg.n)
    if fixed := " and ".join(set_by_guidance(cfg)):
        log.warning("guidance.conditions sets %s, but the samples are compared with items of any %s", fixed, fixed)
    if model.conditions:
        log.info("given %s", in_words(model.conditions, conditions))

    def samples() -> SampleSet:
        drawn = draw(cfg, model, conditions, device, parts)
        origin = {
            "nfe": drawn.nfe,
            "sampler": None if model.denoiser is None else sampler_settings(cfg, model),
            **({} if model.decode_as is None else {"decode": cfg.decode}),
            "guidance": resolved(cfg.guidance),
            "seeds": [seeds[0], seeds[-1]],
            "batch_sizes": drawn.finished.sizes,  # those that were used; smaller than batch_size where memory ran out
            "conditions": resolved(cfg.conditions) or {},
            "ckpt": str(cfg.ckpt),
            "checkpoint_sha256": model.digest,
        }
        return SampleSet(
            drawn.n, functools.partial(_for_metrics, data, drawn.batches), conditions, origin, drawn.seconds
        )

    return Source(str(cfg.ckpt), cfg.n, samples)


def _for_metrics(data: DataModule, batches: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
    return map(data.modality.for_metrics, batches())
