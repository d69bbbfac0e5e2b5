"""Data in arrays: an .npz file, rows of an .npy file, or a table."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_choice, check_count
from sde_diffusion.conditions import Conditions, Label
from sde_diffusion.data.array_conditions import read_class_names, read_condition
from sde_diffusion.data.array_files import read_arrays
from sde_diffusion.data.checks import low_and_high
from sde_diffusion.data.common import Common
from sde_diffusion.data.module import SPLITS, DataModule
from sde_diffusion.data.names import described
from sde_diffusion.data.split import Split, divide
from sde_diffusion.errors import UserError
from sde_diffusion.modality import kind_by_shape
from sde_diffusion.modality.units import Units
from sde_diffusion.storage.npz import Array

log = logging.getLogger(__name__)

Range = Sequence[float] | Sequence[Sequence[float]] | str

_LAYOUTS = ("NHW", "NHWC", "NCHW", "NCL", "NLC", "as_is")
_CHUNK = 2**22  # values scaled at a time


class Arrays(DataModule):
    """Training, validation and test items from one file, with labels and class names if it has them.

    An .npz file has `train_images`, `train_labels`, `val_images`, ..., `test_labels`, or other usual names such as
    `x_train`, `y_test`, `X`, `y`, and `class_names`. Rows of an .npy file or of a table (.csv) are training items. If
    validation or test items are missing, they are split off from the training items. There are two kinds of values:

    - Booleans, which have 2 levels, and integers (uint8, or others from 0 to 255) are levels. [N, H, W] are grey
      images, [N, H, W, C] and [N, C, H, W] colour images (C = 1, 3 or 4) if only one of the two fits, [N, D] vectors.
    - Floats, and any numbers if `range` is set, are mapped linearly from `range` to [-1, 1]; samples are converted
      back to the data's own units (see `units`). [N, H, W, C] are colour images if nothing else fits; any other shape
      [N, ...] is not changed: floats [N, C, L] are signals with C channels.

    Labels are class numbers from 0 up, or text, which then gives the class names. The log says how the file was read.

    Args:
        path: The file.
        range: [lo, hi], the range of the values; for vectors [N, D] also [[lo, hi], ...], one for each of the D
            columns; "auto": from the least to the greatest value of the training split, for vectors in each column
            (other splits may then exceed it); None: [-1, 1] for floats, and integers are levels.
        levels: Number of levels of integer data, 2 to 256; None: 256.
        layout: "NHW", "NHWC" or "NCHW" (images), "NCL" or "NLC" (signals), or "as_is"; None: guess from the shape.
        val_fraction: Share of the training items to split off for validation, if the file has no validation items.
        test_fraction: Share of the training items to split off for the test split, if the file has no test items.
        split_seed: Seed of these splits.
        conditions: Names of further conditions of the items, such as "rate": arrays `train_rate` (or `rate`),
            `val_rate`, ...; in a table, columns. Floats are measurements, [N] or [N, *]; integers and text are classes.
        **common: See `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "arrays"

    def __init__(
        self,
        path: str,
        range: Range | None = None,
        levels: int | None = None,
        layout: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        conditions: Sequence[str] = (),
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if levels is not None:
            levels = check_count("levels", levels, least=2, most=256, also=", or None")
            if range is not None:
                raise ValueError(
                    f"values have levels or a range: give levels or range, not both; got {levels}, {range}"
                )
        if layout is not None:
            check_choice("layout", layout, _LAYOUTS, ", or None")
        val_fraction, test_fraction = as_number("val_fraction", val_fraction), as_number("test_fraction", test_fraction)
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                "val_fraction and test_fraction must be positive with a sum below 1; got "
                f"val_fraction={val_fraction}, test_fraction={test_fraction}"
            )
        split_seed = check_count("split_seed", split_seed, least=0)
        self.path, self.layout, self.split_seed = str(Path(path).expanduser().absolute()), layout, split_seed
        self.range, self.units = _range(range)
        self.bounded = range != "auto"
        self.levels_argument = levels
        self.conditions_argument = list(Conditions(dict.fromkeys(conditions, Label(1))))  # checks the names
        if "label" in self.conditions_argument:
            raise ValueError("conditions must not contain label: labels are always read if the file has them")
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def config(self) -> dict[str, Any]:
        """See `DataModule.config`; `levels` and `conditions` are the arguments, not what was found."""
        return super().config | {"levels": self.levels_argument, "conditions": self.conditions_argument}

    def load(self) -> dict[str, Split]:
        """Read, check and split the arrays."""
        arrays = read_arrays(Path(self.path), self.conditions_argument)
        parts = [split for split in SPLITS if f"{split}_images" in arrays]
        items = {split: self._arrange(f"{split}_images", arrays[f"{split}_images"]) for split in parts}
        for split in parts:
            self._check(f"{split}_images", items[split])
        conditions = self._conditions(arrays, {split: len(items[split]) for split in parts})
        for split in parts[1:]:
            if _kind(items[split]) != _kind(items["train"]):
                raise UserError(
                    f"{self.path}: train_images are {_kind(items['train'])} and {split}_images {_kind(items[split])}; "
                    "they must agree"
                )
        n, missing = len(items["train"]), [split for split in ("val", "test") if split not in parts]
        shares = {"val": self.val_fraction, "test": self.test_fraction}
        counts = [max(1, round(n * shares[split])) for split in missing]
        drawn = divide(n, counts, self.split_seed, conditions["label"].get("train"), f"{self.path}: ")
        for split, rows in zip((*missing, "train"), (*drawn[1:], drawn[0]), strict=True):  # train last: it is replaced
            items[split] = items["train"][rows.numpy()]
            for values in conditions.values():
                if "train" in values:
                    values[split] = values["train"][rows]
        if self.range == "auto":
            self.units = _units_of(items["train"])
        label = conditions.pop("label")
        return {
            split: replace(
                self._split(items[split]),
                label=label.get(split),
                others={name: values[split] for name, values in conditions.items()},
            )
            for split in SPLITS
        }

    def _split(self, array: Array) -> Split:
        if self._is_levels(array):
            x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8))
            return Split(x, levels=self._levels(array))
        if self.units is None:
            return Split(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)))
        x = torch.empty(array.shape, dtype=torch.float32)
        rows = max(1, _CHUNK * len(array) // array.size)
        for start in range(0, len(array), rows):
            part = np.ascontiguousarray(array[start : start + rows], dtype=np.float64)
            x[start : start + rows] = self.units.encode(torch.from_numpy(part))
        return Split(x)

    def _is_levels(self, array: Array) -> bool:
        return array.dtype.kind != "f" and self.range is None

    def _levels(self, array: Array) -> int:
        return self.levels_argument or (2 if array.dtype.kind == "b" else 256)

    def _arrange(self, key: str, array: Array) -> Array:
        """Bring images to [N, C, H, W] and signals to [N, C, L], by `layout` or else by the shape."""
        if array.dtype.kind not in "buif":
            raise UserError(
                f"{self.path}: {key} has dtype {array.dtype}; it must be uint8 or a float type (or another integer "
                "type, or bool)"
            )
        if array.ndim < 2 or array.size == 0:
            raise UserError(f"{self.path}: {key} has shape {list(array.shape)}; it must be [N, ...] and not empty")
        layout, shape, floats, doubt = self.layout, list(array.shape), array.dtype.kind == "f", ""
        if layout is None:
            first, last = array.ndim == 4 and shape[1] in (1, 3, 4), array.ndim == 4 and shape[3] in (1, 3, 4)
            if array.ndim == 4 and first == last and not floats:
                raise UserError(
                    f"{self.path}: {key} has shape {shape}, and it is not clear which axis has the channels; "
                    "set data.layout=NHWC, NCHW or as_is"
                )
            layout = "NHWC" if last and not first else "NHW" if array.ndim == 3 and not floats else "as_is"
            if array.ndim == 3:
                other = "NHW if they are grey images" if floats else "NCL or NLC if they are signals"
                doubt = f" (data.layout={other})"
        if layout != "as_is" and len(layout) != array.ndim:
            raise UserError(f"{self.path}: {key} has shape {shape}, which data.layout={layout} does not fit")
        if layout == "NHW":
            array = array[:, None]
        elif layout in ("NHWC", "NLC"):
            array = np.moveaxis(array, -1, 1)
        read = f"{len(array)} {kind_by_shape(array.shape[1:]).unit} of shape {list(array.shape[1:])}"
        log.info("%s: %s, %s %s, read as %s%s", self.path, described(key), array.dtype, shape, read, doubt)
        return array

    def _check(self, key: str, array: Array) -> None:
        """Check that an array's values are levels, or numbers within the range."""
        if self._is_levels(array):
            levels, lo, hi = self._levels(array), int(array.min()), int(array.max())
            if lo < 0 or hi >= levels:
                raise UserError(
                    f"{self.path}: {key} holds integers from {lo} to {hi}; with {levels} levels they must lie in 0 to "
                    f"{levels - 1}; set data.levels (up to 256), or data.range={_around(lo, hi)} (or wider) to read "
                    "them as numbers in that range"
                )
            return
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise UserError(f"{self.path}: {key} holds {bad} NaN or infinite values of {array.size}; remove them first")
        units = self.units or Units(self.data_range[:1], self.data_range[1:])
        columns = len(units.low)
        if columns > 1 and array.shape[1:] != (columns,):
            raise UserError(
                f"{self.path}: data.range has {columns} ranges, and {key} has items of shape {list(array.shape[1:])}: "
                "give one range for each column of rows [N, D], or one for all"
            )
        if self.bounded:
            self._check_range(key, array, units)

    def _check_range(self, key: str, array: Array, units: Units) -> None:
        axes = 0 if len(units.low) > 1 else None
        lows, highs = np.atleast_1d(array.min(axis=axes), array.max(axis=axes))
        for column, (low, high, lo, hi) in enumerate(zip(lows, highs, units.low, units.high, strict=True)):
            if low < lo or high > hi:
                where = f" in column {column}" if len(lows) > 1 else ""
                auto = ", or data.range=auto for the range of each column" if array.ndim == 2 else ""
                raise UserError(
                    f"{self.path}: {key} has values from {low:g} to {high:g}{where}, outside "
                    f"data.range=[{lo:g},{hi:g}]; set data.range={_around(float(low), float(high))} or wider{auto}"
                )
        if self.range is None and array.min() >= 0:
            what = described(key)
            log.warning("%s: %s lie in [0, 1]; if that is their range, set data.range=[0,1]", self.path, what)

    def _conditions(self, arrays: dict[str, Array], sizes: dict[str, int]) -> dict[str, dict[str, Tensor]]:
        """The values of each condition by split, with labels under `label`; sets the names of classes."""
        found, path, self.value_names = dict[str, dict[str, Tensor]](), Path(self.path), {}
        for name in ("labels", *self.conditions_argument):
            parts = {split: arrays[f"{split}_{name}"] for split in SPLITS if f"{split}_{name}" in arrays}
            for split in set(parts) - set(sizes):
                log.warning("%s: not used: %s_%s, as there are no %s_images", path, split, name, split)
                del parts[split]
            if name == "labels":
                given = read_class_names(path, arrays.get("class_names"))
                found["label"], names = read_condition(path, name, parts, sizes, given)
                self.class_names = names if "train" in parts else None
            elif set(parts) != set(sizes):
                lacking = ", ".join(f"{split}_{name}" for split in sizes if split not in parts)
                raise UserError(f"{path} has no array {lacking}, and data.conditions names {name}")
            else:
                found[name], names = read_condition(path, name, parts, sizes)
                self.value_names = {**self.value_names, **({name: names} if names else {})}
        return found


def _range(given: Range | None) -> tuple[Any, Units | None]:
    """The argument `range` as numbers and lists, and the units that it defines."""
    if given is None or given == "auto":
        return given, None
    if isinstance(given, str) or not isinstance(given, Sequence):
        allowed = "[lo, hi] with lo < hi, [[lo, hi], ...] for columns, auto or None"
        raise ValueError(f"range must be {allowed}; got {given!r}")
    if len(given) and all(isinstance(pair, Sequence) and not isinstance(pair, str) for pair in given):
        pairs = [low_and_high(pair) for pair in given]
        return [list(pair) for pair in pairs], Units(*map(tuple, zip(*pairs, strict=True)))
    low, high = low_and_high(given)
    return [low, high], Units((low,), (high,))


def _units_of(array: Array) -> Units:
    """The units from the least to the greatest value: of each column for vectors [N, D], of all values otherwise."""
    axes = 0 if array.ndim == 2 else None
    lows, highs = (np.atleast_1d(ends).astype(np.float64) for ends in (array.min(axis=axes), array.max(axis=axes)))
    margin = np.where(lows == highs, np.maximum(1.0, 1e-6 * np.abs(lows)), 0.0)  # a constant column becomes 0
    return Units(tuple((lows - margin).tolist()), tuple((highs + margin).tolist()))


def _kind(array: Array) -> str:
    kind = {"f": "floats", "b": "booleans"}.get(array.dtype.kind, "integers")
    return f"{kind} of shape {list(array.shape[1:])}"


def _around(low: float, high: float) -> str:
    """A range with few digits that contains two values, for messages."""
    for lo, hi in ((0, 255), (0, 65535)):
        if low >= 0 and 0.9 * hi < high <= hi:
            return f"[{lo},{hi}]"
    same = low == high
    return f"[{_outward(low - same, -1)},{_outward(high + same, 1)}]"


def _outward(value: float, sign: int) -> str:
    """A number rounded to few digits, up (sign 1) or down (sign -1)."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 4) if value else 1.0
    return f"{sign * math.ceil(sign * value / step) * step:.6g}"
