"""Loggers: CSV files that survive a resume, and wandb without prompts and without waiting for a server."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as pl_loggers
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)


class CSVLogger(pl_loggers.CSVLogger):
    """Lightning's CSV logger, writing `folder/metrics.csv` and going on with the file of a resumed run.

    Rows at or after the step from which the run goes on are dropped, when that step is named or else when the first
    row comes: they are about to be written again. Rows are numbered as Lightning does, from step 0 on.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(save_dir=folder, name="", version="", flush_logs_every_n_steps=1)
        self._path = Path(folder) / "metrics.csv"
        self._earlier: list[dict[str, str]] = []
        if self._path.is_file():
            with self._path.open(newline="") as file:
                # A killed run may have left half a row behind.
                self._earlier = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, which begins by deleting the file: the earlier rows are put back at once."""
        if self._experiment is None:
            self._experiment = super().experiment
            self._write_again(self._earlier)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run's config.yaml has them all."""

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Drop the rows of an earlier process from a step on."""
        if self._earlier:
            _ = self.experiment
            self._write_again([row for row in self._earlier if int(row["step"]) < step])
            self._earlier = []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record metrics of a step, after those of the run that is gone on with."""
        if step is not None:
            self.drop_from(step)
        super().log_metrics(metrics, step)

    def _write_again(self, rows: list[dict[str, str]]) -> None:
        writer: Any = self._experiment
        self._path.unlink(missing_ok=True)
        writer.metrics_keys.clear()
        waiting, writer.metrics = writer.metrics, list(rows)
        writer.save()
        writer.metrics = waiting


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
