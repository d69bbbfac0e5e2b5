"""The samples that a command's configuration asks for: drawn from a model, or read from a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import given, plain
from sde_diffusion.commands.loading import check_label, class_numbers, denoiser_of
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.levels import from_levels, to_levels
from sde_diffusion.overrides import setting
from sde_diffusion.sampling.batches import Kept, sample_resumably
from sde_diffusion.units import Units, own_units, scaled_for_metrics

if TYPE_CHECKING:
    from sde_diffusion.data import DataModule
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)


def draw(cfg: DictConfig, model: ScoreModel, device: torch.device, folder: Path) -> Kept:
    """The samples that a configuration asks for, in batches that outlive a killed process.

    Args:
        cfg: A configuration with ckpt, sampler, guidance, n, seed, label, batch_size and overwrite.
        model: The model of `cfg.ckpt`.
        device: Where to sample.
        folder: Where the batches are kept until `parts.forget` is called.

    Returns:
        The samples, in files.

    Raises:
        UserError: If a value is not allowed, or the folder holds other samples' beginnings.
    """
    seeds = check_seeds(cfg)
    labels = class_labels(cfg, model.hparams["n_classes"])
    plan = {
        "checkpoint": model.digest,
        "sampler": plain(cfg.sampler),
        "guidance": plain(cfg.guidance),
        "n": cfg.n,
        "seed": cfg.seed,
        "labels": None if labels is None else labels.tolist(),
    }
    labels = None if labels is None else labels.to(device)
    sampler, denoiser, dims = build(plan["sampler"]), denoiser_of(cfg, model), model.data["shape"]
    try:
        return sample_resumably(
            *(folder, plan, sampler, denoiser, dims, seeds, cfg.batch_size, labels),
            overwrite=cfg.overwrite,
            device=device,
        )
    except ValueError as error:  # what a sampler can only tell once it knows the model's path
        raise UserError(f"{error}{given('sampler')}") from error


def class_labels(cfg: DictConfig, n_classes: int) -> torch.Tensor | None:
    """The classes to sample, int64 [n]: label=N for one, null for all in turn; None for a model without classes.

    Raises:
        UserError: If a label is given that the model does not know.
    """
    if cfg.label is None:
        return torch.arange(cfg.n) % n_classes if n_classes else None
    check_label(cfg.label, n_classes, "null for all in turn")
    return torch.full((cfg.n,), cfg.label)


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


@dataclass(frozen=True)
class Stored:
    """The samples of a file, as models see them, a batch at a time.

    Attributes:
        kept: As in the file: uint8 or float32 [N, H, W, C], or float32 [N, D].
        labels: Their classes, int64 [N], or None.
        units: Of floats in the file; None: on [-1, 1].
    """

    kept: Tensor
    labels: Tensor | None
    units: Units | None = None

    def __len__(self) -> int:
        return len(self.kept)

    def batches(self, size: int = 500) -> Iterator[Tensor]:
        """float32 [B, *shape] as models see them."""
        for some in torch.split(self.kept, size):
            x = some.movedim(-1, 1) if some.ndim == 4 else some
            if x.dtype == torch.uint8:
                yield from_levels(x, 256)
            else:
                yield x if self.units is None else self.units.encode(x)


def read_samples(path: Path, shape: tuple[int, ...], units: Units | None = None, levels: int | None = None) -> Stored:
    """The samples of a `samples.npz`.

    Args:
        path: File with `images`, uint8 [N, H, W, C] on 0 ... 255 or floats in the data's own units, or `points`, float
            [N, D] in the data's own units; perhaps with `labels` [N].
        shape: Of one sample.
        units: Of the data; None: floats are on [-1, 1].
        levels: Of the data; None if they are floats, and images of floats are then allowed.

    Returns:
        The samples.

    Raises:
        UserError: If the file is missing, of another kind, or its samples are of another shape.
    """
    from sde_diffusion.data.npz import ForeignFileError, read_arrays_of

    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, such as {setting('samples', path / 'samples.npz')}")
    if not path.exists():
        raise UserError(f"no samples at {path}")
    names = ("images", "points", "labels")
    try:
        arrays = read_arrays_of(path, lambda found: [name for name in names if name in found], None)
    except ForeignFileError as error:
        raise UserError(f"{error}; give a samples.npz written by python -m sde_diffusion.sample") from error
    if "images" in arrays:
        images = arrays["images"]
        floats = levels is None and images.dtype.kind == "f"
        if (images.dtype != np.uint8 and not floats) or images.ndim != 4:
            also = ", or floats in the data's own units" if levels is None else ""
            raise UserError(
                f"{path}: images must be uint8 [N, H, W, C] on 0 ... 255{also}; got {images.dtype} {list(images.shape)}"
            )
        x = torch.from_numpy(_float32(images) if floats else images)
        found_shape = x.movedim(-1, 1).shape[1:]
    elif "points" in arrays:
        points = arrays["points"]
        if points.dtype.kind not in "buif" or points.ndim < 2:
            raise UserError(f"{path}: points must be numbers [N, D]; got {points.dtype} {list(points.shape)}")
        x = torch.from_numpy(_float32(points))
        found_shape = x.shape[1:]
    else:
        raise UserError(
            f"{path} has no array named images or points; give a samples.npz, or save one with "
            "numpy.savez(FILE, images=...)"
        )
    if tuple(found_shape) != tuple(shape):
        raise UserError(f"{path}: samples of shape {list(found_shape)}, and the data's is {list(shape)}")
    if not len(x):
        raise UserError(f"{path} holds no samples")
    labels = class_numbers(arrays.get("labels"), len(x), path)
    if x.is_floating_point() and not x.isfinite().all():
        raise UserError(f"{path}: samples hold NaN or infinite values")
    return Stored(x, labels, own_units(levels, units))


def _float32(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the rest
        return values.astype(np.float32)


def first(batches: Iterator[Tensor], n: int) -> Tensor:
    """The first n samples, or all if there are fewer, of batches [B, *shape]."""
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch)
        if sum(map(len, found)) >= n:
            break
    return torch.cat(found)[:n]


def stored(x: Tensor, levels: int | None) -> Tensor:
    """Samples as data would be stored: on the levels where the data have levels, images on [-1, 1] in any case."""
    if levels is not None:
        return from_levels(to_levels(x, levels), levels)
    return x.clamp(-1, 1) if x.ndim > 2 else x


def measured(x: Tensor, data: DataModule) -> Tensor:
    """Samples or data [B, *shape] as metrics look at them: as they would be stored, vectors in the data's own unit."""
    return scaled_for_metrics(stored(x, data.levels), own_units(data.levels, data.units))
