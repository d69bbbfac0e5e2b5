"""Columns of images and labels in Arrow tables, such as those of the Hugging Face hub."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import few
from sde_diffusion.data.names import ITEM_NAMES
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.storage.files import opened

Schema = Any
"""A `pyarrow.Schema`, and a `pyarrow.Table`: the library is optional."""
Table = Any


def library(module: str, extra: str, what: str) -> Any:
    """An optional library.

    Raises:
        UserError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UserError(
            f"{what} needs {name}, which cannot be imported ({error}); install it with pip install "
            f"'sde_diffusion[{extra}]', or pip install {name}"
        ) from error


def _features(schema: Schema) -> dict[str, Any]:
    """What the hub's libraries say about the columns, by name; empty for tables of other origins."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one for name, one in found.items() if isinstance(one, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def columns(schema: Schema, where: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The names of the columns of images and of labels.

    Args:
        schema: The names and types of the columns.
        where: The table, for messages.
        image: Name of the column of images; None: the first of a type that images are stored in, which is bytes, or
            a struct with bytes.
        label: Name of the column of labels; None: the first that has class names, or else a usual name.

    Raises:
        UserError: If there is no such column.
    """
    pa = importlib.import_module("pyarrow")
    names, kinds = list(schema.names), {field.name: field.type for field in schema}
    for key, name in (("image", image), ("label", label)):
        if name is not None and name not in names:
            raise UserError(f"{where} has no column data.{key}={name}{did_you_mean(name, names)}; it has {few(names)}")

    def holds_images(kind: Any) -> bool:
        fields = {one.name: one.type for one in kind} if pa.types.is_struct(kind) else {"bytes": kind}
        return any(test(fields.get("bytes", pa.null())) for test in (pa.types.is_binary, pa.types.is_large_binary))

    if image is not None and not holds_images(kinds[image]):
        raise UserError(f"{where}: the column data.image={image} is {kinds[image]}, and images are stored as bytes")
    images = [image] if image else [name for name in names if holds_images(kinds[name])]
    if not images:
        raise UserError(f"{where} has no column of images (bytes of image files); it has {few(names)}")
    integers = [name for name in names if pa.types.is_integer(kinds[name])]
    if label is not None and label not in integers:
        raise UserError(f"{where}: the column data.label={label} is {kinds[label]}, and labels are integers")
    named = [name for name, one in _features(schema).items() if one.get("_type") == "ClassLabel" and name in integers]
    usual = [name for name in integers if name.lower() in ITEM_NAMES["labels"]]
    return images[0], next(iter([label] if label else [*named, *usual]), None)


def class_names(schema: Schema, label: str | None) -> list[str] | None:
    """The names of the classes of a column of labels, if they have names."""
    names = _features(schema).get(label or "", {}).get("names")
    return [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else None


def images_of(table: Table, column: str, where: str) -> list[bytes]:
    """The encoded images of a column; those of which only the path is stored are read.

    Raises:
        UserError: If an image is missing.
    """
    found = []
    for row, item in enumerate(table[column].to_pylist()):
        data, path = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (item, None)
        if data is None and path:
            with opened(Path(path)) as file:
                data = file.read()
        if not data:
            raise UserError(f"{where}, row {row}: there is no image in the column {column}")
        found.append(data)
    return found


def labels_of(tables: Sequence[Table], column: str | None) -> Tensor | None:
    """The labels of a column [N], or None if there are none, or hidden ones, which are -1."""
    if column is None:
        return None
    found = [value for table in tables for value in table[column].to_pylist()]
    return None if None in found or min(found, default=0) < 0 else torch.tensor(found, dtype=torch.int64)
