"""Trainings of a number of CPU seconds, for benchmarks that compare models in equal time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from sde_diffusion.data import DataModule
from sde_diffusion.training import EMA, GenerativeModel
from sde_diffusion.training.checkpoint_io import SealedCheckpointIO


class CPUTimer(Timer):
    """Ends the training after some CPU seconds of this process, counted from now, whatever else the machine does."""

    def __init__(self, seconds: float) -> None:
        super().__init__({"seconds": seconds})
        self.begin = time.process_time()

    def time_elapsed(self, stage: str = "train") -> float:
        """CPU seconds so far."""
        return time.process_time() - self.begin


def trained(make: Callable[[], GenerativeModel], data: DataModule, seconds: float, path: Path) -> Any:
    """Train a model and write its checkpoint, or read it if it is there."""
    if path.is_file():
        return GenerativeModel.load_from_checkpoint(path)
    timer = CPUTimer(seconds)
    model = make()
    trainer = Trainer(
        max_steps=-1,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[EMA(), timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        accelerator="cpu",
        plugins=[SealedCheckpointIO()],
        default_root_dir=path.parent,
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(path)
    steps, loss = trainer.global_step, float(trainer.callback_metrics["train/loss"])
    print(f"{path.stem}: {steps} steps of {data.batch_size} in {timer.time_elapsed():.0f} CPU s, loss {loss:.3f}")
    return model.eval()


def training_of(path: Path) -> tuple[int, float]:
    """Steps and CPU seconds of the training of a checkpoint that `trained` wrote."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return int(stored["global_step"]), float(stored["callbacks"]["CPUTimer"]["time_elapsed"]["train"])
