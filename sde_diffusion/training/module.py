"""The LightningModule: a denoiser and how it is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sde_diffusion import __version__
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import UniformDequantisation
from sde_diffusion.errors import UserError
from sde_diffusion.training.checkpoint import read_checkpoint
from sde_diffusion.training.objective import Objective

Batch = dict[str, Tensor]


def constant_schedule(step: int, warmup_steps: int, total_steps: float) -> float:
    """Learning rate factor: a linear rise over warmup_steps, then 1."""
    return min(1.0, (step + 1) / max(warmup_steps, 1))


def cosine_schedule(step: int, warmup_steps: int, total_steps: float) -> float:
    """Learning rate factor: a linear rise over warmup_steps, then half a cosine down to 0 at total_steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1))))


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "constant": constant_schedule,
    "cosine": cosine_schedule,
}


class ScoreModel(LightningModule):
    """A denoiser trained by an objective, with AdamW, warm-up and a learning rate schedule.

    Given as configurations (plain dicts with `_target_`), denoiser and objective are kept in the checkpoint, which
    then rebuilds the model by itself: `ScoreModel.load_from_checkpoint(path).denoiser`, with the averaged weights where
    `EMA` was used. Given as objects, they must be given again when loading.

    Noise, times and dropout of a training step are functions of (seed, step, process): a resumed run draws what the
    unbroken run would have drawn. To that end each step seeds torch's global generator.

    Args:
        denoiser: The denoiser, or its configuration.
        objective: The objective, or its configuration.
        lr: Peak learning rate, positive.
        betas: AdamW's decay rates of the two moments.
        weight_decay: AdamW's decoupled weight decay, at least 0.
        warmup_steps: Steps of linear warm-up, at least 0.
        schedule: constant or cosine (down to 0 at the trainer's max_steps or max_epochs).
        n_classes: Number of classes that the denoiser is conditioned on; 0 for an unconditional model.
        dequantise: Fill the bins of data with levels by uniform noise, anew in each step: for densities. Without it the
            model learns that data lie on levels.
        label_dropout: Share of samples trained without their label, for classifier-free guidance, in [0, 1].
        validation_draws: Noise draws for each validation image.
        seed: Of noise and times.
        compile: Compile the denoiser with torch.compile.
        data: Description of the data set (`DataModule.describe()`), kept in the checkpoint.

    Raises:
        ValueError: If a value is not allowed.
        UserError: If a configuration does not describe a denoiser or an objective.
    """

    def __init__(
        self,
        denoiser: Denoiser | Mapping[str, Any],
        objective: Objective | Mapping[str, Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        schedule: str = "cosine",
        n_classes: int = 0,
        dequantise: bool = False,
        label_dropout: float = 0.1,
        validation_draws: int = 8,
        seed: int = 0,
        compile: bool = False,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
        for name, value, fine, allowed in (
            ("lr", lr, lr > 0, "positive"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("warmup_steps", warmup_steps, warmup_steps >= 0, "at least 0"),
            ("label_dropout", label_dropout, 0 <= label_dropout <= 1, "in [0, 1]"),
            ("validation_draws", validation_draws, validation_draws >= 1, "at least 1"),
        ):
            if not fine:
                raise ValueError(f"{name} must be {allowed}; got {value}")
        # Plain containers, so that the checkpoint holds data alone: a configuration may come as OmegaConf's.
        denoiser, objective, data = (_plain(value) for value in (denoiser, objective, data))
        objects = [
            name for name, value in (("denoiser", denoiser), ("objective", objective)) if not isinstance(value, Mapping)
        ]
        self.save_hyperparameters(ignore=objects)
        self.denoiser: Denoiser = build(denoiser)
        self.objective: Objective = build(objective)
        self.data = dict(data or {})
        if dequantise and not self.data.get("levels"):
            raise ValueError("dequantise=true fills the bins of data with levels, and these data have none")
        self.run: dict[str, Any] = {}  # the configuration of the whole run, kept in checkpoints for resuming
        if compile:
            self.denoiser.compile()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any
    ) -> ScoreModel:
        """Rebuild a model from its checkpoint alone, in evaluation mode, with the averaged weights if there are any.

        Args:
            checkpoint_path: The file.
            map_location: Where the weights go.
            **overrides: Constructor arguments in place of those kept in the checkpoint.

        Returns:
            The model.

        Raises:
            UserError: If the file is missing, damaged, holds code, or is another program's.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        try:
            model = cls(**{**checkpoint["hyper_parameters"], **overrides})
            model.load_state_dict(checkpoint["state_dict"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{checkpoint_path} does not describe its model fully ({error}); if it was trained from objects in "
                "Python, give them again: ScoreModel.load_from_checkpoint(path, denoiser=..., objective=...)"
            ) from error
        return model.to(map_location).eval()

    # -- training -------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch {"x": [B, *], "label": [B] if there are labels}."""
        self._seed(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        conditions = self.conditions(batch)
        if "label" in conditions and self.hparams["label_dropout"]:
            label = conditions["label"]
            dropped = torch.rand(len(label), device=label.device) < self.hparams["label_dropout"]
            conditions["label"] = label.masked_fill(dropped, self.hparams["n_classes"])
        x0 = self._filled(batch["x"])
        t = self.objective.times(self.denoiser.sde, len(x0), device=x0.device)
        loss = self.objective(self.denoiser, x0, t, torch.randn_like(x0), **conditions).mean()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:  # the steps that Lightning writes; others cost time
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(x0))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss at fixed noise and stratified times: the same draws at every validation, so that curves compare.

        Returns:
            `losses` of the draws and their times `t`, [B * draws] each, for callbacks.
        """
        draws = self.hparams["validation_draws"]
        repeated = {key: value.repeat_interleave(draws, 0) for key, value in batch.items()}
        x0 = repeated["x"]
        generator = torch.Generator().manual_seed(self._step_seed(batch_idx))
        t = self.objective.times.strata(self.denoiser.sde, len(x0))
        t = t[torch.randperm(len(x0), generator=generator)].to(x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x0 = self._filled(x0, generator)
        losses = self.objective(self.denoiser, x0, t, noise, **self.conditions(repeated))
        self.log("val/loss", losses.mean(), prog_bar=True, batch_size=len(x0), sync_dist=True)
        return {"losses": losses, "t": t}

    def _filled(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Data with their bins filled, if so asked; by the global generator, or by one on the CPU."""
        if not self.hparams["dequantise"]:
            return x0
        device = x0.device if generator is None else generator.device
        uniform = torch.rand(x0.shape, generator=generator, dtype=x0.dtype, device=device).to(x0)
        return UniformDequantisation(self.data["levels"]).fill(x0, uniform)

    def conditions(self, batch: Batch) -> dict[str, Any]:
        """What of a batch the denoiser is conditioned on: its label, if the model is one of classes."""
        return {"label": batch["label"]} if self.hparams["n_classes"] else {}

    def configure_optimizers(self) -> Any:
        """AdamW, fused where the device allows, with the schedule stepped at each optimizer step."""
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(),
            lr=self.hparams["lr"],
            betas=tuple(self.hparams["betas"]),
            weight_decay=self.hparams["weight_decay"],
            fused=self.device.type in ("cpu", "cuda"),
        )
        total = float(self.trainer.estimated_stepping_batches)
        if self.hparams["schedule"] == "cosine" and not math.isfinite(total):
            raise UserError(
                "the cosine schedule must know where it ends: give trainer.max_steps (or max_epochs), or take "
                "model.schedule=constant"
            )
        factor, warmup_steps = SCHEDULES[self.hparams["schedule"]], self.hparams["warmup_steps"]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, lambda step: factor(step, warmup_steps, total)),
                "interval": "step",
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as this package's."""
        checkpoint["sde_diffusion"] = {"version": __version__, "run": self.run}

    # -- helpers --------------------------------------------------------------------------------------------------

    def _step_seed(self, step: int) -> int:
        key = (self.hparams["seed"], step, self.global_rank)
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _seed(self, step: int) -> None:
        torch.manual_seed(self._step_seed(step))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value
