"""Files of samples, `samples.npz`: writing and reading.

Such a file has an array of samples, named by the modality's `unit` (`images`, `points`, `signals`) and laid out by its
`to_file`; `seeds`, int64 [N]; for class-conditional models `labels`, int64 [N], and `class_names` if they are known;
and the values of the other conditions of each sample, under their names, [N, *].
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Stored:
    """The samples of a file.

    Attributes:
        kept: The samples as stored, [N, ...].
        labels: Their classes, int64 [N], or None.
        modality: Their kind of data.
    """

    kept: Tensor
    labels: Tensor | None
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
    conditions: Mapping[str, Tensor] = MappingProxyType({}),
    class_names: Sequence[str] = (),
) -> Array:
    """Write a `samples.npz` atomically.

    Args:
        path: The file.
        modality: Their kind of data.
        batches: The samples, [B, *shape] as models return them.
        seeds: The seeds of the N samples.
        conditions: The conditions of each sample by name, [N, *]; `label` is stored as `labels`.
        class_names: Names of the classes 0, 1, ..., if known.

    Returns:
        The samples as stored, [N, ...].
    """
    samples = np.concatenate([modality.to_file(x) for x in batches])
    arrays = {"seeds": np.arange(seeds.start, seeds.stop, dtype=np.int64), modality.unit: samples}
    arrays |= {"labels" if name == "label" else name: values.numpy() for name, values in conditions.items()}
    if len(class_names):
        arrays["class_names"] = np.asarray(class_names, dtype=str)
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return samples


def read_samples(path: Path, modality: Modality) -> Stored:
    """Read a `samples.npz`.

    Args:
        path: The file; seeds and labels are optional.
        modality: The kind of data that the samples must be of.

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
        return [name for name in (unit, "labels") if name in names]

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
    array = arrays[unit]
    if wrong := modality.check_file(array):
        raise UserError(f"{path}: {wrong}")
    if (shape := modality.shape_in_file(array)) != modality.shape:
        raise UserError(f"{path}: samples of shape {list(shape)}, and the data's is {list(modality.shape)}")
    if not len(array):
        raise UserError(f"{path} holds no samples")
    labels = class_numbers(arrays.get("labels"), len(array), path)
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # values that overflow raise an error below
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{path}: samples hold NaN or infinite values")
    return Stored(torch.from_numpy(array), labels, modality)


def class_numbers(labels: Array | None, n: int, path: Path) -> Tensor | None:
    """Check the labels of n items of a file; returns int64 [n], or None if there are none.

    Raises:
        UserError: If they are not integers [n].
    """
    if labels is None:
        return None
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels must be integers [{n}]; got {labels.dtype} {list(labels.shape)}")
    return torch.from_numpy(labels.astype(np.int64))
