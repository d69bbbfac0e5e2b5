"""The record of a training run, `run.json`: its command, code, hardware and results."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sde_diffusion._version import __version__
from sde_diffusion.storage.files import read_json, writing

NAME = "run.json"
PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "torchdiffeq",
    "torchsde",
    "numpy",
    "scipy",
    "scikit-learn",
    "hydra-core",
    "omegaconf",
    "wandb",
)
"""Packages whose versions are recorded, beside Python's, CUDA's and this package's own."""


def describe(
    config: Mapping[str, Any], overrides: Sequence[str] = (), device: str = "cpu", devices: int = 1, nodes: int = 1
) -> dict[str, Any]:
    """The description of a run before it begins.

    Args:
        config: Its resolved configuration, as dicts and lists.
        overrides: The overrides of its command line.
        device: The kind of device, as torch names it: cpu, cuda, ...
        devices: Number of devices on each machine.
        nodes: Number of machines.

    Returns:
        A dict for JSON with command, config, seeds, versions, git and hardware. It has no host name, and no paths
        except those in the configuration and the command.
    """
    import torch

    hardware = {"device": device_name(device), "kind": device, "devices": devices, "nodes": nodes}
    return {
        "command": shlex.join(["python", "-m", "sde_diffusion.train", *overrides]),
        "config": dict(config),
        "seeds": dict(_seeds(config)),
        "versions": versions(),
        "git": git_state(),
        "hardware": {**hardware, "threads": torch.get_num_threads()},  # of each process on the CPU
    }


def provenance() -> dict[str, Any]:
    """The code that made a result: version, versions of packages, git revision."""
    return {"version": __version__, "versions": versions(), "git": git_state()}


def begin(folder: Path, description: Mapping[str, Any], resumed: bool = False) -> None:
    """Write a run's record before its first step, so that one that fails has it too.

    Args:
        folder: The run's folder.
        description: What `describe` returned.
        resumed: Whether it resumes the run of the folder: then the earlier records are kept under `earlier`.
    """
    before = read(folder) if resumed else {}
    earlier = [*before.pop("earlier", []), before] if before else []
    _write(folder, {**description, "started": _now(), "finished": None, "metrics": None, "earlier": earlier})


def finish(folder: Path, metrics: Mapping[str, float]) -> None:
    """Add the time of completion and the last metrics to the record of a run."""
    _write(folder, {**read(folder), "finished": _now(), "metrics": dict(metrics)})


def read(folder: Path) -> dict[str, Any]:
    """The record in the folder of a run; empty if there is none.

    Raises:
        UserError: If the file is damaged.
    """
    path = folder / NAME
    return read_json(path) if path.is_file() else {}


def versions() -> dict[str, str | None]:
    """Versions of Python, this package, CUDA (null if torch has none) and the packages that results depend on."""
    import torch

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    found["torch"] = str(torch.__version__)  # includes the build, such as +cpu or +cu130
    return {"python": platform.python_version(), "sde_diffusion": __version__, "cuda": torch.version.cuda, **found}


def git_state(package: Path = PACKAGE) -> dict[str, Any] | None:
    """The git revision of the package, and whether code or configurations differ from it.

    Args:
        package: The package's folder.

    Returns:
        {"revision": 40 digits, "dirty": bool}; None if the package is not tracked by a repository, as an installed one,
        or git is not available.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        revision = _git(package, "rev-parse", "HEAD").strip()
        # Configurations are beside the package; other files, such as notes, do not matter.
        changed = _git(package.parent, "status", "--porcelain", "--", package.name, "conf")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "dirty": bool(changed.strip())}


def device_name(kind: str) -> str:
    """The name of the GPU or the processor."""
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _seeds(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every key of the configuration that is named seed, by its dotted name."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "seed":
                yield ".".join((*path, key)), value
            yield from _seeds(value, (*path, str(key)))


def _git(folder: Path, *arguments: str) -> str:
    typed = ["git", "-C", str(folder), *arguments]
    return subprocess.run(typed, check=True, capture_output=True, text=True, timeout=20).stdout


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    with writing(folder / NAME) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
