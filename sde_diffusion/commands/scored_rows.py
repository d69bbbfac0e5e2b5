"""Read the items to score from a file, in the data's own units."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sde_diffusion.checks.reprs import few
from sde_diffusion.conditions import Condition
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Modality, modality_of
from sde_diffusion.modality.levels import to_levels

if TYPE_CHECKING:
    from sde_diffusion.data import Split

log = logging.getLogger(__name__)


def read_rows(path: Path, data: Mapping[str, Any], kinds: Mapping[str, Condition] = MappingProxyType({})) -> Split:
    """Read items from a file and scale them as the model's data are; they may lie far outside of [-1, 1].

    Args:
        path: .npy, .npz or .csv, with items [N, *shape], images also [N, H, W], [N, H, W, C] or [N, D], in the units of
            the model's data: numbers, or levels 0 ... L - 1 (or uint8 grey levels 0 ... 255).
        data: Description of the model's data, from its checkpoint.
        kinds: Conditions to read too, by name: further arrays, or columns of a table.

    Returns:
        The items, with the conditions.

    Raises:
        UserError: If the file cannot be read, or its items have another shape, or values that are not allowed.
    """
    from sde_diffusion.data import Split
    from sde_diffusion.data.array_conditions import ARRAYS, read_condition
    from sde_diffusion.data.array_files import read_arrays

    arrays = read_arrays(path, [name for name in kinds if name not in ARRAYS])
    modality = modality_of(data)
    x = _shaped(np.asarray(arrays["train_images"]), modality, path)
    found = {}
    for name, kind in kinds.items():
        values, names = arrays.get(f"train_{ARRAYS.get(name, name)}"), tuple(kind.names) if kind.names else None
        if values is None:
            raise UserError(f"{path} has no array {name}, and {name}=own needs one")
        found[name] = read_condition(path, ARRAYS.get(name, name), {"train": values}, {"train": len(x)}, names)[0]
    conditions = {name: values["train"] for name, values in found.items()}
    label = conditions.pop("label", None)
    if modality.levels is not None:
        return Split(_on_levels(x, modality.levels, path), label, modality.levels, conditions)
    rows = modality.encode(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)))
    bad = (~rows.flatten(1).isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise UserError(f"{path}: {len(bad)} of {len(rows)} rows have NaN, infinite or huge values: rows {few(bad, 5)}")
    return Split(rows, label, others=conditions)


def _shaped(x: np.ndarray[Any, Any], modality: Modality, path: Path) -> np.ndarray[Any, Any]:
    """The items as [N, *shape]."""
    if x.dtype.kind not in "buif":
        raise UserError(f"{path}: items must be numbers; got {x.dtype}")
    found = modality.arrange(x) if x.ndim and len(x) else None
    if found is None:
        wanted = ", ".join(map(str, modality.shape))
        raise UserError(f"{path}: items must be [N, {wanted}] with N >= 1; got {list(x.shape)}")
    return found


def _on_levels(x: np.ndarray[Any, Any], levels: int, path: Path) -> torch.Tensor:
    if x.dtype == np.uint8 and levels < 256 and x.max() >= levels:
        log.info("%s: uint8 above %d, read as grey levels 0 ... 255 and rounded", path, levels - 1)
        return to_levels(torch.from_numpy(x.astype(np.float32)) / 127.5 - 1, levels)
    wrong = x[~(np.isfinite(x) & (x == np.round(x)) & (x >= 0) & (x < levels))]
    if len(wrong):
        raise UserError(
            f"{path}: the model's data are levels, integers from 0 to {levels - 1}; got {wrong[0]:g} "
            f"({len(wrong)} such values of {x.size})"
        )
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8))
