"""A split of a data set, and how splits are drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.modality.levels import from_levels, to_levels
from sde_diffusion.resizing import shrink

_STD_VALUES = 2**28  # maximum number of values used for a split's statistics
_CHUNK = 2**22  # values converted to float64 at a time
_DIGEST_BYTES = 2**26  # maximum number of bytes used for a digest
_ON_DEVICE = 2**30  # maximum number of bytes of rows that are copied to a device


class Rows(Protocol):
    """The interface of a split's data: a shape [N, ...] and rows by index. Tensors and `ImageFiles` have it."""

    @property
    def shape(self) -> Sequence[int]:
        """The sizes [N, ...]."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """A slice of rows."""

    def index_select(self, dim: int, index: Tensor, /) -> Tensor:
        """Rows (dim = 0) by an int64 tensor of indices; for tensors, several times faster than `x[index]`."""


class Statistics(NamedTuple):
    """Statistics of all values of a split, scaled to [-1, 1]. NaN if one of the values is NaN or infinite."""

    low: float
    high: float
    std: float


@dataclass(frozen=True)
class Split:
    """One split, stored compactly.

    Attributes:
        x: [N, *shape], uint8 levels from 0 to levels - 1, or float32 on [-1, 1].
        label: [N], int64 class numbers, or None.
        levels: Number of levels of x, or None for float data.
        others: Further conditions of the items by name, such as measurements, [N, *] each.
    """

    x: Rows
    label: Tensor | None = None
    levels: int | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def conditions(self) -> dict[str, Tensor]:
        """All conditions of the items by name, [N, *] each: `label`, if there are labels, and the others."""
        return {**({} if self.label is None else {"label": self.label}), **self.others}

    def on(self, device: torch.device) -> Split:
        """The split on a device, where its batches are then made, if its rows are in memory and at most 1 GiB."""
        if not isinstance(self.x, Tensor) or self.x.nbytes > _ON_DEVICE:
            return self
        label = None if self.label is None else self.label.to(device)
        others = {name: values.to(device) for name, values in self.others.items()}
        return replace(self, x=self.x.to(device), label=label, others=others)

    def placed(self, index: Tensor) -> Tensor:
        """An index on the CPU, on the device of the rows; the copy does not wait for the device."""
        if not isinstance(self.x, Tensor) or self.x.device == index.device:
            return index
        return index.pin_memory().to(self.x.device, non_blocking=True)

    def tensor(self, index: Tensor | None = None) -> Tensor:
        """The rows at index [n], or all of them, as float32 [n, *shape] on [-1, 1]."""
        x = self.x[:] if index is None else self.x.index_select(0, index)
        return x if self.levels is None else from_levels(x, self.levels)

    def shrunk(self, factor: int) -> Split:
        """The split of smaller items, in memory: means of blocks, as `resizing.shrink` computes them.

        Levels are rounded to 256 levels, as pictures in files are: the means have more values than the data.

        Raises:
            ValueError: If a size is not a multiple of the factor.
        """
        rows = torch.split(torch.arange(len(self)), max(1, _CHUNK // max(1, math.prod(self.x.shape[1:]))))
        parts = [shrink(self.tensor(some), factor) for some in rows]
        if self.levels is None:
            return replace(self, x=torch.cat(parts))
        return replace(self, x=torch.cat([to_levels(part, 256) for part in parts]), levels=256)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at index [B]: `x`, float32 [B, *shape] on [-1, 1], and the conditions by name."""
        return {"x": self.tensor(index), **{name: v.index_select(0, index) for name, v in self.conditions.items()}}

    def digest(self) -> str:
        """A digest of the values and conditions, or of 64 MiB of them: 32 hexadecimal digits.

        It is the same on every machine if reading the data is exact, as it is of the stored values.
        """
        n = len(self)
        size = max(1, int(np.prod(self.x.shape[1:])) * (1 if self.levels else 4))
        rows = torch.linspace(0, n - 1, max(1, min(n, _DIGEST_BYTES // size)), dtype=torch.float64).round().long()
        found = hashlib.sha256(f"{list(self.x.shape)} {self.levels}".encode())
        for part in torch.split(rows, max(1, _CHUNK // size)):
            found.update(self.x.index_select(0, part).contiguous().numpy().data)
        if self.label is not None:
            found.update(self.label.contiguous().numpy().data)
        for name, values in sorted(self.others.items()):
            found.update(f"{name} {list(values.shape)} {values.dtype}".encode())
            found.update(values.contiguous().numpy().data)
        return found.hexdigest()[:32]

    @cached_property
    def statistics(self) -> Statistics:
        """Least and greatest value, and the standard deviation of all values about their common mean, in float64.

        Exact up to 2^28 values; beyond that, computed from evenly spaced rows with so many values.
        """
        n, dims = len(self), max(1, int(np.prod(self.x.shape[1:])))
        kept = torch.linspace(0, n - 1, max(1, min(n, _STD_VALUES // dims)), dtype=torch.float64).round().long()
        rows: Tensor
        count, total, squares, ends = 0, 0.0, 0.0, []
        for rows in torch.tensor_split(kept, 1 + len(kept) * dims // _CHUNK):
            x = self.tensor(rows).double()
            count += x.numel()
            total += x.sum().item()
            squares += x.square().sum().item()
            ends.append(torch.stack(x.aminmax()))
        low, high = torch.stack(ends).T
        std = float(np.sqrt(np.maximum(0.0, squares / count - (total / count) ** 2)))
        return Statistics(low.min().item(), high.max().item(), std)


def differences(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """How data differ, by their fingerprints, as a message; "" if they do not, or it is unknown.

    Args:
        before: Number and digest of the items of each split, {"items": ..., "digest": ...}; None or empty: unknown.
        now: The same for the present data.
    """
    found: list[str] = []
    if not before or not now:
        return ""
    for name, mine in now.items():
        old = before.get(name, mine)
        if old["items"] != mine["items"]:
            found.append(f"{name}: {old['items']} items then, {mine['items']} now")
        elif old["digest"] != mine["digest"]:
            found.append(f"{name}: {mine['items']} items as before, but different ones")
    return "; ".join(found)


def divide(
    n: int,
    counts: Sequence[int],
    seed: int,
    labels: npt.ArrayLike | None = None,
    where: str = "",
    start: float | None = None,
) -> list[Tensor]:
    """Split n items at random into parts of given sizes and the rest, with each class nearly in proportion.

    The shuffled items are ordered by class, and each part takes evenly spaced ones from a random start (systematic
    sampling): all items have the same probability, and the number of a class's items in a part differs from exact
    proportion by less than one. If no item of a class would remain in the rest, its first item is reserved for the rest
    and the parts are drawn again; the numbers then differ by less than two. A pure function of its arguments.

    Args:
        n: Number of items.
        counts: Sizes of the parts, which must leave at least one item of each class.
        seed: Seed of the shuffle.
        labels: Class numbers, [n]; None: all items are of one class.
        where: Beginning of the message on too few items.
        start: Position of the first of the evenly spaced items, in [0, 1) of their distance; None: random.

    Returns:
        Sorted int64 indices: first the rest, which has every class, then each part.

    Raises:
        UserError: If the items are too few.
    """
    classes = np.zeros(n, np.int64) if labels is None else np.asarray(labels)
    known = np.unique(classes)
    if sum(counts) > n - len(known):
        each = "" if len(known) < 2 else f" and leave one of each of the {len(known)} classes"
        raise UserError(f"{where}{n} training items are too few to split off {' and '.join(map(str, counts))}{each}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(n)
    if start is None:  # a single class is in random order already
        start = generator.random() if len(known) > 1 else 0.0
    order = order[np.argsort(classes[order], kind="stable")]
    aside = np.zeros(n, bool)
    while True:
        rest, parts = order[~aside[order]], []
        for count in counts:
            taken = np.diff((np.arange(len(rest) + 1) * count + int(start * len(rest))) // len(rest)) == 1
            parts.append(rest[taken])
            rest = rest[~taken]
        rest = np.concatenate([rest, np.flatnonzero(aside)])
        lost = np.setdiff1d(known, classes[rest])
        if not len(lost):
            return [torch.from_numpy(np.sort(part)) for part in (rest, *parts)]
        ordered = classes[order]  # items of a class are adjacent, and the first of them is reserved
        aside[order[np.searchsorted(ordered, lost)]] = True


def shrunk(name: str, splits: Mapping[str, Split], factor: int) -> dict[str, Split]:
    """The splits with smaller items; see `Split.shrunk`.

    Raises:
        UserError: If a size is not a multiple of the factor.
    """
    try:
        return {split: part.shrunk(factor) for split, part in splits.items()}
    except ValueError as error:
        raise UserError(f"data.shrink={factor}, {name}: {error}") from error
