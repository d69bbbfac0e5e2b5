"""A classifier of noisy data, trained for classifier guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_kind
from sde_diffusion.conditions import Conditions, Label
from sde_diffusion.config import build, build_around, to_containers, with_public_paths
from sde_diffusion.guidance.network_classifier import NetworkClassifier
from sde_diffusion.sde import SDE, expand
from sde_diffusion.training.base import Batch
from sde_diffusion.training.generative import GenerativeModel
from sde_diffusion.training.schedule import Schedule
from sde_diffusion.training.time_sampling import LogNormalTimes, TimeSampling

_ENCODER = {"_target_": "sde_diffusion.nn.Encoder"}


class Classifier(GenerativeModel):
    """p(label | x_t), trained by cross-entropy on noisy data: `ClassifierGuidance(denoiser, model.classifier)`.

    It should see the noise that it will be asked about: the path and the distribution of times of the model that it is
    to guide. At higher noise than it has seen, its guidance is too strong, which few steps do not survive: take fifteen
    or more, or an interval of guidance. The cross-entropy has a floor, since little or nothing of the class is left at
    high noise.

    Args:
        sde: The path, or its configuration.
        conditions: The conditions of the data, by name, or their descriptions; one of them must be "label", a `Label`.
        data: Description of the data set (`DataModule.describe()`), which has the shape of a sample.
        network: F(x, c_noise) -> [B, n_classes], or its configuration; shape and outputs are filled in.
        times: The distribution of t, or its configuration; by default that of `DenoisingScoreMatching`.
        sigma_data: Standard deviation of the data; None: 0.5.
        lr: See `GenerativeModel`.
        betas: See `GenerativeModel`.
        weight_decay: See `GenerativeModel`.
        warmup_steps: See `GenerativeModel`.
        schedule: See `GenerativeModel`.
        dequantise: See `GenerativeModel`.
        validation_draws: See `GenerativeModel`.
        seed: See `GenerativeModel`.
        of: Checkpoint of the model that it is for; stored only.

    Raises:
        ValueError: If there are no labels, or a value is not allowed.
        UserError: If a configuration is invalid.

    Attributes:
        classifier: The `NetworkClassifier`.
    """

    parts = "sde=..., network=..., times=..."

    def __init__(
        self,
        sde: SDE | Mapping[str, Any],
        conditions: Mapping[str, Any],
        data: Mapping[str, Any],
        network: nn.Module | Mapping[str, Any] | None = None,
        times: TimeSampling | Mapping[str, Any] | None = None,
        sigma_data: float | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        warmup_steps: int = 200,
        schedule: str | Schedule = "cosine",
        dequantise: bool = False,
        validation_draws: int = 8,
        seed: int = 0,
        of: str | None = None,
    ) -> None:
        super().__init__(
            lr, betas, weight_decay, warmup_steps, schedule, dequantise, validation_draws, seed=seed, data=data
        )
        label = Conditions(conditions).get("label")
        if not isinstance(label, Label):
            raise ValueError(
                "a classifier needs labels: give ckpt=MODEL, the model that it is for, or conditional=true, and data "
                "with classes"
            )
        self.conditions = Conditions({"label": label})
        given = {"sde": sde, "network": network or _ENCODER, "times": times}
        parts = {name: to_containers(value) for name, value in given.items()}
        kept = {name: with_public_paths(value) for name, value in parts.items() if isinstance(value, Mapping)}
        self.save_hyperparameters(
            {**kept, "conditions": self.conditions.describe(), "sigma_data": sigma_data, "of": of}
        )
        path = build(parts["sde"], "sde")
        if isinstance(parts["network"], Mapping):
            size: dict[str, Any] = {"shape": list(self.data["shape"]), "outputs": label.n_classes}
            parts["network"] = build_around(parts["network"], "network", **size)
        self.classifier = NetworkClassifier(
            path, parts["network"], label.n_classes, 0.5 if sigma_data is None else sigma_data
        )
        self.times: TimeSampling = LogNormalTimes(stratified=True) if times is None else build(parts["times"], "times")
        check_kind("times", self.times, TimeSampling)

    def training_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch, at random times and noise."""
        x0 = self.filled(batch["x"])
        t = self.times(self.classifier.sde, len(x0), device=x0.device)
        return F.cross_entropy(self._logits(x0, t, torch.randn_like(x0)), batch["label"])

    def validation_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy, and whether the label is the most likely one, at stratified times and fixed noise."""
        x0 = self.filled(batch["x"], generator)
        t = self.times.strata(self.classifier.sde, len(x0))
        t = t[torch.randperm(len(x0), generator=generator)].to(x0.device)
        logits = self._logits(x0, t, torch.randn(x0.shape, generator=generator).to(x0))
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        correct = (logits.argmax(1) == batch["label"]).float()
        return {"losses": losses, "correct": correct, "log_snr": self.classifier.sde.log_snr(t), "t": t}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """See `GenerativeModel.validation_step`; also logs the share of correct labels, at all noise levels."""
        found = super().validation_step(batch, batch_idx)
        self.log("val/accuracy", found["correct"].mean(), batch_size=len(found["losses"]), sync_dist=True)
        return found

    def summary(self) -> dict[str, str]:
        """Also the path and the classes."""
        return {"path": str(self.classifier.sde), **super().summary()}

    def _logits(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        sde = self.classifier.sde
        x_t = torch.addcmul(expand(sde.alpha(t), x0) * x0, expand(sde.sigma(t), x0), noise)
        logits: Tensor = self.classifier(x_t, t)
        return logits
