"""Callbacks that write checkpoints: the state to resume from, and the weights with the lowest validation loss."""

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
    """Lightning's ModelCheckpoint, for runs whose folder has been copied or moved.

    The parent trusts the paths in a checkpoint: resumed in a copy of a run's folder, it forgets the best score, and may
    remove files of the original. This class looks for the files by name in the present run's folder. If they are not
    there, or the monitored losses cannot be compared (another objective, dequantisation or data set), the search for
    the best starts again.
    """

    _comparable = True

    # The parent's type hints are the schema of its settings; mypy does not support decorated constructors.
    @functools.wraps(ModelCheckpoint.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if f"{self.filename}.ckpt" == LAST:
            raise ValueError(f"filename={self.filename} is the name of the checkpoint to resume from: choose another")

    @property
    def state_key(self) -> str:
        """The parent's key, under which older checkpoints store the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check whether the losses of the resumed run can be compared with those of this one."""
        before, now = _measured(checkpoint.get("hyper_parameters", {})), _measured(pl_module.hparams)
        if not before["data"].get("fingerprint"):  # version 0.1, or data that are drawn from a distribution
            for measured in (before, now):
                measured["data"].pop("fingerprint", None)
        changed = [name for name in now if before.get(name) != now[name]]
        self._comparable = not changed
        if changed and trainer.is_global_zero:
            log.info("%s changed: the search for the lowest %s starts again", " and ".join(changed), self.monitor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores if their files are in this run's folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else ""

        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        named = [Path(path) for path in (*kept, here(state_dict["best_model_path"])) if path]
        there = all(path.is_file() and path.name != LAST for path in named)  # the parent would later remove last.ckpt
        if self._comparable and there:
            paths = {name: here(state_dict.get(name, "")) for name in PATHS}
            super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})
            self.current_score = state_dict.get("current_score")  # not restored by the parent


def _measured(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """What a validation loss depends on, apart from the model."""
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
    """Write `folder/last.ckpt`, the state to resume from: after validations, on a signal, and at the end.

    It is written after a validation, not before, so that a resumed run does not skip the validation. If a validation
    takes place between the batches of one step (gradient accumulation), it is written after the step's last batch, as a
    checkpoint contains no gradients.

    Args:
        folder: Folder of the file.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / LAST
        self._saved: int | None = None
        self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove logged values of steps that will be repeated."""
        super().on_train_start(trainer, pl_module)
        self._saved, self._due = None, False
        validations: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validations.ready = validations.started = validations.completed  # in case one was interrupted
        for logger in trainer.loggers:
            if (drop := getattr(logger, "drop_from", None)) is not None:
                drop(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the checkpoint that was due within the previous step; stop before the next step, if requested."""
        if self._due and batch_idx % trainer.accumulate_grad_batches == 0:
            self.write(trainer)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state after a validation during training."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._due = bool(unfinished(trainer))
        if not self._due:
            self._saved = trainer.global_step
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final state, unless a validation followed the last step."""
        if self._saved != trainer.global_step:
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write the state after the last complete step; nothing before the first step."""
        self._due = False
        if trainer.global_step:
            with _between_steps(trainer):
                self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:  # so that the rows up to here survive a power cut
            if (flush := getattr(logger, "flush", None)) is not None:
                flush()
        trainer.save_checkpoint(self.path)


@contextmanager
def _between_steps(trainer: Trainer) -> Iterator[None]:
    """Set Lightning's counters to the end of the last complete step, before any validation that has begun.

    Its own counters are wrong for resuming: between steps it has already fetched a batch, or counted an incomplete
    epoch as complete; and a validation that has begun would count as finished.
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
        if trainer.validating:  # as after an interruption in the first batch of the validation
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
            if epochs.current.completed == epochs.current.ready:  # the epoch is counted as complete
                if batches.is_last_batch:
                    batches.reset_on_run()
                else:  # the run ended within the epoch: a resumed run continues it
                    for count in (epochs.total, epochs.current):
                        count.processed -= 1
                        count.completed -= 1
        yield
    finally:
        for now, then in zip(counts, before, strict=True):
            now.update(then)


class FinalValidation(Callback):
    """Validate at the end of a run, even if no validation is due after the last step.

    The callbacks that follow validations then run too: the final samples are drawn, and the final weights are compared
    with the best ones. (At the end of the trainer's max_time, Lightning itself validates.)
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Request a stop just before the limit is reached: Lightning validates before it stops on request."""
        epochs = trainer.max_epochs or -1
        last_epoch = 0 < epochs <= trainer.current_epoch + 1
        if 0 < trainer.max_steps <= trainer.global_step or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
