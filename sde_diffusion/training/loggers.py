"""Loggers: CSV files that survive a resume, and wandb without prompts and without waiting for a server."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as pl_loggers
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sde_diffusion.storage.files import flush, writing
from sde_diffusion.storage.lock import check_held

log = logging.getLogger(__name__)


class CSVLogger(Logger):
    """Writes `folder/metrics.csv`, and goes on with the file of a resumed run.

    Rows at or after the step from which the run goes on are dropped, when that step is named or else when the first
    row comes: they are about to be written again. Rows are numbered as Lightning does, from step 0 on. A row is
    appended; where there are new columns or dropped rows, the file is replaced as a whole. Lightning's own CSVLogger
    (2.6) deletes the file at its start, and rewrites it in place: killed then, it has lost every row.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._resuming = self.path.is_file()

    @property
    def name(self) -> None:
        """None: the file is its folder's only one."""

    @property
    def version(self) -> None:
        """None, likewise."""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the run's config.yaml has them all."""

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Drop the rows of an earlier process from a step on, and half a row that a full disk may have left."""
        if self._resuming:
            self._resuming = False
            rows = self._rows()
            self._columns = sorted({key for row in rows for key in row})
            self._replace([row for row in rows if int(row["step"]) < step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row of metrics, after those of the run that is gone on with."""
        step = 0 if step is None else step
        self.drop_from(step)
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        row["step"] = step
        if set(row) <= set(self._columns) and self.path.is_file():
            text = io.StringIO(newline="")
            csv.DictWriter(text, self._columns).writerow(row)
            check_held(self.path)
            with self.path.open("a", newline="") as file:
                file.write(text.getvalue())
            return
        rows = self._rows() if self.path.is_file() and self._columns else []
        self._columns = sorted({*self._columns, *row})
        self._replace([*rows, row])

    @rank_zero_only
    def flush(self) -> None:
        """Bring the rows to the disk, before a checkpoint says that they are there."""
        if self.path.is_file():
            flush(self.path)

    def _rows(self) -> list[dict[str, Any]]:
        text = self.path.read_bytes().decode(errors="replace")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        return [row for row in rows if (row.get("step") or "").isdigit() and None not in row]

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with writing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


class WandbLogger(pl_loggers.WandbLogger):
    """Lightning's wandb logger, its mode settled beforehand: never a prompt, never a wait for an absent server.

    Args:
        folder: Where wandb's files go.
        project: The project.
        mode: online, offline or disabled; null: WANDB_MODE if set, else online with a key and offline without one.
        timeout: Seconds to wait for the server before going on offline.
        **settings: Further arguments of wandb.init, such as entity, group, name, tags, id, resume.

    Raises:
        ValueError: If the mode is unknown.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str = "sde_diffusion",
        mode: str | None = None,
        timeout: float = 20.0,
        **settings: Any,
    ) -> None:
        modes = ("online", "offline", "disabled")
        if mode is not None and mode not in modes:
            raise ValueError(f"wandb mode must be one of {', '.join(modes)}, or null; got {mode!r}")
        self._folder, self._project, self._timeout, self._settings = folder, project, timeout, settings
        super().__init__(save_dir=folder, project=project)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._experiment = self._start(mode or os.environ.get("WANDB_MODE") or self._mode_by_key())

    @staticmethod
    def _mode_by_key() -> str:
        import wandb

        if os.environ.get("WANDB_API_KEY") or wandb.api.api_key:
            return "online"
        log.info("wandb: no key found, logging offline; upload later with `wandb sync`, or log in with `wandb login`")
        return "offline"

    def _start(self, mode: str) -> Any:
        import wandb

        arguments = {"dir": str(self._folder), "project": self._project, **self._settings}
        settings = wandb.Settings(init_timeout=self._timeout, silent=True)
        try:
            return wandb.init(mode=mode, settings=settings, **arguments)  # type: ignore[arg-type]
        except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError) as error:
            log.warning("wandb: no answer from the server within %g s (%s); logging offline", self._timeout, error)
            return wandb.init(mode="offline", settings=settings, **arguments)
