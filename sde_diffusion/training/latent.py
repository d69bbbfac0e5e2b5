"""Latent diffusion: a score model of what a frozen autoencoder encodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.config import public_path, to_containers, with_public_paths
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import Bound
from sde_diffusion.sampling import Noise
from sde_diffusion.training.first_stage import from_checkpoint, from_description
from sde_diffusion.training.module import ScoreModel
from sde_diffusion.training.objective import Objective
from sde_diffusion.training.schedule import Schedule
from sde_diffusion.variational import FirstStage, latent_bound, latent_noise


class LatentModel(ScoreModel):
    """A denoiser of standardised latent variables w = (z - shift) / scale; see `FirstStage`.

    z is drawn from q(z | x) anew in each step. The first stage's weights and description are part of the model's own
    checkpoint, which needs no other file. They are not trained and not averaged. A new run measures shift and scale
    over the training split, or 10,000 evenly spaced items of it.

    Args:
        denoiser: The denoiser of w, or its configuration, for data of unit variance (sigma_data = 1) of the shape of w.
        objective: The objective, or its configuration.
        first_stage: The path of a checkpoint of a `VariationalModel` with one latent variable; or a first stage; or its
            description, whose weights are then those of this model's checkpoint.
        lr: See `GenerativeModel`.
        betas: See `GenerativeModel`.
        weight_decay: See `GenerativeModel`.
        warmup_steps: See `GenerativeModel`.
        schedule: See `GenerativeModel`.
        dequantise: See `GenerativeModel`; as the first stage was trained.
        label_dropout: See `ScoreModel`.
        validation_draws: See `ScoreModel`; z is drawn anew for each.
        seed: See `GenerativeModel`.
        compile: See `ScoreModel`.
        data: Description of the data set (`DataModule.describe()`), of x.
        conditions: See `ScoreModel`.
        condition_dropout: See `ScoreModel`.
        activation_checkpointing: See `ScoreModel`.

    Raises:
        ValueError: If a value is not allowed.
        UserError: If a configuration is invalid, or the checkpoint is not that of a first stage for these data.

    Attributes:
        first_stage: The `FirstStage`.

    References:
        Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
    """

    parts = "denoiser=..., objective=..., first_stage=..."

    def __init__(
        self,
        denoiser: Denoiser | Mapping[str, Any],
        objective: Objective | Mapping[str, Any],
        first_stage: FirstStage | Mapping[str, Any] | str | Path | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        schedule: str | Schedule = "cosine",
        dequantise: bool = False,
        label_dropout: float = 0.1,
        validation_draws: int = 2,
        seed: int = 0,
        compile: bool = False,
        data: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
        condition_dropout: Mapping[str, float] | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            denoiser,
            objective,
            lr,
            betas,
            weight_decay,
            warmup_steps,
            schedule,
            dequantise=dequantise,
            label_dropout=label_dropout,
            validation_draws=validation_draws,
            seed=seed,
            compile=compile,
            data=data,
            conditions=conditions,
            condition_dropout=condition_dropout,
            activation_checkpointing=activation_checkpointing,
        )
        if isinstance(first_stage, Mapping):
            stage = from_description(to_containers(first_stage), self.data)
        elif isinstance(first_stage, FirstStage):
            stage = first_stage
        else:
            stage = from_checkpoint(first_stage, self.data)
        if stage.description is not None:
            self.save_hyperparameters({"first_stage": with_public_paths(stage.description)})
        self.first_stage: FirstStage = stage
        self.decode_as = "mean"

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the latent variables."""
        return self.first_stage.latent_shape

    def to_data(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """The mean of p(x | w) for w, [B, *state_shape], on the data's scale, or a draw from it: see `decode_as`."""
        if self.decode_as != "draw":
            return self.first_stage.decode(x)
        seeds = range(len(x)) if seeds is None else seeds
        noise = Noise(seeds, self.first_stage.shape, x.device, x.dtype).stream("observation")
        return self.first_stage.draw_data(x, noise.normal(0))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, seeds: Sequence[int] | None = None) -> Tensor:
        """The first stage's: the mean of p(x | z) for a draw of z from q(z | x); see `BaseModel.reconstruct`."""
        seeds = range(len(x)) if seeds is None else seeds
        (stream,) = latent_noise(self.first_stage.autoencoder, seeds, x.device, x.dtype)
        return self.first_stage.decode(self.first_stage.draw_latents(x, stream.normal(0)))

    def on_fit_start(self) -> None:
        """Measure shift and scale for a new run, on all training items or 10,000; every process with the same noise."""
        if self.trainer.ckpt_path is None:
            filled, generator = super().filled, torch.Generator().manual_seed(self.hparams["seed"])
            self.first_stage.fit_statistics(filled(x.to(self.device), generator) for x in self.training_items())
        super().on_fit_start()  # which fits the objective to w, which `filled` draws

    def filled(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw w from q given the data, which are dequantised first if `dequantise`; [B, *state_shape]."""
        x = super().filled(x0, generator)
        device = x.device if generator is None else generator.device
        return self.first_stage.draw_latents(
            x, torch.randn(len(x), *self.state_shape, generator=generator, device=device).to(x)
        )

    def bound(self, x: Tensor, **options: Any) -> Bound:
        """The bound of autoencoder and diffusion together; see `BaseModel.bound` and `latent_bound`."""
        return latent_bound(self.first_stage, self.denoiser, x, **options)

    @property
    def has_bound(self) -> bool:
        """See `BaseModel`: q(z | x) must have an entropy, which that of a deterministic encoder has not."""
        return self.first_stage.autoencoder.has_entropy

    @property
    def bounds_density(self) -> bool:
        """See `BaseModel`: what p(x | z) is."""
        return self.first_stage.autoencoder.observation.levels is None

    def summary(self) -> dict[str, str]:
        """Also the first stage, and the shapes of the data and of the latent variables."""
        own = self.first_stage
        size = sum(p.numel() for p in own.parameters())
        made_by = f"by a frozen {public_path(type(own.autoencoder))}, {size:,} parameters"
        latents = f"{list(own.latent_shape)} for data {list(own.shape)}, {made_by}"
        return {**super().summary(), "latents": latents}
