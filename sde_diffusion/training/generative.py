"""The base class of models: optimizer, learning rate schedule, seeds of the steps, and checkpoints."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sde_diffusion._version import __version__
from sde_diffusion.checks import as_positive, check_bool, check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import shown
from sde_diffusion.config import public_path, to_containers
from sde_diffusion.density import UniformDequantisation
from sde_diffusion.errors import MissingPackageError, UserError
from sde_diffusion.plugins import PluginError
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.training.adamw import check_betas, check_decay
from sde_diffusion.training.base import BaseModel, Batch
from sde_diffusion.training.checkpoint import check_fit, in_short, read_checkpoint
from sde_diffusion.training.checkpoint_contents import FORMAT
from sde_diffusion.training.items import training_items
from sde_diffusion.training.models import MODELS, model_class
from sde_diffusion.training.objective import Objective
from sde_diffusion.training.precision import check_precision
from sde_diffusion.training.schedule import SCHEDULES, Schedule, cosine_schedule, time_used, timer_of
from sde_diffusion.training.stopping import unfinished
from sde_diffusion.training.weights import check_weights, no_larger_than


class GenerativeModel(BaseModel):
    """A model trained with AdamW, warm-up and a learning rate schedule, whose checkpoints can rebuild it.

    A new kind of model is a subclass that makes its modules in the constructor and defines `training_loss` and
    `validation_losses`. It may set `conditions`, `dropout`, `denoiser` and `objective`, and override `draw_samples`
    and `summary`; see `sde_diffusion.training.base.BaseModel`. Its parameters are trained and averaged, except those
    that require no gradients. It stores further constructor arguments by `save_hyperparameters({...})`, as plain Python
    containers (dicts, lists, numbers, strings), so that the checkpoint has all that `load_from_checkpoint` needs.

    All random numbers of a training step are a function of (seed, step, process), so that a resumed run draws the same
    as an uninterrupted one. To this end each step seeds torch's global generator.

    Args:
        lr: Peak learning rate, positive.
        betas: AdamW's decay rates of the two moments, in [0, 1).
        weight_decay: AdamW's decoupled weight decay, at least 0.
        warmup_steps: Steps of linear warm-up, at least 0.
        schedule: "constant", "cosine" (down to 0 at the trainer's max_steps, max_epochs or max_time, whichever ends the
            run), or a function like those of `sde_diffusion.training.schedule`.
        dequantise: Add uniform noise of the width of a level to data with levels, drawn again in each step. Needed for
            likelihoods; without it, the model learns that data lie on levels.
        validation_draws: Number of draws for each item of the validation split, at least 1.
        seed: Seed of the steps' random numbers, at least 0.
        data: Description of the data set (`DataModule.describe()`), stored in the checkpoint.

    Raises:
        TypeError: If data is not a description.
        ValueError: If a value is not allowed.
    """

    parts = ""
    """The arguments that `load_from_checkpoint` needs if the model was made from objects, for an error message."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        schedule: str | Schedule = "cosine",
        dequantise: bool = False,
        validation_draws: int = 8,
        seed: int = 0,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        example = "a function like cosine_schedule"
        self.schedule: Schedule = as_instance("schedule", schedule, SCHEDULES, Callable, example)
        lr, weight_decay, betas = as_positive("lr", lr), check_decay(weight_decay), check_betas(betas)
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"data must be a description, DataModule.describe(), or None; got {shown(data)}")
        dequantise, data = check_bool("dequantise", dequantise), to_containers(data)
        self.data = dict(data or {})
        if dequantise and not self.data.get("levels"):
            raise ValueError("dequantise=true adds noise to data with levels, and these data have no levels")
        named = {"schedule": schedule} if isinstance(schedule, str) else {}  # a checkpoint contains no functions
        self.save_hyperparameters(
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "warmup_steps": check_count("warmup_steps", warmup_steps, least=0),
                **named,
                "dequantise": dequantise,
                "validation_draws": check_count("validation_draws", validation_draws),
                "seed": check_count("seed", seed, least=0),
                "data": data,
            }
        )
        self.objective: Objective | None = None
        self._logged: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}

    # -- to be defined by a subclass ------------------------------------------------------------------------------

    @abstractmethod
    def training_loss(self, batch: Batch) -> Tensor:
        """Loss of a batch {"x": [B, *], and each condition [B, *]}, []; draws with torch's global generator."""

    @abstractmethod
    def validation_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch at random draws that are the same at every validation.

        Args:
            batch: The batch, with each item repeated `validation_draws` times.
            generator: Generator of all random numbers, on the CPU.

        Returns:
            `losses`, [B], and further values for callbacks, [B] each, such as `log_snr` for `LossByNoiseLevel`.
        """

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any
    ) -> Self:
        """Rebuild a model from its checkpoint alone, in evaluation mode, with the averaged weights if there are any.

        `GenerativeModel.load_from_checkpoint(path)` makes a model of the class that the checkpoint names; see
        `models.model_class`.

        Args:
            checkpoint_path: The file.
            map_location: Device of the weights.
            **overrides: Constructor arguments in place of those in the checkpoint.

        Returns:
            The model.

        Raises:
            UserError: If the file is missing or damaged, contains code, or was written by another program.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        kind: type[Any] = cls
        if cls is GenerativeModel:
            name = checkpoint["sde_diffusion"].get("model", MODELS[0])
            kind = model_class(name, f"{checkpoint_path} is of a model")
        try:
            with no_larger_than(checkpoint["state_dict"]):
                model: Self = kind(**{**checkpoint["hyper_parameters"], **overrides})
            check_weights(model, checkpoint["state_dict"])
            model.load_state_dict(checkpoint["state_dict"])
        except (PluginError, MissingPackageError) as error:
            raise type(error)(f"{checkpoint_path}: {error}") from error
        except Exception as error:  # constructors raise many kinds of errors on invalid arguments from a file
            if ran_out(error):
                raise
            raise UserError(
                f"{checkpoint_path} does not describe its model completely ({in_short(error)}); if the model was made "
                f"from objects in Python, pass them: {kind.__name__}.load_from_checkpoint(path, {kind.parts})"
            ) from error
        return model.to(map_location).eval()

    def check_trainer(self, trainer: Trainer) -> None:
        """Check that a trainer's settings suit the model, before a run begins.

        Raises:
            UserError: If they do not.
        """

    def training_items(self, most: int = 10_000) -> Iterator[Tensor]:
        """Items of the training split for a new run, evenly spaced; see `items.training_items`."""
        return training_items(self.trainer, most)

    # -- training -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the precision, and convert the weights to it before those of a checkpoint are loaded."""
        if stage == "fit":
            check_precision(str(self.trainer.precision))
            self.trainer.precision_plugin.convert_module(self)

    def on_fit_start(self) -> None:
        """For a new run, pass the training data, as they will be used in training, to an objective that needs them."""
        if self.trainer.ckpt_path is None and self.objective is not None and self.objective.uses_data:
            generator = torch.Generator().manual_seed(self.hparams["seed"])  # the same for every process
            items = (self.filled(x.to(self.device), generator) for x in self.training_items())
            self.objective.fit_statistics(torch.cat(list(items)))

    def on_train_start(self) -> None:
        """Apply this run's settings to a restored optimizer and schedule, which have those of the checkpoint."""
        settings = self._optimizer_settings()
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            scheduler: LambdaLR = config.scheduler  # type: ignore[assignment]
            scheduler.base_lrs = [settings["lr"]] * len(optimizer.param_groups)
            groups = zip(optimizer.param_groups, self.parameter_groups(), scheduler.lr_lambdas, strict=True)
            for group, own, factor in groups:
                lr = settings["lr"] * factor(scheduler.last_epoch)
                group.update({**optimizer.defaults, **settings, "lr": lr, "initial_lr": settings["lr"], **own})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Log by optimizer steps; Lightning's own counter differs after a resume."""
        self.normalise_weights()
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The training loss of a batch, with random numbers seeded by the step."""
        torch.manual_seed(self._step_seed(self.trainer.fit_loop.epoch_loop.batch_progress.total.completed + 1))
        loss = self.training_loss(batch)
        lr = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"], dtype=torch.float64)
        self._logged = {"train/loss": loss.detach(), "lr": lr}
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log loss and learning rate in every `log_every_n_steps`-th step, and in the last one."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step % every == 0 or self.trainer.should_stop):  # as logging takes time
            self.log_dict(self._logged, prog_bar=True, batch_size=len(batch["x"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Losses at the same draws at every validation, so that they can be compared; see `validation_losses`."""
        repeated = {key: value.repeat_interleave(self.hparams["validation_draws"], 0) for key, value in batch.items()}
        found = self.validation_losses(repeated, torch.Generator().manual_seed(self._step_seed(batch_idx)))
        losses = found["losses"]
        self.log("val/loss", losses.mean(), prog_bar=True, batch_size=len(losses), sync_dist=True)
        return found

    def filled(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The data, dequantised if `dequantise`; drawn with torch's global generator, or one on the CPU."""
        if not self.hparams["dequantise"]:
            return x0
        device = x0.device if generator is None else generator.device
        uniform = torch.rand(x0.shape, generator=generator, dtype=x0.dtype, device=device).to(x0)
        return UniformDequantisation(self.data["levels"]).fill(x0, uniform)

    def configure_optimizers(self) -> Any:
        """AdamW, fused where the device allows, with the schedule stepped at each optimizer step."""
        optimizer = torch.optim.AdamW(self.parameter_groups(), **self._optimizer_settings())
        total = float(self.trainer.estimated_stepping_batches)
        if self.schedule is cosine_schedule and not math.isfinite(total) and timer_of(self.trainer) is None:
            raise UserError(
                "the cosine schedule needs the length of the run: set trainer.max_steps, max_time or max_epochs, or "
                "model.schedule=constant"
            )
        factor, warmup_steps = self.schedule, self.hparams["warmup_steps"]
        scheduler = LambdaLR(optimizer, lambda step: factor(step, warmup_steps, total, time_used(self.trainer)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add this package's entry to the checkpoint."""
        about = {
            "version": __version__,
            "format": FORMAT,
            "model": public_path(type(self)),
            "run": self.run,
            "within_step": bool(unfinished(self.trainer)),
        }
        checkpoint["sde_diffusion"] = {**about, "metrics": self.last_metrics()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the contents; without averaging, continue from the raw weights, to which the optimizer's state belongs.

        Raises:
            UserError: If the contents are invalid or do not fit this model.
        """
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        check_fit(self, checkpoint, self.trainer.ckpt_path or "the checkpoint", fitting)
        averaging = any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if fitting and not averaging and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        self._metrics = checkpoint["sde_diffusion"].get("metrics", {})

    def last_metrics(self) -> dict[str, float]:
        """The last value of each metric that the run has logged, including before it was resumed."""
        logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        return dict(sorted({**self._metrics, **logged}.items()))

    def _optimizer_settings(self) -> dict[str, Any]:
        # A fused optimizer unscales gradients itself, after they have been clipped.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        clipped = scaled and self.trainer.gradient_clip_val
        return {
            "lr": self.hparams["lr"],
            "betas": tuple(self.hparams["betas"]),
            "weight_decay": self.hparams["weight_decay"],
            "fused": self.device.type in ("cpu", "cuda") and not clipped,
        }

    def _step_seed(self, step: int) -> int:
        key = (self.hparams["seed"], step, self.global_rank)
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
