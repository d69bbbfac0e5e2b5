"""Any data in an .npz file."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.data.module import Common, DataModule
from sde_diffusion.data.split import Split, divide
from sde_diffusion.errors import UserError

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_LAYOUTS = ("NHW", "NHWC", "NCHW", "as_is")


class Arrays(DataModule):
    """The arrays `train_images`, `train_labels`, `test_images` and `test_labels` of one .npz file.

    Labels are optional. Without test images, a share of the training images is split off. Two kinds of images:

    - integers (uint8, or others from 0 to 255): levels. [N, H, W] is read as grey images, [N, H, W, C] and
      [N, C, H, W] as colour (C = 1, 3 or 4) where only one of the two fits, [N, D] as vectors.
    - floats: mapped linearly from range to [-1, 1]. [N, H, W, C] is read as colour where nothing else fits; any
      other shape [N, ...] is kept as it is.

    The log says how the file was read.

    Args:
        path: The file.
        range: [lo, hi], the range of float data; None: [-1, 1].
        levels: Number of levels of integer data, 2 to 256; None: 256.
        layout: NHW, NHWC, NCHW or as_is, in place of the guess; None: guess.
        val_fraction: Share of the training images split off for validation.
        test_fraction: Share of the training images split off for test, where the file has no test images.
        split_seed: Of both.
        **common: See `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "arrays"

    def __init__(
        self,
        path: str,
        range: Sequence[float] | None = None,
        levels: int | None = None,
        layout: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if range is not None and not (len(range) == 2 and -math.inf < range[0] < range[1] < math.inf):
            raise ValueError(f"range must be two finite numbers [lo, hi] with lo < hi, or None; got {list(range)}")
        if levels is not None and not 2 <= levels <= 256:
            raise ValueError(f"levels must be from 2 to 256, or None; got {levels}")
        if layout is not None and layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, or None; got {layout!r}")
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                "val_fraction and test_fraction must be positive with a sum below 1; got "
                f"val_fraction={val_fraction}, test_fraction={test_fraction}"
            )
        self.path, self.layout, self.split_seed = str(Path(path).expanduser().absolute()), layout, split_seed
        self.range = None if range is None else [float(end) for end in range]
        self.levels_argument = levels
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def config(self) -> dict[str, Any]:
        """See `DataModule`; `levels` as given, not as found."""
        return super().config | {"levels": self.levels_argument}

    def load(self) -> dict[str, Split]:
        """Read, check and split the arrays."""
        arrays = self._read()
        train, test = self._split(arrays, "train"), None
        if "test_images" in arrays:
            test = self._split(arrays, "test")
            if test.x.shape[1:] != train.x.shape[1:] or test.levels != train.levels:
                raise UserError(
                    f"{self.path}: train_images are {_kind(train)} and test_images {_kind(test)}; they must agree"
                )
        n = len(train)
        counts = [max(1, round(n * self.val_fraction))]
        if test is None:
            counts.append(max(1, round(n * self.test_fraction)))
        if sum(counts) >= n:
            raise UserError(f"{self.path}: {n} training images are too few to split off {sum(counts)} for checking")
        rest, *parts = (_take(train, rows) for rows in divide(n, counts, self.split_seed, train.label))
        return dict(zip(("train", "val", "test"), (rest, *parts, *([test] if test else [])), strict=True))

    def _read(self) -> dict[str, Array]:
        if not Path(self.path).is_file():
            raise UserError(f"data.path={self.path}: no such file; it must be an .npz file with {', '.join(_KEYS)}")
        try:
            # Never allow_pickle: loading would run code from the file.
            file = np.load(self.path, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(
                    f"data.path={self.path} holds one bare array; save it as "
                    "numpy.savez(FILE, train_images=..., test_images=...)"
                )
            with file:
                found = list(file.files)
                if "train_images" not in found:
                    raise UserError(
                        f"{self.path} has no train_images; it holds {', '.join(found) or 'nothing'}; "
                        f"the names are {', '.join(_KEYS)}, of which only the first is required"
                    )
                return {key: self._member(file, key) for key in _KEYS if key in found}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"data.path={self.path} is not a whole .npz file: {error}") from error

    def _member(self, file: Any, key: str) -> Array:
        try:
            array: Array = file[key]
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise UserError(
                f"{self.path}: {key} is an array of Python objects, which is never loaded (that could run code); "
                "save numbers, such as uint8 or float32; images of different sizes belong in a folder (data=folder)"
            ) from error
        return array

    def _split(self, arrays: dict[str, Array], part: str) -> Split:
        key = f"{part}_images"
        array = arrays[key]
        if array.dtype.kind not in "buif":
            raise UserError(f"{self.path}: {key} has dtype {array.dtype}; it must be uint8 or a float type")
        if array.ndim < 2 or array.size == 0:
            raise UserError(f"{self.path}: {key} has shape {list(array.shape)}; it must be [N, ...] and not empty")
        array = self._arrange(key, array)
        if array.dtype.kind == "f":
            return Split(self._floats(key, array), self._labels(arrays, part, len(array)))
        levels = self.levels_argument or 256
        lo, hi = int(array.min()), int(array.max())
        if lo < 0 or hi >= levels:
            raise UserError(
                f"{self.path}: {key} holds integers from {lo} to {hi}; with {levels} levels they must lie in 0 to "
                f"{levels - 1}; set data.levels (up to 256), or save floats and set data.range=[lo,hi]"
            )
        x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8))
        return Split(x, self._labels(arrays, part, len(array)), levels)

    def _arrange(self, key: str, array: Array) -> Array:
        """Bring images to [N, C, H, W], by layout or by the one reading that fits."""
        layout, shape, floats = self.layout, list(array.shape), array.dtype.kind == "f"
        if layout is None:
            first, last = array.ndim == 4 and shape[1] in (1, 3, 4), array.ndim == 4 and shape[3] in (1, 3, 4)
            if array.ndim == 4 and first == last and not floats:
                raise UserError(
                    f"{self.path}: {key} has shape {shape}, and which axis holds the channels is not clear; "
                    "set data.layout=NHWC, NCHW or as_is"
                )
            layout = "NHWC" if last and not first else "NHW" if array.ndim == 3 and not floats else "as_is"
        if layout != "as_is" and len(layout) != array.ndim:
            raise UserError(f"{self.path}: {key} has shape {shape}, which data.layout={layout} does not fit")
        if layout == "NHW":
            array = array[:, None]
        elif layout == "NHWC":
            array = np.moveaxis(array, -1, 1)
        log.info("%s: %s %s %s read as %d items of shape %s", self.path, key, array.dtype, shape, *_items(array))
        return array

    def _floats(self, key: str, array: Array) -> Tensor:
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if bad:
            raise UserError(f"{self.path}: {key} holds {bad} NaN or infinite values of {array.size}; remove them first")
        lo, hi = self.range or self.data_range
        low, high = float(array.min()), float(array.max())
        if low < lo or high > hi:
            raise UserError(
                f"{self.path}: {key} has values from {low:g} to {high:g}, outside data.range=[{lo:g},{hi:g}]; "
                f"set data.range=[{_outward(low, -1)},{_outward(high, 1)}] or wider"
            )
        if self.range is None and low >= 0 and high <= 1:
            log.warning("%s: %s lies in [0, 1]; if that is its range, set data.range=[0,1]", self.path, key)
        x: Array = np.ascontiguousarray(array, dtype=np.float64 if array.dtype.itemsize > 4 else np.float32)
        scaled: Array = x * (2 / (hi - lo)) - (hi + lo) / (hi - lo)
        return torch.from_numpy(scaled).float().clamp_(-1, 1)  # rounding can pass the ends, and the range is a promise

    def _labels(self, arrays: dict[str, Array], part: str, n: int) -> Tensor | None:
        key = f"{part}_labels"
        if key not in arrays:
            return None
        label = arrays[key]
        if label.shape == (n, 1):
            label = label[:, 0]
        if label.shape != (n,):
            raise UserError(f"{self.path}: {key} has shape {list(label.shape)}; {n} images need labels of shape [{n}]")
        if label.dtype.kind not in "bui" or label.min() < 0:
            raise UserError(f"{self.path}: {key} must be integers from 0 up (class numbers); found {label.dtype}")
        return torch.from_numpy(label.astype(np.int64))


def _items(array: Array) -> tuple[int, list[int]]:
    return len(array), list(array.shape[1:])


def _kind(split: Split) -> str:
    return f"{'floats' if split.levels is None else 'integers'} of shape {list(split.x.shape[1:])}"


def _take(split: Split, rows: Tensor) -> Split:
    return Split(split.x.index_select(0, rows), None if split.label is None else split.label[rows], split.levels)


def _outward(value: float, sign: int) -> str:
    """A number of few digits, rounded up (sign 1) or down (sign -1), so that what is typed holds the data."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 3) if value else 1.0
    return f"{sign * math.ceil(sign * value / step) * step:.6g}"
