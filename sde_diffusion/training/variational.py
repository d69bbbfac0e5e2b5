"""Latent variable models that are trained by a lower bound on log p(x)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.checks import check_kind
from sde_diffusion.config import build, build_around, to_containers, with_public_paths
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of
from sde_diffusion.sampling import Samples
from sde_diffusion.training.base import Batch
from sde_diffusion.training.generative import GenerativeModel
from sde_diffusion.training.schedule import Schedule
from sde_diffusion.training.variational_objective import BetaELBO, VariationalObjective
from sde_diffusion.variational import Autoencoder, latent_noise, observation_for
from sde_diffusion.variational.exploration import (
    can_explore,
    coordinates,
    encoded,
    information,
    interpolate,
    most_informative,
    traverse,
)

log = logging.getLogger(__name__)

_ITEMS = 10_000
"""Number of training items by which a new model's constant outputs are set."""

_USED = 0.1
"""In nats: with a KL divergence below this, latent variables are not used."""

_TRAVERSED, _PAIRS, _STEPS, _REACH = 10, 8, 9, 2.5
"""Of pictures: dimensions, pairs of items, steps of each, and the end of traversals in standard deviations."""


class VariationalModel(GenerativeModel):
    """A latent variable model trained by a lower bound on log p(x); validated by the evidence lower bound, beta = 1.

    Args:
        latent: The model, or its configuration, in which the shape of the data and the observation model are filled in.
        observation: p(x | z), or its configuration; None: chosen by the data, see `observation_for`. Not used if
            `latent` is a model.
        objective: `BetaELBO()` by default, or its configuration.
        lr: See `GenerativeModel`.
        betas: See `GenerativeModel`.
        weight_decay: See `GenerativeModel`.
        warmup_steps: Of the learning rate; see `GenerativeModel`.
        schedule: See `GenerativeModel`.
        dequantise: See `GenerativeModel`.
        validation_draws: See `GenerativeModel`.
        seed: See `GenerativeModel`.
        data: Description of the data set (`DataModule.describe()`).

    Raises:
        TypeError: If `latent` is not an autoencoder, or the objective not one for such models.
        ValueError: If a value is not allowed.
        UserError: If a configuration is invalid.

    Attributes:
        latent: The `Autoencoder`.
    """

    parts = "latent=..., objective=..."

    def __init__(
        self,
        latent: Autoencoder | Mapping[str, Any],
        observation: Any = None,
        objective: VariationalObjective | Mapping[str, Any] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        schedule: str | Schedule = "cosine",
        dequantise: bool = False,
        validation_draws: int = 1,
        seed: int = 0,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            lr, betas, weight_decay, warmup_steps, schedule, dequantise, validation_draws, seed=seed, data=data
        )
        given = {"latent": latent, "observation": observation, "objective": objective}
        parts = {name: to_containers(value) for name, value in given.items()}
        self.save_hyperparameters({k: with_public_paths(v) for k, v in parts.items() if isinstance(v, Mapping)})
        if isinstance(parts["latent"], Mapping):
            chosen = parts["observation"]
            chosen = observation_for(self.data.get("levels")) if chosen is None else chosen
            kind = build_around(chosen, "model.observation", levels=self.data.get("levels"))
            parts["latent"] = build_around(
                parts["latent"], "model.latent", shape=list(self.data["shape"]), observation=kind
            )
        self.latent: Autoencoder = parts["latent"]
        check_kind("latent", self.latent, Autoencoder)
        if "shape" in self.data:
            self.latent.observation.check_data(self.data.get("levels"))
        self.objective: VariationalObjective = build(parts["objective"], "objective") or BetaELBO()
        check_kind("objective", self.objective, VariationalObjective)
        self._unused: list[int] = []

    def on_fit_start(self) -> None:
        """Start a new run at the outputs that describe the training data without latent variables."""
        if self.trainer.ckpt_path is None:
            split = self.trainer.datamodule.split("train")  # type: ignore[attr-defined]
            self.latent.describe_without_latents(split.tensor(torch.arange(min(len(split), _ITEMS))))

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
        return self.objective(self.latent, x0, step=self.global_step, **self.objective.draw(self.latent, x0)).mean()

    def validation_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The negative evidence lower bound, in nats for each dimension, and the KL divergences, at fixed draws."""
        x0, plain = self.filled(batch["x"], generator), BetaELBO()
        found = plain.infer(self.latent, x0, plain.draw(self.latent, x0, generator))
        kl = found.kl()
        levels = {f"kl_{level}": values for level, values in enumerate(kl, 1)}
        return {"losses": (kl.sum(0) - found.log_prob) / x0[0].numel(), **levels}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """See `GenerativeModel.validation_step`; also logs the KL divergence of each level, in nats."""
        found = super().validation_step(batch, batch_idx)
        for name, values in found.items():
            if name.startswith("kl_"):
                self.log(f"val/{name}", values.mean(), batch_size=len(values), sync_dist=True)
        if self.latent.observation.levels:
            bits = found["losses"].mean() / math.log(2)
            self.log("val/bits_per_dim", bits, batch_size=len(found["losses"]), sync_dist=True)
        return found

    def on_validation_end(self) -> None:
        """Warn once of latent variables that are not used after the warm-up."""
        steps = max(self.objective.warmup_steps, self.hparams["warmup_steps"])
        if self.trainer.sanity_checking or self.global_step < steps or not self.trainer.is_global_zero:
            return
        count = len(self.latent.latent_shapes)
        kl = [float(self.trainer.callback_metrics[f"val/kl_{level}"]) for level in range(1, count + 1)]
        unused = [level for level, nats in enumerate(kl, 1) if nats < _USED]
        if unused and unused != self._unused:
            log.warning("%s", _collapse(unused, kl, self.global_step))
        self._unused = unused

    def draw_samples(
        self, sampler: Callable[..., Samples], denoiser: Denoiser | None, shape: Sequence[int], **options: Any
    ) -> Tensor:
        """The mean of p(x | z) for z drawn from the model; the sampler and the denoiser are not used."""
        seeds = options.get("seeds", range(shape[0]))
        parameter = next(self.parameters())
        noise = latent_noise(self.latent, seeds, parameter.device, parameter.dtype)
        x: Tensor = self.latent.decode(self.latent.generate([stream.normal(0) for stream in noise]))
        return x

    def pictures(self, x: Tensor) -> dict[str, Image]:
        """Reconstructions beside the data, traversals of the dimensions with most information, and interpolations.

        Traversals start at the first item, with one number of the standardised latent variables replaced. For the way
        of the interpolations see `variational.exploration.interpolate`.
        """
        found = encoded(self.latent, x)
        modality, decoded = modality_of(self.data), self.latent.decode([level.z for level in found.levels])
        drawn = {"reconstructions": modality.beside(decoded, x, names=("reconstructions", "data"))}
        if not can_explore(found):
            return drawn
        e, amounts = coordinates(found), information(found)
        places = most_informative(amounts, _TRAVERSED)
        names = [f"z{t + 1}[{i}]: {float(amounts[t].flatten()[i]):.2f} nats" for t, i in places]
        values = torch.linspace(-_REACH, _REACH, _STEPS)
        moved = traverse(self.latent, [one[:1] for one in e], places, values)
        drawn["traversals"] = modality.draw_rows(moved, names, [f"{value:+.1f}" for value in values.tolist()])
        if pairs := min(_PAIRS, len(x) // 2):
            between = interpolate(self.latent, [v[:pairs] for v in e], [v[pairs : 2 * pairs] for v in e], _STEPS)
            ways = torch.cat([x[:pairs, None], between, x[pairs : 2 * pairs, None]], 1)
            shares = [f"{100 * step // (_STEPS - 1)}%" for step in range(_STEPS)]
            rows = [f"{pair + 1}" for pair in range(pairs)]
            drawn["interpolations"] = modality.draw_rows(ways, rows, ["data", *shares, "data"])
        return drawn

    def summary(self) -> dict[str, str]:
        """Also the latent variables."""
        return {**super().summary(), "latents": " <- ".join(str(list(dims)) for dims in self.latent.latent_shapes)}


def _collapse(unused: Sequence[int], kl: Sequence[float], step: int) -> str:
    """What to say of latent variables whose KL divergence is about 0."""
    if sum(kl) < _USED:
        which, what = "the latents are not used", f"their KL divergence is {sum(kl):.2g} nats"
    else:
        names = " and ".join(f"z_{level}" for level in unused)
        verb = "are" if len(unused) > 1 else "is"
        which = f"{names} {verb} not used"
        what = "their KL divergences are " + ", ".join(f"{nats:.2g}" for nats in kl) + " nats from z_1 up,"
    advice = "a longer objective.warmup_steps, objective.free_nats=1, a smaller objective.beta, or less dropout"
    return f"{which}: {what} at step {step:,} (posterior collapse); try {advice}"
