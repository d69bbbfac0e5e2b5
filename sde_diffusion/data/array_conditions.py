"""Labels and other conditions from arrays in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.checks.reprs import few
from sde_diffusion.errors import UserError
from sde_diffusion.storage.npz import Array

ARRAYS = {"label": "labels"}
"""Names of the arrays of conditions that are not called like them."""


def read_condition(
    path: Path, name: str, found: Mapping[str, Array], sizes: Mapping[str, int], names: tuple[str, ...] | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Convert one condition's arrays to tensors.

    Args:
        path: The file, for messages.
        name: Name of the condition, as it follows the split's name in the names of the arrays, such as `labels`.
        found: The arrays by split.
        sizes: Numbers of items by split.
        names: Names of the classes 0, 1, ..., if known.

    Returns:
        (values by split, names of the classes if there are any). Integers and booleans [N] are class numbers, and text
        [N] class names; both become int64 [N]. Floats [N, *] become float32.

    Raises:
        UserError: If there is not one value for each item, or the values are of another kind.
    """
    values = {}
    for split, array in found.items():
        values[split] = array = array[:, 0] if array.shape == (sizes[split], 1) else array
        vectors = name != "labels" and array.dtype.kind == "f"
        if array.shape[:1] != (sizes[split],) or (array.ndim > 1 and not vectors):
            many = "" if name == "labels" else ", or floats of shape [N, ...]"
            raise UserError(
                f"{path}: {split}_{name} has shape {list(array.shape)}; {sizes[split]} images need {name} of shape "
                f"[{sizes[split]}]{many}"
            )
    if values and all(array.dtype.kind == "U" for array in values.values()):
        names = names or tuple(np.unique(values.get("train", np.array([], dtype=str))).tolist())
        values = {split: _numbers(path, f"{split}_{name}", words, names) for split, words in values.items()}
    if name != "labels" and values and all(array.dtype.kind == "f" for array in values.values()):
        return {split: torch.from_numpy(array.astype(np.float32)) for split, array in values.items()}, None
    for split, array in values.items():
        if array.dtype.kind not in "bui" or array.min() < 0:
            floats = "" if name == "labels" else ", or all floats (measurements)"
            raise UserError(
                f"{path}: {split}_{name} must be integers from 0 up (class numbers) or text{floats}; found "
                f"{array.dtype}{f' from {array.min()}' * (array.dtype.kind == 'i')}"
            )
    return {split: torch.from_numpy(array.astype(np.int64)) for split, array in values.items()}, names


def read_class_names(path: Path, array: Array | None) -> tuple[str, ...] | None:
    """The names in an array `class_names`; None if there is no such array.

    Raises:
        UserError: If they are not text, or not all different.
    """
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind not in "US" or len(set(array.tolist())) < len(array):
        raise UserError(f"{path}: class_names must be different names [n_classes]; found {array.dtype}")
    return tuple(str(name) for name in (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array))


def _numbers(path: Path, key: str, words: Array, names: tuple[str, ...]) -> Array:
    number = {name: k for k, name in enumerate(names)}
    unknown = sorted(set(words.tolist()) - set(number))
    if unknown:
        raise UserError(f"{path}: {key} has {few(unknown)}, and the classes are {few(names)}")
    return np.array([number[word] for word in words.tolist()], dtype=np.int64)
