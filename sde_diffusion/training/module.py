"""The score model: a denoiser, and how it is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from sde_diffusion.checks import check_bool, check_kind
from sde_diffusion.conditions import Conditions
from sde_diffusion.config import build, public_path, to_containers, with_public_paths
from sde_diffusion.denoiser import Denoiser, check_denoiser, checkpoint_activations, in_eval_mode
from sde_diffusion.density import Bound, elbo
from sde_diffusion.training.augmentation import AUGMENT, Augmentation
from sde_diffusion.training.base import Batch
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.generative import GenerativeModel
from sde_diffusion.training.measured import Measured
from sde_diffusion.training.objective import Objective
from sde_diffusion.training.schedule import Schedule
from sde_diffusion.variational import DiffusionChain, bound

log = logging.getLogger(__name__)

_DRAWN = ("rows", "dtype")
_CHAIN = ("steps", "variance", "decoder", "prior", "grid", "t_end")
"""Arguments of `variational.bound` and of `DiffusionChain`."""


class ScoreModel(GenerativeModel):
    """A denoiser trained with an objective.

    If denoiser and objective are configurations (dicts with `_target_`), they are stored in the checkpoint, which then
    suffices to rebuild the model: `ScoreModel.load_from_checkpoint(path).denoiser`, with the averaged weights if `EMA`
    was used. If they are objects, they must be passed again when loading. A path with parameters is part of the
    denoiser, so it is trained, averaged and stored with it.

    Args:
        denoiser: The denoiser, or its configuration.
        objective: The objective, or its configuration.
        lr: See `GenerativeModel`.
        betas: See `GenerativeModel`.
        weight_decay: See `GenerativeModel`.
        warmup_steps: See `GenerativeModel`.
        schedule: See `GenerativeModel`.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        dequantise: See `GenerativeModel`.
        label_dropout: Probability of training a sample without its conditions, in [0, 1], for classifier-free guidance.
            All conditions of a sample are dropped together.
        validation_draws: Number of draws of time and noise for each item of the validation split, at least 1.
        seed: Seed of noise, times and dropped conditions.
        compile: Compile the denoiser with torch.compile for the steps of training, which all have one shape; not for
            validation and pictures.
        data: See `GenerativeModel`.
        conditions: The denoiser's conditions by name, as in {"label": Label(10)}, or their descriptions; see
            `sde_diffusion.conditions`. Batches must have an entry for each name.
        condition_dropout: Probabilities for conditions that are dropped independently of the others, by name; see
            `ConditionDropout`.
        measured: What the model is given of the data themselves, such as a smaller picture, or its configuration; its
            `conditions(shape)` must be among the conditions. None: nothing.
        augmentation: How training images are changed at random, or its configuration; the network must have its
            `conditions()`, beside the others. None: not at all.
        activation_checkpointing: Keep only the inputs of the network's blocks in a training step, and compute what is
            in them again in the backward pass: less memory for about a quarter more time. For the library's networks.

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
        schedule: str | Schedule = "cosine",
        n_classes: int = 0,
        dequantise: bool = False,
        label_dropout: float = 0.1,
        validation_draws: int = 8,
        seed: int = 0,
        compile: bool = False,
        data: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
        condition_dropout: Mapping[str, float] | None = None,
        measured: Measured | Mapping[str, Any] | None = None,
        augmentation: Augmentation | Mapping[str, Any] | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            lr, betas, weight_decay, warmup_steps, schedule, dequantise, validation_draws, seed=seed, data=data
        )
        compile = check_bool("compile", compile)
        self.conditions = Conditions(conditions, n_classes)
        self.dropout = ConditionDropout(self.conditions, label_dropout, condition_dropout)
        # Plain Python containers, so that the checkpoint contains only data, even if these are OmegaConf's containers.
        parts = {"denoiser": to_containers(denoiser), "objective": to_containers(objective)}
        optional = {"measured": measured, "augmentation": augmentation}
        parts |= {name: to_containers(value) for name, value in optional.items() if value is not None}
        described = {name: with_public_paths(value) for name, value in parts.items() if isinstance(value, Mapping)}
        dropout = {"label_dropout": self.dropout.probability, "condition_dropout": self.dropout.separate}
        rest = {"conditions": self.conditions.describe(), **dropout, "compile": compile}
        rest["activation_checkpointing"] = check_bool("activation_checkpointing", activation_checkpointing)
        self.save_hyperparameters({**described, **rest})
        self.denoiser: Denoiser = build(parts["denoiser"], "denoiser")
        check_denoiser(self.denoiser)
        self.objective: Objective = build(parts["objective"], "objective")
        check_kind("objective", self.objective, Objective)
        self.objective.check(self.denoiser)
        if measured is not None:
            self.measured: Measured | None = build(parts["measured"], "measured")
            check_kind("measured", self.measured, Measured)
            needed = self.measured.conditions(self.data["shape"]) if "shape" in self.data else {}
            if lacking := [name for name in needed if name not in self.conditions]:
                raise ValueError(f"conditions lack {', '.join(lacking)}: add measured.conditions(shape) to them")
        self.augmentation: Augmentation | None = build(parts.get("augmentation"), "augmentation")
        check_kind("augmentation", self.augmentation, Augmentation, or_none=True)
        if self.augmentation is not None and "shape" in self.data:
            self.augmentation.check(self.data["shape"])
            taken = getattr(getattr(self.denoiser, "network", None), "training_condition_names", ())
            if lacking := [name for name in self.augmentation.conditions() if name not in taken]:
                raise ValueError(f"the network lacks the condition {', '.join(lacking)}: augmentation.conditions()")
        if activation_checkpointing:
            checkpoint_activations(self.denoiser)

    def setup(self, stage: str) -> None:
        """See `GenerativeModel.setup`; also compiles the denoiser if `compile`."""
        super().setup(stage)
        if stage == "fit" and self.hparams["compile"]:
            self.denoiser.compile()

    def on_validation_start(self) -> None:
        """Compile nothing: validations and pictures have other shapes, and compiling these takes longer than they."""
        if self.hparams["compile"]:
            torch.compiler.set_stance("force_eager")

    def on_validation_end(self) -> None:
        """Return to the compiled steps."""
        if self.hparams["compile"]:
            torch.compiler.set_stance("default")

    def check_trainer(self, trainer: Trainer) -> None:
        """See `GenerativeModel.check_trainer`; also warns of a path learned by no bound, and of two precisions."""
        dtype = getattr(self.denoiser, "compute_dtype", None)
        name = str(dtype).removeprefix("torch.")
        if dtype is not None and str(trainer.precision).endswith("mixed"):
            log.warning(
                "denoiser.compute_dtype=%s and trainer.precision=%s: autocast then still chooses the type of each "
                "operation in training; take one of them, such as trainer.precision=32-true, with which the whole "
                "network computes in %s",
                name,
                trainer.precision,
                name,
            )
        path: Any = self.denoiser.sde
        if path.learned and not self.objective.is_bound and any(p.requires_grad for p in path.parameters()):
            log.warning(
                "the objective is not a bound on log p(x), and the path is learned by it: use objective=vdm, or a path "
                "with nothing to learn"
            )

    def parameters_apart(self) -> list[list[nn.Parameter]]:
        """A learned path's, whose gradients are larger and vary more than the network's."""
        path: Any = self.denoiser.sde
        return [list(path.parameters())] if path.learned else []

    def training_loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, augmented, and with the conditions of some samples dropped."""
        augmented: dict[str, Tensor] = {}
        if self.augmentation is not None:
            x, augmented[AUGMENT] = self.augmentation(batch["x"])
            batch = {**batch, "x": x}
        conditions = self.dropout(self.conditions_of(self.with_measurements(batch))) | augmented
        x0 = self.filled(batch["x"])
        return self.objective(self.denoiser, x0, **self.objective.draw(self.denoiser, x0), **conditions).mean()

    def validation_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses at fixed noise and stratified times, and the times' log-SNR; see `GenerativeModel`."""
        x0 = self.filled(batch["x"], generator)
        draws = self.objective.draw(self.denoiser, x0, generator)
        conditions = self.conditions_of(self.with_measurements(batch, generator))
        losses = self.objective(self.denoiser, x0, **draws, **conditions)
        found = {"losses": losses, **{name: value for name, value in draws.items() if value.ndim == 1}}
        return {**found, "log_snr": self.denoiser.sde.log_snr(draws["t"])} if "t" in draws else found

    def bound(
        self,
        x: Tensor,
        *,
        draws: int = 1,
        importance: int = 1,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Bound:
        """The bound of the diffusion, or of the chain of its steps with importance weights; see `BaseModel.bound`.

        Args:
            x: See `BaseModel.bound`.
            draws: For importance = 1, the predictions for each item; else the number of estimates.
            importance: 1: `elbo`; K > 1: `variational.bound` of a `DiffusionChain`, K draws of all its states.
            seeds: See `BaseModel.bound`.
            **options: Arguments of `elbo`, by default steps=None; for K > 1 those of `DiffusionChain`, and `rows`,
                `dtype` and the conditions.
        """
        if importance == 1:
            return elbo(self.denoiser, x, draws=draws, seeds=seeds, **{"steps": None, **options})
        own, chain = ({key: options.pop(key) for key in keys if key in options} for keys in (_DRAWN, _CHAIN))
        with self.denoiser.sde.on_cpu(), in_eval_mode(self.denoiser):
            conditions = self.denoiser.check_conditions(options, len(x), x.device)
            model = DiffusionChain(self.denoiser, x.shape[1:], **chain)
            x = x.to(own.get("dtype", torch.float64))  # log p and log q are large, and nearly equal
            return bound(model, x, draws, importance, seeds=seeds, **own, **conditions)

    def summary(self) -> dict[str, str]:
        """The path; the network, its number of parameters, and what it predicts; what it is given of the data."""
        described = self.hparams.get("denoiser") or {}
        network = (described.get("network") or {}).get("_target_") or public_path(type(self.denoiser))
        parameters = sum(p.numel() for p in self.parameters() if p.requires_grad)
        prediction = described.get("prediction", "its own")
        model = f"{network}, {parameters:,} parameters, prediction {prediction}"
        found = {"path": str(self.denoiser.sde), "model": model}
        found |= {} if self.measured is None else {"measured": self.measured.summary()}
        return found if self.augmentation is None else {**found, "augmented": self.augmentation.extra_repr()}
