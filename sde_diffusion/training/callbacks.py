"""Callbacks: sample grids during training, a stop when the loss is NaN or infinite."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.modality import pictures
from sde_diffusion.sampling import Sampler, Samples
from sde_diffusion.training.base import BaseModel
from sde_diffusion.training.checkpoint_callbacks import BestCheckpoint, FinalValidation, LastCheckpoint
from sde_diffusion.training.training_progress import TrainingProgress, modality_of_batch

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
    """Draw samples with the averaged weights at every `every_n_validations`-th validation, and at the last one.

    The seeds are always the same. A resumed run draws at the same validations as an uninterrupted one. The pictures are
    written to `folder/step-N.png`, and sent to every logger that takes images (wandb). A model whose `draw_samples`
    returns None gets no samples. Further pictures of a model, such as reconstructions, are in `folder/NAME/step-N.png`;
    see `BaseModel.pictures`.

    Args:
        folder: Folder of the pictures.
        sampler: The sampler.
        n: Number of samples, at least 1.
        every_n_validations: Number of validations between pictures, at least 1.
        denoiser_of: Returns the denoiser of a model to draw with, perhaps with guidance; None: the model's own.

    Raises:
        ValueError: If n or every_n_validations is less than 1.
        TypeError: If sampler is not a `Sampler`.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: Sampler,
        n: int = 64,
        every_n_validations: int = 1,
        denoiser_of: Callable[[BaseModel], Denoiser | None] | None = None,
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
        """Check with the first step of a walk that the sampler works on the model's path, before any training.

        Raises:
            UserError: If it does not.
        """
        model = cast(BaseModel, pl_module)
        if not trainer.is_global_zero or "shape" not in model.data:
            return
        try:
            self._draw(model, model.data["shape"], {}, callback=lambda *_: True)
        except ValueError as error:
            raise UserError(f"the sampler of callbacks.samples: {error}") from error

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw at the first batch, when all callbacks, such as EMA, have prepared the validation."""
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not trainer.should_stop and (self._validations + 1) % self.every_n_validations:
            return
        model = cast(BaseModel, pl_module)
        drawn = self._draw(model, batch["x"].shape[1:], batch)
        if drawn is not None:
            self._save(trainer, modality_of_batch(pl_module, batch).draw(drawn.x), "samples", self.folder)
        for name, picture in model.pictures(batch["x"][: self.n]).items():
            self._save(trainer, picture, name, self.folder / name)

    def _save(self, trainer: Trainer, picture: Image, name: str, folder: Path) -> None:
        pictures.save(picture, folder / f"step-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if (log_image := getattr(logger, "log_image", None)) is not None:
                log_image(key=name, images=[picture], step=trainer.global_step)

    def _conditions(self, model: BaseModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The conditions to draw samples with.

        If all conditions are countable, such as classes, their values in turn. Otherwise those of the first items of a
        batch, or their null values if there is no batch.
        """
        found: dict[str, Any] = {name: kind.in_turn(self.n) for name, kind in model.conditions.items()}
        if any(values is None for values in found.values()):
            if batch:
                rows = torch.arange(self.n, device=batch["x"].device) % len(batch["x"])
                some = {name: values[rows] for name, values in batch.items()}
                measured = model.with_measurements(some, torch.Generator().manual_seed(0))
                found = {name: measured[name] for name in found}
            else:
                found = {name: kind.nulls(self.n) for name, kind in model.conditions.items()}
        return {name: values.to(model.device) for name, values in found.items()}

    def _draw(
        self, model: BaseModel, shape: Sequence[int], batch: Mapping[str, Tensor], **options: Any
    ) -> Samples | None:
        denoiser, conditions = self.denoiser_of(model), self._conditions(model, batch)
        if denoiser is not None and denoiser.conditions is not None:  # a guidance may fix some
            conditions = {name: values for name, values in conditions.items() if name in denoiser.conditions}
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        state = torch.random.get_rng_state()
        try:
            options = {"dtype": dtype, **conditions, **options}
            return model.draw_samples(self.sampler, denoiser, (self.n, *shape), **options)
        finally:
            torch.random.set_rng_state(state)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation, unless it takes place only because the run stops here."""
        interval = trainer.val_check_batch
        due = not trainer.should_stop or not interval or (trainer.fit_loop.total_batch_idx + 1) % interval == 0
        self._validations += due and not trainer.sanity_checking

    def state_dict(self) -> dict[str, Any]:
        """The number of validations."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations."""
        self._validations = state_dict["validations"]


class StopOnNonFinite(Callback):
    """Stop when the loss or a weight becomes NaN or infinite, before a checkpoint contains it.

    The loss is checked in each step on the CPU, and every `every_n_steps` steps on a GPU, where a check must wait for
    the device. The weights are checked before each checkpoint is written.

    Args:
        every_n_steps: Number of steps between checks on a GPU, at least 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = check_count("every_n_steps", every_n_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss."""
        if pl_module.device.type != "cpu" and trainer.global_step % self.every_n_steps:
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise _diverged(trainer, f"the loss became {loss}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the weights."""
        norms = torch._foreach_norm([p.detach() for p in pl_module.parameters()])
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            raise _diverged(trainer, "the weights became infinite or NaN")


def _diverged(trainer: Trainer, what: str) -> UserError:
    return UserError(
        f"{what} at step {trainer.global_step}: training stopped, and earlier checkpoints are kept. Try a smaller "
        "model.lr, more model.warmup_steps, a smaller trainer.gradient_clip_val, or trainer.precision=32-true; check "
        "that the data have no values far outside [-1, 1]"
    )
