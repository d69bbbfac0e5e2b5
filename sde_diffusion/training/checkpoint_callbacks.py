"""Which states of a run are kept: the one to resume from, and the one with the lowest validation loss."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, in a resumed run: best is what is best in this run's own folder.

    The parent believes the paths that a checkpoint holds: in a copy of a run's folder it forgets the best score, and
    may remove files of the original. Here stored files are looked for by name in this run's folder. Where they are not
    there, or the monitored losses cannot be compared (another objective, filling of bins or data set), the search for
    the best begins anew.
    """

    _comparable = True

    @property
    def state_key(self) -> str:
        """The parent's, under which older checkpoints hold the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See whether the run that is resumed measured the same loss."""
        before, now = _measured(checkpoint.get("hyper_parameters", {})), _measured(pl_module.hparams)
        if not before["data"].get("fingerprint"):  # of a checkpoint of version 0.1
            now["data"].pop("fingerprint", None)
        changed = [name for name in now if before.get(name) != now[name]]
        self._comparable = not changed
        if changed and trainer.is_global_zero:
            log.info("%s changed: the search for the lowest %s begins anew", " and ".join(changed), self.monitor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores of the files that are in this run's folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else ""

        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        there = all(Path(path).is_file() for path in (*kept, here(state_dict["best_model_path"])) if path)
        if self._comparable and there:
            paths = {name: here(state_dict.get(name, "")) for name in PATHS}
            super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})


def _measured(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """What the value of a validation loss depends on, apart from the model."""
    data = {name: value for name, value in (hparams.get("data") or {}).items() if name not in ("config", "units")}
    return {"objective": hparams.get("objective"), "model.dequantise": hparams.get("dequantise"), "data": data}


class LastCheckpoint(Checkpoint):
    """Keep `folder/last.ckpt`, the state to resume from: after each validation, on Ctrl-C, and at the end of training.

    After the validation and not before it: a run that is resumed there would leave it out. The first Ctrl-C lets the
    training step in progress end, so that the state is one that the unbroken run goes through.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "last.ckpt"
        self._stopping = False
        self._handler: Any = None
        self._saved: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C; drop what loggers hold of steps that are taken again."""
        self._stopping, self._saved = False, None
        for logger in trainer.loggers:
            if (drop := getattr(logger, "drop_from", None)) is not None:
                drop(trainer.global_step)
        handler = signal.getsignal(signal.SIGINT)
        here = threading.current_thread() is threading.main_thread()
        if handler is signal.default_int_handler and here and trainer.world_size == 1:
            self._handler = handler
            signal.signal(signal.SIGINT, lambda *_: self._interrupt(trainer))

    def _interrupt(self, trainer: Trainer) -> None:
        if self._stopping or not trainer.training:
            raise KeyboardInterrupt
        self._stopping = True  # and the step goes on to its end

    def _stop_if_asked(self) -> None:
        if self._stopping:
            raise KeyboardInterrupt

    def _listen_no_more(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before the next step where Ctrl-C was pressed in the one before."""
        self._stop_if_asked()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation, too."""
        self._stop_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state after a validation in training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._saved = trainer.global_step
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last state, if no validation followed the last step, while the optimizer is still at hand."""
        self._listen_no_more()
        if self._saved != trainer.global_step and _rewind(trainer):
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the state at Ctrl-C or a scheduler's SIGTERM; after an error the last good one is kept."""
        self._listen_no_more()
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if trainer.state.fn == TrainerFn.FITTING and interrupted and _rewind(trainer):
            trainer.save_checkpoint(self.path)


def _rewind(trainer: Trainer) -> bool:
    """Set Lightning's counts as they were after the last step; whether the state is one to resume from.

    It is not in the middle of a step, nor in the validation after the last one, which a resumed run would leave out.
    """
    fit: Any = trainer.fit_loop  # of classes private to Lightning
    batches = fit.epoch_loop.batch_progress
    if trainer.validating:
        if trainer.should_stop:
            return False
        # As Lightning counts a validation that was broken off in its first batch: it is done again, from the start.
        progress = fit.epoch_loop.val_loop.batch_progress
        progress.reset()
        progress.total.ready = progress.total.started = 1
        return True
    if batches.total.started != batches.total.completed:
        return False
    batches.total.reset_on_restart()  # a batch that was fetched and not started is fetched again
    batches.is_last_batch = batches.current.completed >= trainer.num_training_batches
    if fit.epoch_progress.current.completed == fit.epoch_progress.current.ready:  # the epoch is booked as done
        if batches.is_last_batch:
            batches.reset_on_run()
        else:  # as the run ended in it: a resumed run goes on in it
            for count in (fit.epoch_progress.total, fit.epoch_progress.current):
                count.processed -= 1
                count.completed -= 1
    return True


class FinalValidation(Callback):
    """Let a run end with a validation, also where its last step is not one at which a validation is due.

    With it come what follows validations: a picture, a look at whether these weights are the best. (A run that ends at
    the trainer's max_time is validated by Lightning itself.)
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for the stop, which Lightning precedes by a validation, one moment before the limit is reached."""
        epochs = trainer.max_epochs or -1
        last_epoch = 0 < epochs <= trainer.current_epoch + 1
        if 0 < trainer.max_steps <= trainer.global_step or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
