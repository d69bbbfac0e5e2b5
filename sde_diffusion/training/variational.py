"""Latent variable models that are trained by a lower bound on log p(x)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from PIL.Image import Image
from torch import Tensor, nn

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.config import build, build_around, to_containers, with_public_paths
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import Bound
from sde_diffusion.distributed import summed
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of
from sde_diffusion.modality.pictures import Curves
from sde_diffusion.sampling import Samples
from sde_diffusion.training.adversary import PatchAdversary
from sde_diffusion.training.base import Batch
from sde_diffusion.training.collapse import collapse_message, unused_latents
from sde_diffusion.training.generative import GenerativeModel
from sde_diffusion.training.latent_pictures import latent_pictures
from sde_diffusion.training.objective import Objective
from sde_diffusion.training.schedule import Schedule
from sde_diffusion.training.variational_objective import BetaELBO, VariationalObjective
from sde_diffusion.variational import Autoencoder, bound, latent_noise, observation_for
from sde_diffusion.variational.first_stage import why_no_first_stage

log = logging.getLogger(__name__)


def build_autoencoder(autoencoder: Any, observation: Any, shape: Sequence[int], levels: int | None) -> Any:
    """The autoencoder of a configuration, for data of a shape and a number of levels.

    Args:
        autoencoder: The configuration of the autoencoder.
        observation: That of p(x | z); None: chosen by the data, see `observation_for`.
        shape: Shape of the data.
        levels: Number of levels of the data; None for continuous ones.

    Raises:
        UserError: If a configuration is invalid.
    """
    kind = build_around(
        observation_for(levels) if observation is None else observation, "model.observation", levels=levels
    )
    return build_around(autoencoder, "model.autoencoder", shape=list(shape), observation=kind)


class VariationalModel(GenerativeModel):
    """A latent variable model trained by a lower bound on log p(x); validated by the evidence lower bound, beta = 1.

    Args:
        autoencoder: The model, or its configuration, in which the shape of the data and the observation model are
            filled in.
        observation: p(x | z), or its configuration; None: chosen by the data, see `observation_for`, or that of
            `autoencoder` if it is a model.
        objective: `BetaELBO()` by default, or its configuration.
        adversary: A discriminator that the reconstructions must deceive, a `PatchAdversary`, or its
            configuration, in which the shape of the data is filled in; None: none.
        lr: See `GenerativeModel`.
        betas: See `GenerativeModel`.
        weight_decay: See `GenerativeModel`.
        warmup_steps: Of the learning rate; see `GenerativeModel`.
        schedule: See `GenerativeModel`.
        dequantise: See `GenerativeModel`.
        validation_draws: See `GenerativeModel`.
        least_latents: Least number of latent variables that the autoencoder must have.
        seed: See `GenerativeModel`.
        data: Description of the data set (`DataModule.describe()`).

    Raises:
        TypeError: If `autoencoder` is not an autoencoder, or the objective not an objective.
        ValueError: If a value is not allowed.
        UserError: If a configuration is invalid, or the objective not one for such models.

    Attributes:
        autoencoder: The `Autoencoder`.
    """

    parts = "autoencoder=..., objective=..."

    def __init__(
        self,
        autoencoder: Autoencoder | Mapping[str, Any],
        observation: Any = None,
        objective: VariationalObjective | Mapping[str, Any] | None = None,
        adversary: PatchAdversary | Mapping[str, Any] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        schedule: str | Schedule = "cosine",
        dequantise: bool = False,
        validation_draws: int = 1,
        least_latents: int = 1,
        seed: int = 0,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            lr, betas, weight_decay, warmup_steps, schedule, dequantise, validation_draws, seed=seed, data=data
        )
        given = {"autoencoder": autoencoder, "observation": observation, "objective": objective, "adversary": adversary}
        parts = {name: to_containers(value) for name, value in given.items()}
        self.save_hyperparameters({k: with_public_paths(v) for k, v in parts.items() if isinstance(v, Mapping)})
        if isinstance(parts["autoencoder"], Mapping):
            if "shape" not in self.data:
                raise ValueError("autoencoder must be a model, unless data=DataModule.describe() says what it is for")
            data = {"shape": self.data["shape"], "levels": self.data.get("levels")}
            parts["autoencoder"] = build_autoencoder(parts["autoencoder"], parts["observation"], **data)
        elif observation is not None:
            raise ValueError("observation must be None if autoencoder is a model, which has one already")
        self.autoencoder: Autoencoder = parts["autoencoder"]
        check_kind("autoencoder", self.autoencoder, Autoencoder)
        if (count := len(self.autoencoder.latent_shapes)) < check_count("least_latents", least_latents):
            raise UserError(
                f"model.autoencoder has {count} latent variable{'s' * (count > 1)}, and this model is for at least "
                f"{least_latents}: take a hierarchy, such as model/autoencoder=mlp_hierarchy, or model=vae"
            )
        if "shape" in self.data:
            self.autoencoder.observation.check_data(self.data.get("levels"), dequantise)
        self.decode_as = "mean"
        chosen = BetaELBO() if objective is None else build(parts["objective"], "objective")
        self.objective: VariationalObjective = chosen
        check_kind("objective", self.objective, Objective)
        if not isinstance(self.objective, VariationalObjective):
            raise UserError(
                f"{type(self.objective).__name__} is for models with a denoiser: take objective=beta_elbo, iwae or, "
                "for codes, vq"
            )
        self.objective.check(self.autoencoder)
        self.random_latents = not self.autoencoder.quantized
        self.can_be_first_stage = not why_no_first_stage(self.autoencoder)
        self.loss_axis = f"loss, nats per dimension; {self.objective.validation}"
        shape = list(self.data.get("shape", self.autoencoder.shape))
        self.adversary: PatchAdversary | None = build_around(parts["adversary"], "adversary", shape=shape)
        if self.adversary is not None:
            check_kind("adversary", self.adversary, PatchAdversary)
            self.adversary.check(self.autoencoder, self.objective)
        self._usage: dict[str, Tensor] = {}
        self._own_loss = torch.zeros(())
        self._unused: list[int] = []

    def on_fit_start(self) -> None:
        """Start a new run at the outputs that describe the training data without latent variables."""
        if self.trainer.ckpt_path is None:
            self.autoencoder.fit_statistics(torch.cat(list(self.training_items())))
        super().on_fit_start()

    def check_trainer(self, trainer: Trainer) -> None:
        """See `GenerativeModel.check_trainer`.

        Raises:
            UserError: If the objective's warm-up is longer than the run.
        """
        warmup, steps = self.objective.warmup_steps, trainer.max_steps
        if 0 < steps < warmup:
            raise UserError(
                f"objective.warmup_steps={warmup} is more than trainer.max_steps={steps}: beta would never reach its "
                "value; make the warm-up shorter, or the run longer"
            )

    def training_loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch."""
        x0 = self.filled(batch["x"])
        found = self.objective.infer(self.autoencoder, x0, self.objective.draw(self.autoencoder, x0))
        loss = self.objective.loss(found, x0, self.global_step).mean()
        self._own_loss = loss.detach()
        return loss if self.adversary is None else loss + self.adversary(self.autoencoder, found, x0, self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """See `GenerativeModel.training_step`; an adversary's losses are logged beside the objective's."""
        loss = super().training_step(batch, batch_idx)
        if self.adversary is not None:
            self._logged["train/loss"] = self._own_loss
            self._logged |= {f"train/{name}": value for name, value in self.adversary.logged.items()}
        return loss

    def parameters_apart(self) -> list[list[nn.Parameter]]:
        """Those of p(x | z) itself, such as sigma, which weight decay would pull to 1; and an adversary's."""
        parts = (self.autoencoder.observation, self.adversary)
        groups = [list(part.parameters()) for part in parts if part is not None]
        return [group for group in groups if any(parameter.requires_grad for parameter in group)]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave an adversary that has not started out of the step, as zeros would use up Adam's bias correction."""
        if self.adversary is not None and self.global_step < self.adversary.start_step:
            for parameter in self.adversary.parameters():
                parameter.grad = None

    def validation_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The negative evidence lower bound, in nats for each dimension, and the KL divergences, at fixed draws."""
        x0, plain = self.filled(batch["x"], generator), BetaELBO()
        found = plain.infer(self.autoencoder, x0, plain.draw(self.autoencoder, x0, generator))
        kl = found.kl()
        for name, values in self.autoencoder.usage(found).items():
            self._usage[name] = self._usage[name] + values if name in self._usage else values
        terms = {f"kl_{t}": values for t, values in enumerate(kl, 1)}
        return {"losses": (kl.sum(0) - found.log_prob) / x0[0].numel(), **terms}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """See `GenerativeModel.validation_step`; also logs the KL divergence of each latent variable, in nats."""
        found = super().validation_step(batch, batch_idx)
        for name, values in found.items():
            if name.startswith("kl_"):
                self.log(f"val/{name}", values.mean(), batch_size=len(values), sync_dist=True)
        if self.autoencoder.observation.levels:
            bits = found["losses"].mean() / math.log(2)
            self.log("val/bits_per_dim", bits, batch_size=len(found["losses"]), sync_dist=True)
        return found

    def on_validation_epoch_start(self) -> None:
        """Forget how the latent variables were used in an earlier validation."""
        self._usage = {}

    def on_validation_epoch_end(self) -> None:
        """Log what the model says of how its latent variables were used for the split."""
        sums = {name: summed(part) for name, part in self._usage.items()}
        self.log_dict({f"val/{name}": value for name, value in self.autoencoder.usage_metrics(sums).items()})

    def on_validation_end(self) -> None:
        """Warn once of latent variables that are not used after the warm-up."""
        steps = max(self.objective.warmup_steps, self.hparams["warmup_steps"])
        if not self.trainer.sanity_checking and self.global_step >= steps:
            self._warn_of_unused()

    def on_train_end(self) -> None:
        """The same, of a run that ends within the warm-up."""
        self._warn_of_unused()

    def _warn_of_unused(self) -> None:
        metrics, count = self.trainer.callback_metrics, len(self.autoencoder.latent_shapes)
        kl = [float(metrics[name]) for t in range(1, count + 1) if (name := f"val/kl_{t}") in metrics]
        if not self.trainer.is_global_zero or len(kl) < count:
            return
        unused = unused_latents(kl)
        if unused and unused != self._unused:
            log.warning("%s", collapse_message(unused, kl, self.global_step, self.objective.collapse_advice))
        self._unused = unused

    def draw_samples(
        self, sampler: Callable[..., Samples], denoiser: Denoiser | None, shape: Sequence[int], **options: Any
    ) -> Samples:
        """Decode z drawn from the model as `decode_as` says; the sampler and the denoiser are not used."""
        given, parameter = options.get("seeds"), next(self.parameters())
        seeds = range(shape[0]) if given is None else given
        noise = latent_noise(self.autoencoder, seeds, parameter.device, parameter.dtype)
        with torch.no_grad():
            z = self.autoencoder.generate([stream.normal(0) for stream in noise])
            if self.decode_as == "draw":
                stream = noise[0].stream("observation", self.autoencoder.shape)
                return Samples(self.autoencoder.draw_data(z, stream.normal(0)), nfe=1, latents=z)
            return Samples(self.autoencoder.decode(z), nfe=1, latents=z)

    def bound(self, x: Tensor, **options: Any) -> Bound:
        """The evidence lower bound, or the importance weighted one; see `BaseModel.bound` and `variational.bound`."""
        return bound(self.autoencoder, x, **options)

    @property
    def bounds_density(self) -> bool:
        """See `BaseModel`: what p(x | z) is."""
        return self.autoencoder.observation.levels is None

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, seeds: Sequence[int] | None = None) -> Tensor:
        """The mean of p(x | z) for a draw of z from q(z | x); see `BaseModel.reconstruct`."""
        noise = latent_noise(self.autoencoder, range(len(x)) if seeds is None else seeds, x.device, x.dtype)
        found = self.autoencoder.infer(x, [stream.normal(0) for stream in noise])
        return self.autoencoder.decode([latent.z for latent in found.latents])

    def pictures(self, x: Tensor) -> dict[str, Image]:
        """Of items beside their reconstructions, and of what the latent variables stand for; see `latent_pictures`."""
        return latent_pictures(self.autoencoder, modality_of(self.data), x)

    def curves(self) -> dict[str, Curves]:
        """What says how far the latent variables are used; see `LatentVariableModel.usage_curves`."""
        found = self.autoencoder.usage_curves()
        labels = {f"val/{name}": label for name, label in found.metrics.items()}
        factors = {f"val/{name}": factor for name, factor in found.factors.items()}
        return {f"{found.name}.png": Curves(labels, f"{found.axis}, validation split", found.what, factors, found.top)}

    def summary(self) -> dict[str, str]:
        """Also the latent variables, and what the losses are."""
        latents = " <- ".join(str(list(dims)) for dims in self.autoencoder.latent_shapes)
        return {**super().summary(), "latents": latents, "loss": "in " + self.loss_axis.removeprefix("loss, ")}
