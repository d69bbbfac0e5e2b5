"""A callback that records the validation loss by noise level."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.modality import pictures
from sde_diffusion.storage.files import writing

COLUMNS = ("step", "log_snr", "loss", "std_error", "n")
KINDS = {"step": int, "n": int}


class LossByNoiseLevel(Callback):
    """Validation loss against log-SNR, at each validation: `folder/noise_levels.csv` and `noise_levels.png`.

    The draws are those of the validation loss, with fixed noise and stratified times, so that two validations can be
    compared bin by bin. With several processes, only the first one's part of the validation split is used. A model
    whose `validation_losses` have no `log_snr` has no noise levels, and no files are written.

    Args:
        folder: Folder of the files.
        bins: Number of bins in log-SNR, each with equally many draws; at least 2.

    Raises:
        ValueError: If bins is less than 2.
    """

    def __init__(self, folder: str | Path, bins: int = 20) -> None:
        bins = check_count("bins", bins, least=2)
        self.folder = Path(folder)
        self.bins = bins
        self._draws: list[dict[str, Tensor]] = []
        self._rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the file of a resumed run."""
        path = self.folder / "noise_levels.csv"
        if trainer.is_global_zero and path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            values = [{key: KINDS.get(key, float)(float(row[key])) for key in COLUMNS} for row in rows]
            self._rows = [row for row in values if row["step"] <= trainer.global_step]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the losses of a batch."""
        if not trainer.sanity_checking and trainer.is_global_zero and "log_snr" in outputs:
            self._draws.append(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average the losses by noise level, and write both files."""
        if not self._draws:
            return
        columns = ("log_snr", "losses")
        log_snr, loss = (torch.cat([draws[name] for draws in self._draws]).double().cpu() for name in columns)
        self._draws.clear()
        order = log_snr.argsort()
        self._rows = [row for row in self._rows if row["step"] != trainer.global_step]
        for part in order.tensor_split(min(self.bins, max(1, len(loss) // 2))):
            some = loss[part]
            error = float(some.std()) / len(some) ** 0.5
            values = (trainer.global_step, float(log_snr[part].median()), float(some.mean()), error, len(some))
            self._rows.append(dict(zip(COLUMNS, values, strict=True)))
        with writing(self.folder / "noise_levels.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(self._rows)
        pictures.save(pictures.loss_by_level(self._rows), self.folder / "noise_levels.png")
