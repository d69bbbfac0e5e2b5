"""Some of the training items, by which a new run sets what does not change later."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from sde_diffusion.errors import UserError

_AT_ONCE = 500


def training_items(trainer: Trainer, most: int) -> Iterator[Tensor]:
    """Items of the training split, evenly spaced in its order, which may be by class.

    Args:
        trainer: The trainer of the run, whose data module is asked.
        most: Maximum number of items.

    Returns:
        An iterator of batches, float32 [B, *shape] on [-1, 1] on the CPU, B up to 500; the same for every process.

    Raises:
        UserError: If the trainer has no data module.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise UserError(
            "the model uses the training data before the first step: call trainer.fit(model, datamodule=...)"
        )
    split = data.split("train")
    rows = torch.linspace(0, len(split) - 1, min(len(split), most), dtype=torch.float64).round().long()
    return (split.tensor(some) for some in torch.split(rows, _AT_ONCE))
