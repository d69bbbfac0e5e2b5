"""Callbacks: a sample grid every so often, a stop when the loss is no number, a progress bar over the whole run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Modality, modality_of, pictures
from sde_diffusion.sampling import Sampler
from sde_diffusion.storage import progress
from sde_diffusion.storage.progress import Bar
from sde_diffusion.training.checkpoint_callbacks import BestCheckpoint, FinalValidation, LastCheckpoint
from sde_diffusion.training.module import ScoreModel
from sde_diffusion.training.schedule import timer_of

__all__ = [
    "BestCheckpoint",
    "FinalValidation",
    "LastCheckpoint",
    "SampleGrid",
    "StopOnNonFinite",
    "TrainingProgress",
]

log = logging.getLogger(__name__)


class SampleGrid(Callback):
    """Draw samples of the averaged weights at every `every_n_validations`-th validation, from the same seeds.

    And at a run's last one. A resumed run counts on, so that it draws where the unbroken run would.

    Written to `folder/step-N.png`, and to every logger that takes images (wandb).

    Args:
        folder: Where the pictures go.
        sampler: The sampler.
        n: How many samples.
        every_n_validations: How often, at least 1.
        denoiser_of: The denoiser to draw with, guided perhaps; the model's own if not given.

    Raises:
        ValueError: If n or every_n_validations is less than 1.
        TypeError: If sampler is none.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: Sampler,
        n: int = 64,
        every_n_validations: int = 1,
        denoiser_of: Callable[[ScoreModel], Denoiser] | None = None,
    ) -> None:
        check_kind("sampler", sampler, Sampler)
        n, every_n_validations = check_count("n", n), check_count("every_n_validations", every_n_validations)
        self.folder = Path(folder)
        self.sampler = sampler
        self.n = n
        self.every_n_validations = every_n_validations
        self.denoiser_of = denoiser_of or (lambda model: model.denoiser)
        self._validations = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See by a walk's first step that the sampler can walk on the model's path, before any training.

        Raises:
            UserError: If it cannot.
        """
        assert isinstance(pl_module, ScoreModel)
        if not trainer.is_global_zero or "shape" not in pl_module.data:
            return
        try:
            self._draw(pl_module, pl_module.data["shape"], {}, callback=lambda *_: True)
        except ValueError as error:
            raise UserError(f"the sampler of callbacks.samples: {error}") from error

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw at the first batch: every callback, EMA among them, has prepared the validation by then."""
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not trainer.should_stop and (self._validations + 1) % self.every_n_validations:
            return
        assert isinstance(pl_module, ScoreModel)
        picture = _modality(pl_module, batch).draw(self._draw(pl_module, batch["x"].shape[1:], batch))
        pictures.save(picture, self.folder / f"step-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if (log_image := getattr(logger, "log_image", None)) is not None:
                log_image(key="samples", images=[picture], step=trainer.global_step)

    def _conditions(self, model: ScoreModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the samples are drawn under.

        All that there is in turn, as of classes; where that is too much to be counted, what the first items of a batch
        come with, all of an item's conditions together; nothing where there is no batch.
        """
        found: dict[str, Any] = {name: kind.in_turn(self.n) for name, kind in model.conditions.items()}
        if any(values is None for values in found.values()):
            if batch:
                rows = torch.arange(self.n, device=batch["x"].device) % len(batch["x"])
                found = {name: batch[name][rows] for name in found}
            else:
                found = {name: kind.nulls(self.n) for name, kind in model.conditions.items()}
        return {name: values.to(model.device) for name, values in found.items()}

    def _draw(self, model: ScoreModel, shape: Sequence[int], batch: Mapping[str, Tensor], **options: Any) -> Tensor:
        conditions = self._conditions(model, batch)
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        state = torch.random.get_rng_state()
        try:
            return self.sampler(self.denoiser_of(model), (self.n, *shape), dtype=dtype, **conditions, **options).x
        finally:
            torch.random.set_rng_state(state)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation, if it is not one more than the unbroken run's because this one stops here."""
        interval = trainer.val_check_batch
        due = not trainer.should_stop or not interval or (trainer.fit_loop.total_batch_idx + 1) % interval == 0
        self._validations += due and not trainer.sanity_checking

    def state_dict(self) -> dict[str, Any]:
        """The count of validations."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self._validations = state_dict["validations"]


def _modality(module: LightningModule, batch: dict[str, Any]) -> Modality:
    """What a module is trained on, also where it has no description of it."""
    return modality_of({**getattr(module, "data", {}), "shape": batch["x"].shape[1:]})


class StopOnNonFinite(Callback):
    """Stop when the loss or a weight is no longer a finite number, before it reaches a checkpoint.

    The loss is looked at each step on the CPU and every `every_n_steps` on a GPU, where looking means waiting; the
    weights before each checkpoint is written.

    Args:
        every_n_steps: How often to look on a GPU, at least 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = check_count("every_n_steps", every_n_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss."""
        if pl_module.device.type != "cpu" and trainer.global_step % self.every_n_steps:
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise _diverged(trainer, f"the loss became {loss}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the weights."""
        norms = torch._foreach_norm([p.detach() for p in pl_module.parameters()])
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            raise _diverged(trainer, "the weights became infinite or NaN")


def _diverged(trainer: Trainer, what: str) -> UserError:
    return UserError(
        f"{what} at step {trainer.global_step}: training stopped, and the checkpoints written before are kept. Try a "
        "smaller model.lr, more model.warmup_steps, a smaller trainer.gradient_clip_val, or trainer.precision=32-true; "
        "look also at the data for values far outside [-1, 1]"
    )


class TrainingProgress(ProgressBar):
    """One bar over all steps of the run: step, loss, validation loss, items/s, time left; a log line a validation.

    Where no terminal is there to draw on, a log line takes the bar's place now and then; see `progress`.

    Args:
        refresh_every: Steps between updates of the bar.
    """

    def __init__(self, refresh_every: int = 20) -> None:
        super().__init__()
        self.refresh_every = check_count("refresh_every", refresh_every)
        self._enabled = True
        self._open = ExitStack()
        self._bar: Bar | None = None
        self._items, self._unit = 0, ""
        self._since = 0.0
        self._rate = 0.0

    def disable(self) -> None:
        """Turn the bar off (Lightning calls this on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Turn the bar on."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        self._since, self._items = time.perf_counter(), 0
        if self._enabled:
            steps = float(trainer.estimated_stepping_batches)
            total = steps if math.isfinite(steps) else None
            self._bar = self._open.enter_context(progress.bar("step", total, trainer.global_step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count items, and now and then update the bar or leave a line."""
        self._items += len(batch["x"]) * trainer.world_size
        self._unit = self._unit or _modality(pl_module, batch).unit
        if self._bar is not None and (trainer.global_step % self.refresh_every == 0 or self._bar.due):
            self._measure()
            self._update(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line that stays, and do not count the validation's time as training."""
        if self._bar is not None and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._update(trainer, stays=True)
        self._since, self._items = time.perf_counter(), 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before the validation begins."""
        self._measure()

    def _stop(self) -> None:
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
        return "  ".join([*shown, f"{self._rate:,.0f} {self._unit}/s"])
