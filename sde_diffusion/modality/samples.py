"""Files of samples, `samples.npz`: writing and reading.

Such a file has an array of samples, named by the modality's `unit` (`images`, `points`, `signals`) and laid out by its
`to_file`; `seeds`, int64 [N]; the conditions of each sample under their names, [N, *]; and names of classes, if they
are known, as `NAME_names`. The condition `label` is stored as `labels`, int64 [N], and `class_names`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.checks.overrides import setting
from sde_diffusion.errors import UserError
from sde_diffusion.modality.base import Array, Modality
from sde_diffusion.modality.described import KINDS
from sde_diffusion.storage.files import writing
from sde_diffusion.storage.npz import ForeignFileError, read_arrays_of

log = logging.getLogger(__name__)

_ARRAYS = {"label": ("labels", "class_names")}


def _arrays_of(condition: str) -> tuple[str, str]:
    """Names of the arrays that hold a condition's values, and the names of its classes."""
    return _ARRAYS.get(condition, (condition, f"{condition}_names"))


@dataclass(frozen=True)
class Stored:
    """The samples of a file.

    Attributes:
        kept: The samples as stored, [N, ...].
        classes: Their classes by condition, int64 [N] each.
        modality: Their kind of data.
    """

    kept: Tensor
    classes: Mapping[str, Tensor]
    modality: Modality

    def __len__(self) -> int:
        return len(self.kept)

    def batches(self, size: int = 500) -> Iterator[Tensor]:
        """Batches of the values that models take, float32 [B, *shape]."""
        return (self.modality.from_file(some) for some in torch.split(self.kept, size))


def write_samples(
    path: Path,
    modality: Modality,
    batches: Iterable[Tensor],
    seeds: range,
    conditions: Mapping[str, Array] = MappingProxyType({}),
    names: Mapping[str, Sequence[str]] = MappingProxyType({}),
    **more: str,
) -> Array:
    """Write a `samples.npz` atomically.

    Args:
        path: The file.
        modality: Their kind of data.
        batches: The samples, [B, *shape] as models return them.
        seeds: The seeds of the N samples.
        conditions: The conditions of each sample by name, [N, *].
        names: Names of the classes 0, 1, ... of the conditions that are named classes.
        **more: Further facts to write under these names.

    Returns:
        The samples as stored, [N, ...].
    """
    samples = np.concatenate([modality.to_file(x) for x in batches])
    arrays = {"seeds": np.arange(seeds.start, seeds.stop, dtype=np.int64), modality.unit: samples}
    arrays |= {_arrays_of(name)[0]: values for name, values in conditions.items()}
    arrays |= {_arrays_of(name)[1]: np.asarray(words, dtype=str) for name, words in names.items()}
    arrays |= {name: np.asarray(value) for name, value in more.items()}
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return samples


def write_latents(path: Path, latents: Mapping[str, Iterable[Tensor]], seeds: range) -> dict[str, list[int]]:
    """Write a `latents.npz` atomically: `seeds`, int64 [N], and the latent variables by name, float32 [N, *].

    Args:
        path: The file.
        latents: Batches of each of them, [B, *].
        seeds: The seeds of the N samples.

    Returns:
        The shape of each array.
    """
    arrays = {name: torch.cat(list(batches)).float().numpy() for name, batches in latents.items()}
    arrays["seeds"] = np.arange(seeds.start, seeds.stop, dtype=np.int64)
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return {name: list(arrays[name].shape) for name in latents}


def read_samples(path: Path, modality: Modality, classes: Sequence[str] = ()) -> Stored:
    """Read a `samples.npz`.

    Args:
        path: The file; seeds and conditions are optional. A `restored.npz` counts as its N n draws.
        modality: The kind of data that the samples must be of.
        classes: Names of the conditions to read, if the file has them; those that are classes.

    Returns:
        The samples.

    Raises:
        UserError: If the file is missing, of another kind, or holds samples of another modality or shape.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, such as {setting('samples', path / 'samples.npz')}")
    if not path.exists():
        raise UserError(f"no samples at {path}")
    unit, found = modality.unit, list[str]()

    def choose(names: list[str]) -> list[str]:
        found.extend(names)
        return [name for name in (unit, "seeds", *(_arrays_of(one)[0] for one in classes)) if name in names]

    try:
        arrays = read_arrays_of(path, choose, None)
    except ForeignFileError as error:
        raise UserError(f"{error}; give a samples.npz written by python -m sde_diffusion.sample") from error
    if unit not in arrays:
        others = [kind.unit for kind in KINDS if kind.unit in found]
        if others:
            raise UserError(f"{path} holds {' and '.join(others)}, and the data are {modality.kind}")
        raise UserError(
            f"{path} has no array named {unit}; give a samples.npz, or save one with numpy.savez(FILE, {unit}=...)"
        )
    array = _flat(arrays[unit], arrays.get("seeds"))
    if wrong := modality.check_file(array):
        raise UserError(f"{path}: {wrong}")
    if (shape := modality.shape_in_file(array)) != modality.shape:
        raise UserError(f"{path}: samples of shape {list(shape)}, and the data's is {list(modality.shape)}")
    if not len(array):
        raise UserError(f"{path} holds no samples")
    numbers = {one: _class_numbers(arrays, _arrays_of(one)[0], len(array), path) for one in classes}
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # values that overflow raise an error below
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{path}: samples hold NaN or infinite values")
    known = {one: values for one, values in numbers.items() if values is not None}
    return Stored(torch.from_numpy(array), known, modality)


def _flat(array: Array, seeds: Array | None) -> Array:
    """Samples [N, ...]; of a `restored.npz`, in which samples and seeds are [N, n, ...], all draws in order."""
    if seeds is None or seeds.ndim != 2 or array.shape[:2] != seeds.shape:
        return array
    log.info("%d measurements with %d draws each: they are not independent, and intervals are too short", *seeds.shape)
    return array.reshape(-1, *array.shape[2:])


def _class_numbers(arrays: Mapping[str, Array], name: str, n: int, path: Path) -> Tensor | None:
    """The class numbers of n samples, int64 [n]; None if the file has none.

    Raises:
        UserError: If they are not integers [n].
    """
    found = arrays.get(name)
    if found is None:
        return None
    if found.shape != (n,) or found.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} must be integers [{n}]; got {found.dtype} {list(found.shape)}")
    return torch.from_numpy(found.astype(np.int64))
