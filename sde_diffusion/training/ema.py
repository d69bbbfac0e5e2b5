"""Exponential moving average of the weights, on Lightning's WeightAveraging."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sde_diffusion.checks import as_fraction, check_bool, check_count


class EMA(WeightAveraging):
    r"""average <- d average + (1 - d) weights after each optimizer step, d = min(decay, (1 + n) / (10 + n)).

    n counts the steps, so that the first weights are soon forgotten. With every_n_steps = k, the weights of each k-th
    step, and of step `max_steps`, are averaged with the product of the decays since the last: nearly the same, as
    weights change little in k steps, at a k-th of the cost. Validation and checkpoints use the average: it is the
    `state_dict` of a checkpoint; `current_model_state` has the raw weights, from which training continues.

    It corrects the parent class in these points: the average is moved to the model's device; an update is one
    multi-tensor operation without host synchronisation; before `start_step` the average equals the current weights, not
    the initial ones; buffers are copied, not averaged (averages of integers would be truncated); and an exception in a
    validation restores the raw weights, so that a checkpoint written then has both sets of weights in their places.

    Args:
        decay: Largest decay, in [0, 1]; 0.9999 for long runs (VP), 0.999 for short ones and for VE.
        warmup: Whether d increases as above; False: d = decay.
        start_step: Optimizer step at which averaging begins, at least 0.
        every_n_steps: Optimizer steps between updates, at least 1.

    Raises:
        ValueError: If decay lies outside [0, 1], start_step is negative, or every_n_steps less than 1.

    References:
        The warm-up is that of the code of Song et al. 2021 and Ho et al. 2020.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True, start_step: int = 0, every_n_steps: int = 1) -> None:
        super().__init__(use_buffers=False)
        self.decay = as_fraction("decay", decay)
        self.warmup = check_bool("warmup", warmup)
        self.start_step = check_count("start_step", start_step, least=0)
        self.every_n_steps = check_count("every_n_steps", every_n_steps)
        self.updates = 0
        self._swapped = False
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average; its counters start at 0, and are restored later if a run is resumed."""
        trainer.precision_plugin.convert_module(pl_module)  # Lightning does this too late: after the copy and loading
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._latest_update_step = self.updates = 0
            self._swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the model's device; the model is moved only after `setup`."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        both = zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True)
        trained = [(average.detach(), current.detach()) for average, current in both if current.requires_grad]
        self._pairs = ([average for average, _ in trained], [current for _, current in trained])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if an optimizer step was taken."""
        steps = trainer.global_step - self._latest_update_step
        if steps >= self.every_n_steps or (steps and trainer.global_step == trainer.max_steps):
            self._latest_update_step = trainer.global_step
            steps = min(steps, self.every_n_steps)  # more where a run without averages is resumed
            _lerp(self._next_decay(steps))(*self._pairs, 0)

    def _next_decay(self, steps: int) -> float:
        if self._latest_update_step <= self.start_step:
            return 0.0
        decay = 1.0
        for _ in range(steps):
            self.updates += 1
            decay *= min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        return decay

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use the average for validation."""
        if _fitting(trainer):
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the raw weights for training."""
        if _fitting(trainer) and self._swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model; the raw weights are kept for the last checkpoint."""
        if not self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the raw weights if the exception was raised during a validation."""
        if _fitting(trainer) and self._swapped:
            self._swap(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the average as `state_dict` and the raw weights as `current_model_state`."""
        if self._average_model is None:
            return  # after training, when the model already has the average
        self._copy_buffers(pl_module)
        self._average_model.n_averaged.fill_(self.updates)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            raw, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, raw

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both sets of weights for training; otherwise only the average is needed, which is loaded already."""
        if _fitting(trainer):
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """The numbers of steps and updates."""
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the numbers of steps and updates."""
        super().load_state_dict(dict(state_dict))
        self.updates = state_dict["updates"]

    def _swap(self, pl_module: LightningModule) -> None:
        self._copy_buffers(pl_module)
        self._swap_models(pl_module)
        self._swapped = not self._swapped

    @torch.no_grad()
    def _copy_buffers(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        for mine, theirs in zip(self._average_model.module.buffers(), pl_module.buffers(), strict=True):
            mine.copy_(theirs)


def _fitting(trainer: Trainer) -> bool:
    # After training, the callback still has the raw weights; trainer.validate and trainer.test must not use them.
    return trainer.state.fn == TrainerFn.FITTING


def _lerp(decay: float) -> Callable[[list[Tensor], list[Tensor], int], None]:
    update: Callable[[list[Tensor], list[Tensor], int], None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return update
