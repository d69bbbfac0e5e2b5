"""The usual names of splits, and of arrays in files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sde_diffusion.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Spellings of each split, in lower case."""

ITEM_NAMES = {
    "images": ("images", "image", "x", "data", "points", "signals", "signal", "inputs", "samples", "arr_0"),
    "labels": ("labels", "label", "y", "targets", "target", "classes"),
    "class_names": ("class_names", "label_names", "classnames", "target_names"),
}
"""Names of the arrays of each split, in lower case; the class names are common to all splits."""

SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
"""The split of each spelling."""

_ITEMS = {name: item for item, names in ITEM_NAMES.items() for name in names}


def split_folders(names: Iterable[str], where: str) -> dict[str, str]:
    """Find the subfolders of the splits.

    Args:
        names: Names of the subfolders.
        where: The folder, for messages.

    Returns:
        The subfolder of each split; empty if there is none for train.

    Raises:
        UserError: If there are two for the same split, or all subfolders are splits but none is train.
    """
    names = list(names)
    found = _unique(((SPLIT_OF.get(name.lower()), name) for name in names), where)
    if found and "train" not in found and len(found) == len(names):
        raise UserError(f"{where} holds {' and '.join(names)}, and no train/: name the training split's folder train")
    return found if "train" in found else {}


def array_names(names: Iterable[str], where: str, conditions: Sequence[str] = ()) -> dict[str, str]:
    """Find the arrays of a file by their usual names: `x_train`, `train_images`, `images` etc. are training images.

    Args:
        names: Names of the arrays.
        where: The file, for messages.
        conditions: Names of conditions whose arrays are wanted too.

    Returns:
        The array's name for each of `train_images`, `val_labels`, `train_CONDITION`, ... and `class_names` that exists.

    Raises:
        UserError: If there are two for the same.
    """
    wanted = {
        f"{split}{mark}{name}".lower() if first else f"{name}{mark}{split}".lower(): f"{SPLIT_OF[split]}_{name}"
        for name in conditions
        for split in SPLIT_OF
        for mark in ("_", "-", ".", "")
        for first in (True, False)
    } | {name.lower(): f"train_{name}" for name in conditions}
    return _unique(((wanted.get(name.lower()) or _role(name.lower()), name) for name in names), where)


def described(role: str) -> str:
    """An array's standard name in words, whatever kind of data it holds: "the training items", "the test labels"."""
    split, _, what = role.partition("_")
    words = {"train": "training", "val": "validation", "test": "test"}
    return f"the {words[split]} {'items' if what == 'images' else what}" if split in words else "the class names"


def _role(name: str) -> str | None:
    """The standard name of an array, by its name in lower case; None if it is not a usual one."""
    if name in _ITEMS or name in SPLIT_OF:
        split, item = SPLIT_OF.get(name, "train"), _ITEMS.get(name, "images")
    else:
        words = re.split(r"[_\W]+", name)
        splits, items = [SPLIT_OF[w] for w in words if w in SPLIT_OF], [_ITEMS[w] for w in words if w in _ITEMS]
        if len(words) != 2 or len(splits) != 1 or len(items) != 1:
            joined = re.fullmatch(r"(x|y)(\w+)", name)  # xtrain
            if not joined or joined[2] not in SPLIT_OF:
                return None
            splits, items = [SPLIT_OF[joined[2]]], [_ITEMS[joined[1]]]
        split, item = splits[0], items[0]
    return item if item == "class_names" else f"{split}_{item}"


def _unique(pairs: Iterable[tuple[str | None, str]], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, name in pairs:
        if role is None:
            continue
        if role in found:
            raise UserError(f"{where}: both {found[role]} and {name} would be {role}; rename or remove one")
        found[role] = name
    return found
