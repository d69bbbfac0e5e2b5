"""The progress bar of a training run."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from sde_diffusion.checks import check_count
from sde_diffusion.modality import Modality, modality_of
from sde_diffusion.storage import progress
from sde_diffusion.storage.progress import Bar
from sde_diffusion.training.schedule import timer_of

log = logging.getLogger(__name__)


def modality_of_batch(module: LightningModule, batch: dict[str, Any]) -> Modality:
    """The modality of a module's data, or the one that a batch's shape implies if it has no description of them."""
    return modality_of({**getattr(module, "data", {}), "shape": batch["x"].shape[1:]})


class TrainingProgress(ProgressBar):
    """A progress bar for the run: step, loss, validation loss, items/s, time left; and a log line at each validation.

    A long validation has a bar of its own. The time of compiling counts neither in items/s nor in the time left.
    Without a terminal, occasional log lines replace the bar; see `progress`.

    Args:
        refresh_every: Number of steps between updates of the bar, at least 1.
    """

    def __init__(self, refresh_every: int = 20) -> None:
        super().__init__()
        self.refresh_every = check_count("refresh_every", refresh_every)
        self._enabled = True
        self._open, self._validating = ExitStack(), ExitStack()
        self._bar: Bar | None = None
        self._compiling = False
        self._items, self._unit = 0, ""
        self._since = 0.0
        self._rate = 0.0
        self._validation: Bar

    def disable(self) -> None:
        """Turn the bar off (Lightning calls this in all processes except the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Turn the bar on."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._since, self._items = time.perf_counter(), 0
        if self._enabled:
            steps = float(trainer.estimated_stepping_batches)
            total = steps if math.isfinite(steps) else None
            self._bar = self._open.enter_context(progress.bar("step", total, trainer.global_step))
        self._compiling = bool(pl_module.hparams.get("compile"))
        if self._compiling and self._bar is not None:
            log.info("compiling the steps of training, which can take minutes: the first step comes after it")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count items; update the bar, or write a log line, if one is due."""
        if self._compiling:  # in the first batch
            self._compiling, self._since = False, time.perf_counter()
            if self._bar is not None:
                self._bar.leave_out(trainer.global_step)
                log.info("compiled")
            return
        self._items += len(batch["x"]) * trainer.world_size
        self._unit = self._unit or modality_of_batch(pl_module, batch).unit
        if self._bar is not None and (trainer.global_step % self.refresh_every == 0 or self._bar.due):
            self._measure()
            self._update(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a log line, and exclude the time of the validation from the speed."""
        self._validating.close()
        if self._bar is not None and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._update(trainer, stays=True)
        self._since, self._items = time.perf_counter(), 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the speed before the validation begins, which has a bar of its own."""
        self._measure()
        if self._bar is not None:
            batches = sum(trainer.num_val_batches)
            shown = progress.bar("validation batch", batches if math.isfinite(batches) else None)
            self._validation = self._validating.enter_context(shown)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Update the validation's bar; after its last batch, a line about the validation follows."""
        if self._bar is not None and batch_idx + 1 != self._validation.total:
            self._validation.update(batch_idx + 1)

    def _stop(self) -> None:
        self._validating.close()
        self._open.close()
        self._bar = None

    def _update(self, trainer: Trainer, stays: bool = False) -> None:
        assert self._bar is not None
        timer = timer_of(trainer)
        limit = math.inf if timer is None else timer.time_remaining() or 0.0
        self._bar.update(trainer.global_step, text=self._text(trainer), limit=limit, stays=stays)

    def _measure(self) -> None:
        seconds = time.perf_counter() - self._since
        if self._items and seconds > 0:
            self._rate = self._items / seconds
        self._since, self._items = time.perf_counter(), 0

    def _text(self, trainer: Trainer) -> str:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [
            f"{name} {metrics[key]:.4f}"
            for name, key in (("loss", "train/loss"), ("val", "val/loss"))
            if key in metrics
        ]
        return "  ".join([*shown, *([f"{self._rate:,.0f} {self._unit}/s"] if self._rate else [])])
