"""Loggers: a CSV file that a resumed run continues, and wandb without prompts or long waits for a server."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch.loggers as pl_loggers
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sde_diffusion.checks import as_number, check_choice
from sde_diffusion.storage.files import flush, writing
from sde_diffusion.storage.lock import check_held

log = logging.getLogger(__name__)


class CSVLogger(Logger):
    """Writes `folder/metrics.csv`, and continues the file of a resumed run.

    When a run is resumed, rows from its first new step on are dropped: by `drop_from`, or else before the first new
    row. Steps are numbered from 0, as in Lightning. Rows are appended; the file is replaced atomically if there are new
    columns or dropped rows. Lightning's own CSVLogger (2.6) deletes the file at the start and rewrites it in place:
    killed meanwhile, it loses all rows.

    Args:
        folder: Folder of the file.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._resuming = self.path.is_file()

    @property
    def name(self) -> None:
        """None: there is one file in the folder."""

    @property
    def version(self) -> None:
        """None: there is one file in the folder."""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the run's config.yaml has all hyperparameters."""

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Drop the rows of an earlier process from a step on, and an incomplete row that a full disk may have left."""
        if self._resuming:
            self._resuming = False
            rows = self._rows()
            self._columns = sorted({key for row in rows for key in row})
            self._replace([row for row in rows if int(row["step"]) < step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row of metrics."""
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
        """Flush the rows to the disk, before a checkpoint that assumes them is written."""
        if self.path.is_file():
            flush(self.path)

    def _rows(self) -> list[dict[str, Any]]:
        text = self.path.read_bytes().decode(errors="replace")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        return [row for row in rows if (row.get("step") or "").isdecimal() and None not in row]

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with writing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


class WandbLogger(pl_loggers.WandbLogger):
    """Lightning's wandb logger, without prompts and without long waits for a server.

    wandb 0.31 also sends error reports to its server when the process ends. If there is no answer it keeps trying for
    up to half a minute, even after an offline run. These reports are turned off unless WANDB_ERROR_REPORTING is set.
    This workaround can go once an offline run ends at once when WANDB_BASE_URL is a socket that never answers.

    Args:
        folder: Folder of wandb's files.
        project: Name of the project.
        mode: online, offline or disabled; None: WANDB_MODE if set, else online with a key and offline without one.
        timeout: Seconds to wait for the server, positive: at the start, before logging offline, and at the end, for
            uploads that have not finished.
        **settings: Further arguments of wandb.init, such as entity, group, name, tags, id, resume.

    Raises:
        ValueError: If the mode is unknown, or the timeout is not positive.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str = "sde_diffusion",
        mode: Literal["online", "offline", "disabled"] | None = None,
        timeout: float = 5.0,
        **settings: Any,
    ) -> None:
        if mode is not None:
            check_choice("mode", mode, ("online", "offline", "disabled"), ", or null")
        self._timeout = as_number("timeout", timeout)
        if not 0 < self._timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds; got {timeout}")
        self._folder, self._project, self._settings = folder, project, settings
        super().__init__(save_dir=folder, project=project)
        self._over = False
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._experiment = self._start(mode or os.environ.get("WANDB_MODE"))

    def _start(self, mode: str | None) -> Any:
        """Start a wandb run: online if that was requested or there is a key, and the server answers; else offline."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        arguments = {"dir": str(self._folder), "project": self._project, **self._settings}
        settings = wandb.Settings(
            silent=True, init_timeout=self._timeout, finish_timeout=self._timeout, finish_timeout_raises=True
        )
        if mode not in (None, "online"):
            return wandb.init(mode=mode, settings=settings, **arguments)  # type: ignore[arg-type]
        key = os.environ.get("WANDB_API_KEY") or wandb.api.api_key
        if not key:
            why = "no key found, logging offline (`wandb login` stores one)"
        elif len(key) < 40 or not re.fullmatch(r"[\w.-]+", key):
            why = f"the key is malformed (40 or more letters, digits and underscores; it has {len(key)} characters), "
            why += "logging offline"
        else:
            try:
                return wandb.init(mode="online", settings=settings, **arguments)
            except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError) as error:
                said = _first_line(error)
                why = f"no answer from the server within {self._timeout:g} s" if "imed out" in said else said
                why += ", logging offline"
        run = wandb.init(mode="offline", settings=settings, **arguments)
        log.log(logging.WARNING if key else logging.INFO, "wandb: %s; upload later: %s", why, _upload(run))
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of a step."""
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log settings."""
        self._try(super().log_hyperparams, params)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures."""
        self._try(super().log_image, key, images, step, **kwargs)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, after waiting at most `timeout` seconds for uploads."""
        run, self._over = self._experiment, True
        if run is None:
            return
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except TimeoutError:
            log.warning("wandb: the upload did not finish in %g s; finish it with: %s", self._timeout, _upload(run))
        except Exception as error:  # for instance if wandb's own process has died
            log.warning("wandb: %s; upload what it has written: %s", _first_line(error), _upload(run))

    def _try(self, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Log, and stop logging after an error of wandb, so that the training run continues."""
        if self._over:
            return
        try:
            write(*args, **kwargs)
        except Exception as error:
            self._over = True
            log.warning("wandb: %s; training continues without it", _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _upload(run: Any) -> str:
    """The command that uploads a run from its files."""
    return shlex.join(["wandb", "sync", str(run.settings.sync_dir)])
