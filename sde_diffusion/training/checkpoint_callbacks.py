"""Which states of a run are kept: the one to resume from, and the one with the lowest validation loss."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from sde_diffusion.config import with_public_paths
from sde_diffusion.training.stopping import StopBetweenSteps, unfinished

log = logging.getLogger(__name__)

LAST = "last.ckpt"

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, in a resumed run: best is what is best in this run's own folder.

    The parent believes the paths that a checkpoint holds: in a copy of a run's folder it forgets the best score, and
    may remove files of the original. Here stored files are looked for by name in this run's folder. Where they are not
    there, or the monitored losses cannot be compared (another objective, filling of bins or data set), the search for
    the best begins anew.
    """

    _comparable = True

    # Its hints say what a configuration may hold; mypy knows no decorated constructors.
    @functools.wraps(ModelCheckpoint.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if f"{self.filename}.ckpt" == LAST:
            raise ValueError(f"filename={self.filename} is the name of the state to resume from: take another")

    @property
    def state_key(self) -> str:
        """The parent's, under which older checkpoints hold the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See whether the run that is resumed measured the same loss."""
        before, now = _measured(checkpoint.get("hyper_parameters", {})), _measured(pl_module.hparams)
        if not before["data"].get("fingerprint"):  # of a checkpoint of version 0.1
            for measured in (before, now):  # nor have data that are drawn anew
                measured["data"].pop("fingerprint", None)
        changed = [name for name in now if before.get(name) != now[name]]
        self._comparable = not changed
        if changed and trainer.is_global_zero:
            log.info("%s changed: the search for the lowest %s begins anew", " and ".join(changed), self.monitor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores of the files that are in this run's folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else ""

        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        named = [Path(path) for path in (*kept, here(state_dict["best_model_path"])) if path]
        there = all(path.is_file() and path.name != LAST for path in named)  # which the parent would remove in time
        if self._comparable and there:
            paths = {name: here(state_dict.get(name, "")) for name in PATHS}
            super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})
            self.current_score = state_dict.get("current_score")  # which the parent forgets


def _measured(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """What the value of a validation loss depends on, apart from the model."""
    data = {
        name: value
        for name, value in (hparams.get("data") or {}).items()
        if name not in ("config", "units", "modality")
    }
    return {
        "objective": with_public_paths(hparams.get("objective")),
        "model.dequantise": hparams.get("dequantise"),
        "data": data,
    }


class LastCheckpoint(StopBetweenSteps, Checkpoint):
    """Keep `folder/last.ckpt`, the state to resume from: after validations, where a signal stops the run, at its end.

    After the validation and not before it: a run that is resumed there would leave it out. Where gradients accumulate
    over batches and a validation falls between two of them, after the step's last batch: a checkpoint holds no
    gradients.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / LAST
        self._saved: int | None = None
        self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what loggers hold of steps that are taken again."""
        super().on_train_start(trainer, pl_module)
        self._saved, self._due = None, False
        validations: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validations.ready = validations.started = validations.completed  # where one was broken off
        for logger in trainer.loggers:
            if (drop := getattr(logger, "drop_from", None)) is not None:
                drop(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write what could not be written within a step; stop before the next, if asked."""
        if self._due and batch_idx % trainer.accumulate_grad_batches == 0:
            self.write(trainer)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state after a validation in training."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._due = bool(unfinished(trainer))
        if not self._due:
            self._saved = trainer.global_step
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last state, if no validation followed the last step, while the optimizer is still at hand."""
        if self._saved != trainer.global_step:
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write the state after the last whole step; before the first there is none."""
        self._due = False
        if trainer.global_step:
            with _between_steps(trainer):
                self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:  # after a power cut, too, the rows up to here are there
            if (flush := getattr(logger, "flush", None)) is not None:
                flush()
        trainer.save_checkpoint(self.path)


@contextmanager
def _between_steps(trainer: Trainer) -> Iterator[None]:
    """Have Lightning count as it did after the last whole step, before the validation that may have begun.

    Its own counts are not those of a state to resume from: between steps it has fetched a batch, or booked a broken
    epoch as done; and a validation that has begun would be taken for one that is over.
    """
    fit: Any = trainer.fit_loop  # of classes private to Lightning
    batches, epochs, validation = (
        fit.epoch_loop.batch_progress,
        fit.epoch_progress,
        fit.epoch_loop.val_loop.batch_progress,
    )
    counts = [vars(progress) for progress in (batches, epochs, validation)]
    before = copy.deepcopy(counts)
    try:
        if trainer.validating:  # as Lightning counts one that was broken off in its first batch
            earlier = validation.total.completed - validation.current.completed
            validation.reset()
            total = validation.total
            total.processed = total.completed = earlier
            total.ready = total.started = earlier + 1  # set back by `on_train_start`
        else:
            partial = unfinished(trainer) if batches.current.ready == batches.current.completed else 0
            for count in (batches.total, batches.current):
                count.completed -= partial
                count.reset_on_restart()
            batches.is_last_batch = batches.current.completed >= trainer.num_training_batches
            if epochs.current.completed == epochs.current.ready:  # the epoch is booked as done
                if batches.is_last_batch:
                    batches.reset_on_run()
                else:  # as the run ended in it: a resumed run goes on in it
                    for count in (epochs.total, epochs.current):
                        count.processed -= 1
                        count.completed -= 1
        yield
    finally:
        for now, then in zip(counts, before, strict=True):
            now.update(then)


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
