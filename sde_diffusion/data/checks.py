"""Checks of data, made once when they are loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import check_sizes, real
from sde_diffusion.checks.reprs import few, shown
from sde_diffusion.data.split import Split
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Modality

log = logging.getLogger(__name__)

_FILLED = 0.1
"""Warn if the least and the greatest value are closer than this share of [-1, 1]."""

_SPREAD = 0.01
"""Warn if the standard deviation is smaller, since a single outlier can extend the range."""

_ROUNDING = 1e-6


def height_and_width(size: object) -> tuple[int, int] | None:
    """The argument `size` of a data set as (height, width); None stays None.

    Args:
        size: [height, width], one number for both, or None.

    Raises:
        ValueError: If it is none of these.
    """
    if size is None:
        return None
    allowed = "a number of pixels, such as 32, or [height,width], such as [32,48], or None"
    sides = size if isinstance(size, Sequence) and not isinstance(size, str) else [size, size]
    try:
        height, width = check_sizes("data.size", sides, allowed, least=2, most=2)
    except ValueError:
        raise ValueError(f"data.size must be {allowed}; got {shown(size)}") from None
    return height, width


def low_and_high(range: object) -> tuple[float, float]:
    """The argument `range` of a data set as (low, high).

    Raises:
        ValueError: If it is not two finite numbers in ascending order.
    """
    ends = [real(end) for end in range] if isinstance(range, Sequence) and not isinstance(range, str) else []
    low, high = (math.nan if end is None else float(end) for end in (ends if len(ends) == 2 else (None, None)))
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"range must be two finite numbers [lo, hi] with lo < hi, or None; got {shown(range)}")
    return low, high


def check_splits(name: str, splits: Mapping[str, Split], bounded: bool, class_names: Sequence[str] | None) -> None:
    """Check the splits of a data set, and warn of values that are probably wrong.

    The values of images that are read from files in batches are not checked.

    Args:
        name: Name of the data set.
        splits: The splits by name.
        bounded: Whether all values must lie in [-1, 1].
        class_names: Names of the classes 0, 1, ..., if there are any.

    Raises:
        UserError: If a split is missing, empty, or has another shape than the others; if values are NaN, infinite or
            out of range; if labels are not class numbers.
    """
    missing = [split for split in ("train", "val", "test") if split not in splits or not len(splits[split])]
    if missing:
        raise UserError(f"{name!r} has no items in {' and '.join(missing)}: train, val and test must each have some")
    train = splits["train"]
    for split, part in splits.items():
        if (tuple(part.x.shape[1:]), part.levels) != (tuple(train.x.shape[1:]), train.levels):
            kinds = [f"{list(one.x.shape[1:])} with {one.levels or 'no'} levels" for one in (train, part)]
            raise UserError(f"{name!r}: train has items of shape {kinds[0]}, and {split} {kinds[1]}; they must agree")
        if isinstance(part.x, Tensor):
            _check_values(f"the {split} split of {name!r}", part, bounded or part.levels is not None)
    if isinstance(train.x, Tensor):
        _warn_of_range(name, train)
    _check_labels(name, splits, class_names)
    _check_others(name, splits)


def _check_values(what: str, part: Split, bounded: bool) -> None:
    low, high, std = part.statistics
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(std)):
        raise UserError(f"{what} holds NaN or infinite values: remove them first")
    if bounded and (low < -1 - _ROUNDING or high > 1 + _ROUNDING):
        raise UserError(
            f"{what} has values from {low:g} to {high:g}, but models need values in [-1, 1]: scale them, "
            "y -> 2 (y - lo) / (hi - lo) - 1"
        )


def _warn_of_range(name: str, train: Split) -> None:
    low, high, std = train.statistics
    remedy = "data.range=[lo,hi]" if train.levels is None else "data.levels=N, or data.range=[lo,hi],"
    if low == high:
        log.warning("%s: all values of the training split are equal (%g on [-1, 1]): nothing to learn", name, low)
    elif (high - low) / 2 < _FILLED or std < _SPREAD:
        log.warning(
            f"{name}: the training split fills {50 * (high - low):.2g}% of [-1, 1] (from {low:.4g} to {high:.4g}, "
            f"standard deviation {std:.2g}), from which a model learns little; if its values have another range, set "
            f"{remedy} if the data set has this key"
        )
    elif train.levels is None and len(train.x.shape) == 2:
        x = train.tensor()
        widths = (x.amax(0) - x.amin(0)) / 2
        narrow = torch.nonzero(widths < _FILLED).flatten().tolist()
        if narrow:
            log.warning(
                f"{name}: column {few(narrow)} of the training split fills less than {_FILLED:.0%} of [-1, 1]; set the "
                "range of each column with data.range=[[lo,hi],...] or data.range=auto"
            )


def _check_labels(name: str, splits: Mapping[str, Split], class_names: Sequence[str] | None) -> None:
    found: dict[str, set[int]] = {}
    for split, part in splits.items():
        if part.label is None:
            continue
        if part.label.shape != (len(part),) or part.label.is_floating_point() or int(part.label.min()) < 0:
            raise UserError(
                f"{name!r}: labels of {split} must be integers from 0 up, one for each of its {len(part)} items"
            )
        found[split] = set(torch.unique(part.label).tolist())
    if not found:
        return
    bare = [split for split in splits if split not in found]
    if bare:
        unusable = "" if {"train", "val"} <= set(found) else "; they cannot be used for training"
        log.warning("%s: %s has labels and %s has none%s", name, " and ".join(found), " and ".join(bare), unusable)
    if "train" not in found:
        return
    known = found["train"]
    n_classes = 1 + max(map(max, found.values()))
    if class_names is not None and len(class_names) < n_classes:
        raise UserError(f"{name!r}: labels run to {n_classes - 1}, and there are {len(class_names)} class names")
    for split, labels in found.items():
        if labels - known:
            log.warning("%s: %s has the labels %s that train lacks", name, split, few(sorted(labels - known)))
    if len(known) <= max(known):
        absent = (k for k in range(max(known)) if k not in known)
        some = few([next(absent) for _ in range(min(11, max(known) + 1 - len(known)))])
        log.warning(
            f"{name}: labels run to {max(known)}, but train lacks {some}: a conditional model has all {n_classes} "
            "classes, and those without items are not trained; number the classes 0, 1, 2, ..."
        )


def _check_others(name: str, splits: Mapping[str, Split]) -> None:
    """Check that conditions other than labels are in each split, finite, and of the same shape and type."""
    train = splits["train"].others
    for split, part in splits.items():
        if set(part.others) != set(train):
            own = few(sorted(part.others)) or "none"
            raise UserError(f"{name!r}: the conditions of train are {few(sorted(train)) or 'none'}, of {split} {own}")
        for condition, values in part.others.items():
            like = train[condition]
            if (wanted := (len(part), *like.shape[1:], like.dtype)) != (*values.shape, values.dtype):
                found = f"{values.dtype} {list(values.shape)}"
                raise UserError(
                    f"{name!r}: {condition} of {split} must be {wanted[-1]} {list(wanted[:-1])}; got {found}"
                )
            if bad := int((~values.reshape(len(part), -1).isfinite()).any(1).sum()):
                raise UserError(
                    f"{name!r}: {condition} of {split} is NaN (missing) or infinite for {bad} of {len(part)} items: "
                    f"remove them, or fill in a value; a model learns to do without {condition} from the others too"
                )


def check_processes(name: str, items: int, n: int) -> None:
    """Check that the validation split has an item for each process, as a process without one would fail.

    Args:
        name: Name of the data set.
        items: Number of items of the validation split.
        n: Number of processes.

    Raises:
        UserError: If there are fewer items than processes.
    """
    if items < n:
        raise UserError(
            f"{name}: each of {n} processes needs items to validate on, and the validation split has only {items}: use "
            "fewer devices (trainer.devices=, trainer.num_nodes=) or a larger split"
        )


def check_image_settings(name: str, modality: Modality, **settings: bool) -> None:
    """Check that settings which only images have are not used with other data.

    Args:
        name: Name of the data set.
        modality: The kind of data.
        **settings: Whether each setting is used.

    Raises:
        UserError: If one is, and the data are not images.
    """
    for key, used in settings.items():
        if used and not modality.mirrored:
            raise UserError(f"data.{key} is for images, but {name!r} has {modality.kind}: leave it out")
