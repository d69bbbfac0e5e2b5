"""What commands leave behind, in a form that can be compared bit for bit."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TIMED = ("seconds", "settings", "checkpoint", "ckpt", "git", "versions", "started", "finished")
"""Entries of results that depend on the clock, the folder or the code's revision."""


def difference(one: Any, other: Any, where: str = "") -> str:
    """Where two nested containers differ first, tensors bit for bit; empty where they do not."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return "" if one.dtype == other.dtype and one.equal(other) else f"{where}: tensors differ"
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if list(one) != list(other):
            return f"{where}: {list(one)} and {list(other)}"
        return next(filter(None, (difference(one[key], other[key], f"{where}.{key}") for key in one)), "")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)), "")
    return "" if one == other else f"{where}: {one!r:.200} and {other!r:.200}"


def relative(node: Any, folder: Path) -> Any:
    """A checkpoint's content with its run's folder as a point."""
    if isinstance(node, Mapping):
        return {relative(key, folder): relative(value, folder) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [relative(value, folder) for value in node]
    return node.replace(str(folder), ".") if isinstance(node, str) else node


def state(path: Path) -> dict:
    """A checkpoint without entries that depend on the folder or the number of attempts."""
    found = torch.load(path, weights_only=True)
    found["sde_diffusion"]["run"].pop("record")
    return relative(found, path.parents[1])


def training(folder: Path) -> dict:
    """All results of a training run."""
    found: dict = {"files": names(folder)}
    for path in (*sorted(folder.glob("*.csv")), *sorted(folder.rglob("*.png"))):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for name in ("best", "last"):
        found[name] = state(folder / "checkpoints" / f"{name}.ckpt")
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"]
    record["config"].pop("ckpt")
    found["record"] = relative({key: record[key] for key in ("metrics", "seeds", "config")}, folder)
    return found


def results(folder: Path) -> dict:
    """All results of another command, without entries that depend on the clock."""
    found: dict = {"files": names(folder)}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = _untimed(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            found[name] = _untimed(list(csv.DictReader(io.StringIO(path.read_text()))))
        elif path.suffix in (".png", ".npz", ".gif"):
            found[name] = path.read_bytes()
    return relative(found, folder)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _untimed(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _untimed(value) for key, value in node.items() if key not in TIMED}
    return [_untimed(value) for value in node] if isinstance(node, list) else node
