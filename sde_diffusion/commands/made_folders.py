"""Which folders and logs a run makes, so that a refused command can remove them, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

_missing: set[Path] = set()
"""What was not there before Hydra made it; what lies below was not there either."""


class MadeFolders(Callback):
    """Hydra's callback before it makes a run's folder and log."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folders of a single run that are missing, and its log."""
        _note(config.hydra.run, config.hydra.job.name)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folders of a multirun that are missing."""
        _note(config.hydra.sweep, config.hydra.job.name)


def _note(where: DictConfig, name: str) -> None:
    with suppress(OmegaConfBaseException, OSError):  # Hydra reports what it cannot read
        folder = Path(where.dir).absolute()
        _missing.update(path for path in (folder / f"{name}.log", folder, *folder.parents) if not path.exists())


def _is_new(path: Path) -> bool:
    return any(one in _missing for one in (path, *path.parents))


def remove_if_unused(folder: Path, log: str, refused: bool) -> None:
    """Remove a run's log, and the folders that were made for it and are empty.

    Args:
        folder: The output folder.
        log: Name of the log.
        refused: Whether the log may be removed although it has lines, since the command was refused.
    """
    folder = folder.absolute()
    path = folder / log
    with suppress(OSError):
        if _is_new(path) and (refused or not path.stat().st_size):
            path.unlink()
    with suppress(OSError):  # a folder that is not empty stays, and so do those above it
        for made in (folder, *folder.parents):
            if not _is_new(made):
                break
            made.rmdir()
