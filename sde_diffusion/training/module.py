"""The score model: a denoiser and how it is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_bool, check_kind
from sde_diffusion.conditions import Conditions
from sde_diffusion.config import build, to_containers, with_public_paths
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.generative import Batch, GenerativeModel
from sde_diffusion.training.objective import Objective


class ScoreModel(GenerativeModel):
    """A denoiser trained by an objective.

    Given as configurations (plain dicts with `_target_`), denoiser and objective are kept in the checkpoint, which
    then rebuilds the model by itself: `ScoreModel.load_from_checkpoint(path).denoiser`, with the averaged weights where
    `EMA` was used. Given as objects, they must be given again when loading. A path with parameters of its own, which
    belongs to the denoiser, is trained, averaged and kept with it.

    Args:
        denoiser: The denoiser, or its configuration.
        objective: The objective, or its configuration.
        lr: See `GenerativeModel`.
        betas: Likewise.
        weight_decay: Likewise.
        warmup_steps: Likewise.
        schedule: Likewise.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        dequantise: See `GenerativeModel`.
        label_dropout: Share of samples trained without their conditions, for classifier-free guidance, in [0, 1]: one
            draw for all conditions.
        validation_draws: Draws of time and noise for each item of the validation split.
        seed: Of noise and times, and of which conditions are left out.
        compile: Compile the denoiser with torch.compile.
        data: See `GenerativeModel`.
        conditions: What the denoiser is told of each sample, by name: kinds of `sde_diffusion.conditions`, or their
            descriptions. Batches have an entry of each name.
        condition_dropout: Shares for conditions that are left out by draws of their own; see `ConditionDropout`.

    Raises:
        ValueError: If a value is not allowed.
        UserError: If a configuration does not describe a denoiser or an objective.
    """

    parts = "denoiser=..., objective=..."

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
        conditions: Mapping[str, Any] | None = None,
        condition_dropout: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            lr, betas, weight_decay, warmup_steps, schedule, dequantise, validation_draws, seed=seed, data=data
        )
        compile = check_bool("compile", compile)
        self.conditions = Conditions(conditions, n_classes)
        self.dropout = ConditionDropout(self.conditions, label_dropout, condition_dropout)
        # Plain containers, so that the checkpoint holds data alone: a configuration may come as OmegaConf's.
        given = {"denoiser": to_containers(denoiser), "objective": to_containers(objective)}
        described = {name: with_public_paths(value) for name, value in given.items() if isinstance(value, Mapping)}
        shares = {"label_dropout": self.dropout.share, "condition_dropout": self.dropout.own}
        rest = {"conditions": self.conditions.describe(), **shares, "compile": compile}
        self.save_hyperparameters({**described, **rest})
        self.denoiser: Denoiser = build(given["denoiser"], "denoiser")
        check_denoiser(self.denoiser)
        self.objective: Objective = build(given["objective"], "objective")
        check_kind("objective", self.objective, Objective)
        if compile:
            self.denoiser.compile()

    def training_loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, some of its samples without their conditions."""
        conditions = self.dropout(self.conditions_of(batch))
        x0 = self.filled(batch["x"])
        return self.objective(self.denoiser, x0, **self.objective.draw(self.denoiser, x0), **conditions).mean()

    def validation_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses at fixed noise and stratified times `t`; see `GenerativeModel.validation_losses`."""
        draws = self.objective.draw(self.denoiser, batch["x"], generator)
        x0 = self.filled(batch["x"], generator)
        losses = self.objective(self.denoiser, x0, **draws, **self.conditions_of(batch))
        return {"losses": losses, **{name: value for name, value in draws.items() if value.ndim == 1}}

    def conditions_of(self, batch: Batch) -> dict[str, Tensor]:
        """What of a batch the denoiser is told.

        Raises:
            ValueError: If the batch lacks a condition.
        """
        if lacking := [name for name in self.conditions if name not in batch]:
            raise ValueError(f"batches must have {', '.join(lacking)}, which the model is conditioned on")
        return {name: batch[name] for name in self.conditions}
