"""kill -9 before every change of a file that a training run makes: what is gone on with ends as the unbroken run did."""

import csv
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

RUN = (
    *("network.width=8", "network.depth=1", "data=moons", "data.n_train=64", "data.n_val=32", "data.n_test=32"),
    *("data.batch_size=16", "trainer.max_steps=6", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
    *(
        "callbacks.samples.n=4",
        "sampler=ddpm",
        "sampler.steps=2",
        "model.validation_draws=1",
        "data.min_batches_per_epoch=5",
    ),
)
LATER = ("trainer.max_steps=10",)
"""What a resumed run goes on to."""


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
    return "" if one == other else f"{where}: {one!r} and {other!r}"


def relative(node: Any, folder: Path) -> Any:
    """A checkpoint's content with its run's folder as a point."""
    if isinstance(node, Mapping):
        return {relative(key, folder): relative(value, folder) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [relative(value, folder) for value in node]
    return node.replace(str(folder), ".") if isinstance(node, str) else node


def state(path: Path) -> dict:
    """A checkpoint without what tells of the folder and of the attempts."""
    found = torch.load(path, weights_only=True)
    found["sde_diffusion"]["run"].pop("record")
    return relative(found, path.parents[1])


def outcome(folder: Path) -> dict:
    """All that a run leaves, in a form that can be compared."""
    found: dict = {"files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for path in (*sorted(folder.glob("*.csv")), *sorted(folder.rglob("*.png"))):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for name in ("best", "last"):
        found[name] = state(folder / "checkpoints" / f"{name}.ckpt")
    record = json.loads((folder / "run.json").read_text())
    record["config"].pop("ckpt")
    found["record"] = relative({key: record[key] for key in ("metrics", "seeds", "config")}, folder)
    assert record["finished"]
    return found
