"""Callbacks that record what happens at each noise level: the validation loss, and where training draws its times."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.modality import pictures
from sde_diffusion.storage.files import writing

COLUMNS = ("step", "log_snr", "loss", "std_error", "n")
KINDS = {"step": int, "n": int}
_SHARES = 100


class CurvesByStep(Callback, ABC):
    """A table with some rows for each validation, and a picture of it: `folder/NAME.csv` and `folder/NAME.png`.

    Args:
        folder: Folder of the files.
    """

    name: ClassVar[str]
    columns: ClassVar[Sequence[str]]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._rows: list[dict[str, float]] = []

    @abstractmethod
    def draw(self, rows: list[dict[str, float]]) -> Image:
        """The picture of all rows."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the file of a resumed run."""
        path = self.folder / f"{self.name}.csv"
        if trainer.is_global_zero and path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            values = [{key: KINDS.get(key, float)(float(row[key])) for key in self.columns} for row in rows]
            self._rows = [row for row in values if row["step"] <= trainer.global_step]

    def write(self, step: int, values: Sequence[Sequence[float]]) -> None:
        """Write both files, with the rows of this step added; `values` have all columns but the step."""
        self._rows = [row for row in self._rows if row["step"] != step]
        self._rows += [dict(zip(self.columns, (step, *row), strict=True)) for row in values]
        with writing(self.folder / f"{self.name}.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, self.columns)
            table.writeheader()
            table.writerows(self._rows)
        pictures.save(self.draw(self._rows), self.folder / f"{self.name}.png")


class LossByNoiseLevel(CurvesByStep):
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

    name = "noise_levels"
    columns = COLUMNS

    def __init__(self, folder: str | Path, bins: int = 20) -> None:
        super().__init__(folder)
        self.bins = check_count("bins", bins, least=2)
        self._draws: list[dict[str, Tensor]] = []

    def draw(self, rows: list[dict[str, float]]) -> Image:
        """See `pictures.loss_by_level`."""
        return pictures.loss_by_level(rows)

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
        order, rows = log_snr.argsort(), []
        for part in order.tensor_split(min(self.bins, max(1, len(loss) // 2))):
            some = loss[part]
            error = float(some.std()) / len(some) ** 0.5
            rows.append((float(log_snr[part].median()), float(some.mean()), error, len(some)))
        self.write(trainer.global_step, rows)


class LearnedSchedule(CurvesByStep):
    """The path and the noise levels that training draws, at each validation: `folder/schedule.csv` and `schedule.png`.

    Each row has a share u of 0 ... 1, the path's log-SNR at t_min + u (t_max - t_min), and the log-SNR that a share u
    of the training draws exceed. If times are uniform, the two are equal. No files are written if neither is learned.

    Args:
        folder: Folder of the files.
    """

    name = "schedule"
    columns = ("step", "share", "log_snr", "drawn")

    def draw(self, rows: list[dict[str, float]]) -> Image:
        """See `pictures.schedule`."""
        return pictures.schedule(rows)

    @torch.no_grad()
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write both files at the first batch, when EMA has prepared the validation."""
        times = getattr(getattr(pl_module, "objective", None), "times", None)
        sde = getattr(getattr(pl_module, "denoiser", None), "sde", None)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or times is None or sde is None:
            return
        if not (sde.learned or times.learned):
            return
        u = (torch.arange(_SHARES, dtype=torch.float64, device=pl_module.device) + 0.5) / _SHARES
        log_snr, drawn = (sde.log_snr(t) for t in (sde.t_min + u * (sde.t_max - sde.t_min), times.icdf(sde, u)))
        drawn = drawn.sort(descending=True).values  # some distributions count from the noisy end
        self.write(trainer.global_step, torch.stack([u, log_snr, drawn], 1).tolist())
