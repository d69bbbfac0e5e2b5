"""The LightningModule: a denoiser and how it is learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sde_diffusion._version import __version__
from sde_diffusion.checks import as_number, as_positive, check_bool, check_choice, check_count, check_kind
from sde_diffusion.config import build, plain_containers
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.density import UniformDequantisation
from sde_diffusion.errors import UserError
from sde_diffusion.reprs import shown
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.training.checkpoint import check_fit, in_short, read_checkpoint
from sde_diffusion.training.checkpoint_contents import FORMAT
from sde_diffusion.training.objective import Objective
from sde_diffusion.training.precision import check_precision
from sde_diffusion.training.schedule import SCHEDULES, time_used, timer_of
from sde_diffusion.training.stopping import unfinished
from sde_diffusion.training.weights import check_weights, no_larger_than

Batch = dict[str, Tensor]


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
        schedule: constant or cosine (down to 0 at the trainer's max_steps, max_epochs or max_time, whichever ends the
            run).
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
        # By these names, under which they are kept as hyperparameters.
        schedule = check_choice("schedule", schedule, SCHEDULES)
        lr, weight_decay = as_positive("lr", lr), as_number("weight_decay", weight_decay)
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0; got {weight_decay!r}")
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1); got {shown(betas)}")
        betas = (as_number("betas[0]", betas[0]), as_number("betas[1]", betas[1]))
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1); got {shown(betas)}")
        label_dropout = as_number("label_dropout", label_dropout)
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1]; got {label_dropout!r}")
        warmup_steps, n_classes, seed = (
            check_count(name, value, least=0)
            for name, value in (("warmup_steps", warmup_steps), ("n_classes", n_classes), ("seed", seed))
        )
        validation_draws = check_count("validation_draws", validation_draws)
        dequantise, compile = check_bool("dequantise", dequantise), check_bool("compile", compile)
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"data must be a description, DataModule.describe(), or None; got {shown(data)}")
        # Plain containers, so that the checkpoint holds data alone: a configuration may come as OmegaConf's.
        denoiser, objective, data = (plain_containers(value) for value in (denoiser, objective, data))
        objects = [
            name for name, value in (("denoiser", denoiser), ("objective", objective)) if not isinstance(value, Mapping)
        ]
        self.save_hyperparameters(ignore=objects)
        self.denoiser: Denoiser = build(denoiser, "denoiser")
        check_denoiser(self.denoiser)
        self.objective: Objective = build(objective, "objective")
        check_kind("objective", self.objective, Objective)
        self.data = dict(data or {})
        if dequantise and not self.data.get("levels"):
            raise ValueError("dequantise=true fills the bins of data with levels, and these data have none")
        self._logged: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self.digest = ""  # SHA-256 of the checkpoint that a command has loaded it from
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
            with no_larger_than(checkpoint["state_dict"]):
                model = cls(**{**checkpoint["hyper_parameters"], **overrides})
            check_weights(model, checkpoint["state_dict"])
            model.load_state_dict(checkpoint["state_dict"])
        except Exception as error:  # constructors stumble over nonsense out of a file in many ways
            if ran_out(error):
                raise
            raise UserError(
                f"{checkpoint_path} does not describe its model fully ({in_short(error)}); if it was trained from "
                "objects in Python, give them again: ScoreModel.load_from_checkpoint(path, denoiser=..., objective=...)"
            ) from error
        return model.to(map_location).eval()

    # -- training -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """See that the precision is one to train in, and take it on before a checkpoint's weights are copied in."""
        if stage == "fit":
            check_precision(str(self.trainer.precision))
            self.trainer.precision_plugin.convert_module(self)

    def on_train_start(self) -> None:
        """Give a restored optimizer and schedule this run's settings; they come with those they were stored with."""
        settings = self._optimizer_settings()
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            scheduler: LambdaLR = config.scheduler  # type: ignore[assignment]
            scheduler.base_lrs = [settings["lr"]] * len(optimizer.param_groups)
            for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                lr = settings["lr"] * factor(scheduler.last_epoch)
                group.update({**optimizer.defaults, **settings, "lr": lr, "initial_lr": settings["lr"]})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Number what is logged by the optimizer's steps: a count of Lightning's own drifts when a run is resumed."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch {"x": [B, *], "label": [B] if there are labels}."""
        self._seed(self.trainer.fit_loop.epoch_loop.batch_progress.total.completed + 1)
        conditions = self.conditions(batch)
        if "label" in conditions and self.hparams["label_dropout"]:
            label = conditions["label"]
            dropped = torch.rand(len(label), device=label.device) < self.hparams["label_dropout"]
            conditions["label"] = label.masked_fill(dropped, self.hparams["n_classes"])
        x0 = self._filled(batch["x"])
        t = self.objective.times(self.denoiser.sde, len(x0), device=x0.device)
        loss = self.objective(self.denoiser, x0, t, torch.randn_like(x0), **conditions).mean()
        lr = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"], dtype=torch.float64)
        self._logged = {"train/loss": loss.detach(), "lr": lr}
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log loss and learning rate in the steps that Lightning writes, the run's last among them."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step % every == 0 or self.trainer.should_stop):  # logging costs time
            self.log_dict(self._logged, prog_bar=True, batch_size=len(batch["x"]))

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
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), **self._optimizer_settings())
        total = float(self.trainer.estimated_stepping_batches)
        if self.hparams["schedule"] == "cosine" and not math.isfinite(total) and timer_of(self.trainer) is None:
            raise UserError(
                "the cosine schedule must know where it ends: give trainer.max_steps, max_time or max_epochs, or take "
                "model.schedule=constant"
            )
        factor, warmup_steps = SCHEDULES[self.hparams["schedule"]], self.hparams["warmup_steps"]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(
                    optimizer, lambda step: factor(step, warmup_steps, total, time_used(self.trainer))
                ),
                "interval": "step",
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as this package's."""
        about = {
            "version": __version__,
            "format": FORMAT,
            "run": self.run,
            "within_step": bool(unfinished(self.trainer)),
        }
        checkpoint["sde_diffusion"] = {**about, "metrics": self.last_metrics()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check what Lightning takes over; without averaging, go on from the raw weights, which the moments fit.

        Raises:
            UserError: If it is not what it must be, or does not fit this model.
        """
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        check_fit(self, checkpoint, self.trainer.ckpt_path or "the checkpoint", fitting)
        averaging = any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if fitting and not averaging and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        self._metrics = checkpoint["sde_diffusion"].get("metrics", {})

    def last_metrics(self) -> dict[str, float]:
        """The last value of each metric that the run has logged, also before it was resumed."""
        logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        return dict(sorted({**self._metrics, **logged}.items()))

    # -- helpers --------------------------------------------------------------------------------------------------

    def _optimizer_settings(self) -> dict[str, Any]:
        # Lightning clips no gradients of fused optimizers under mixed precision, as these would scale them once more.
        clipped = isinstance(self.trainer.precision_plugin, MixedPrecision) and self.trainer.gradient_clip_val
        return {
            "lr": self.hparams["lr"],
            "betas": tuple(self.hparams["betas"]),
            "weight_decay": self.hparams["weight_decay"],
            "fused": self.device.type in ("cpu", "cuda") and not clipped,
        }

    def _step_seed(self, step: int) -> int:
        key = (self.hparams["seed"], step, self.global_rank)
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _seed(self, step: int) -> None:
        torch.manual_seed(self._step_seed(step))
