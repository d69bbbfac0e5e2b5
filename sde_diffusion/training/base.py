"""What callbacks and commands ask of any model: its data, its conditions, a denoiser, samples, a bound on log p."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn

from sde_diffusion.conditions import Conditions
from sde_diffusion.config import public_path
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import Bound
from sde_diffusion.errors import UserError
from sde_diffusion.modality.pictures import Curves
from sde_diffusion.sampling import Samples
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.measured import Measured
from sde_diffusion.variational import FirstStage

if TYPE_CHECKING:
    from PIL.Image import Image

Batch = dict[str, Tensor]


class BaseModel(LightningModule, ABC):
    """What callbacks and commands ask of a model. A kind of model sets the attributes that it has, and no others.

    Attributes:
        data: Description of the training data, `DataModule.describe()`; empty if it is unknown.
        conditions: Conditions by name; empty if there are none.
        dropout: How often the conditions are dropped in training.
        measured: What the model is given of the data themselves, such as a smaller picture; None: nothing.
        denoiser: The trained denoiser; None if the model is not made of one.
        first_stage: The autoencoder whose latent variables the denoiser walks on; None: it walks on the data.
        decode_as: How samples are made of their latent variables: "mean", the mean of p(x | z), or "draw", drawn from
            it; None if there is no p(x | z).
        random_latents: Whether the latent variables of an item are random, so that more draws can tighten `bound`.
        can_be_first_stage: Whether a `LatentModel` can describe the model's latent variables; see `FirstStage`.
        loss_axis: What the logged losses are, in words.
        run: Configuration of the run, stored in checkpoints for resuming.
        digest: SHA-256 of the checkpoint from which a command has loaded the model.
        guides: SHA-256 of the checkpoints of further models that guide its denoiser, by path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}
        self.conditions = Conditions()
        self.dropout = ConditionDropout(self.conditions, 0.0)
        self.measured: Measured | None = None
        self.denoiser: Denoiser | None = None
        self.first_stage: FirstStage | None = None
        self.decode_as: str | None = None
        self.random_latents, self.can_be_first_stage, self.loss_axis = True, False, "loss"
        self.run: dict[str, Any] = {}
        self.digest = ""
        self.guides: dict[str, str] = {}
        self._with_unit_weights: list[Any] | None = None

    def conditions_of(self, batch: Batch) -> dict[str, Tensor]:
        """The conditions in a batch.

        Raises:
            ValueError: If one is missing.
        """
        if lacking := [name for name in self.conditions if name not in batch]:
            raise ValueError(f"batches must have {', '.join(lacking)}, which the model is conditioned on")
        return {name: batch[name] for name in self.conditions}

    def with_measurements(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Batch:
        """A batch, with measurements of its items if the model is given any; see `Measured.draw`."""
        if self.measured is None:
            return dict(batch)
        return {**batch, **self.measured.draw(batch["x"], self.data.get("levels"), generator)}

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what the denoiser walks on; that of the data, unless it walks on latent variables."""
        return tuple(self.data.get("shape", ()))

    def to_data(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """What the denoiser draws, [B, *state_shape], on the scale of the data; [B, *shape].

        Args:
            x: The end of a walk.
            seeds: Their seeds, if x is decoded with noise.
        """
        return x

    def draw_samples(
        self, sampler: Callable[..., Samples], denoiser: Denoiser | None, shape: Sequence[int], **options: Any
    ) -> Samples | None:
        """Samples on the scale of the data; None: the model draws none.

        A model that draws its samples in another way than by walking with a denoiser overrides this method.

        Args:
            sampler: The sampler.
            denoiser: The model's denoiser, perhaps with guidance; None if it has none.
            shape: Shape of all samples, [N, *shape of the data].
            **options: The conditions by name, [N, *] each, and further arguments of samplers, such as `seeds`.
        """
        if denoiser is None:
            return None
        drawn = sampler(denoiser, (shape[0], *(self.state_shape or shape[1:])), **options)
        with torch.no_grad():
            x = self.to_data(drawn.x, options.get("seeds"))
        return drawn if x is drawn.x else dataclasses.replace(drawn, x=x, latents=[drawn.x])

    def bound(
        self,
        x: Tensor,
        *,
        draws: int = 1,
        importance: int = 1,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Bound:
        """Estimate of a lower bound on log p(x): the evidence lower bound, or with importance > 1 a tighter one.

        Args:
            x: Data on [-1, 1], [B, *shape].
            draws: Number of estimates, of which the mean is returned.
            importance: K, number of draws of the latent variables for each estimate; see `variational.bound`.
            seeds: One integer for each item, on which alone its noise depends; 0, 1, ... by default.
            **options: The conditions by name, and further arguments of the model's bound, such as `rows`.

        Raises:
            UserError: If the model has no such bound.
        """
        raise UserError(f"a {type(self).__name__} has no bound on log p(x)")

    @property
    def draws_samples(self) -> bool:
        """Whether `draw_samples` draws any: by a walk with the denoiser, or in a way of its own."""
        return self.denoiser is not None or self.defines("draw_samples")

    @property
    def has_bound(self) -> bool:
        """Whether data have a `bound` by this model."""
        return self.defines("bound")

    @property
    def bounds_density(self) -> bool:
        """Whether `bound` is of a density of continuous data, not of the probability of data on levels."""
        return self.data.get("levels") is None

    @property
    def reconstructs(self) -> bool:
        """Whether data have a `reconstruct`ion by this model."""
        return self.defines("reconstruct")

    @classmethod
    def defines(cls, name: str) -> bool:
        """Whether a class has a method of its own in place of that of `BaseModel`."""
        return getattr(cls, name) is not getattr(BaseModel, name)

    def reconstruct(self, x: Tensor, *, seeds: Sequence[int] | None = None) -> Tensor:
        """Data decoded from what x is encoded as, on the scale of the data.

        Args:
            x: Data, [B, *dims].
            seeds: One integer for each item, on which alone its noise depends; 0, 1, ... by default.

        Raises:
            UserError: If the model has no encoder.
        """
        raise UserError(f"a {type(self).__name__} has no encoder, and so no reconstructions")

    def pictures(self, x: Tensor) -> dict[str, Image]:
        """Further pictures during training, by name, such as reconstructions; none by default.

        Args:
            x: Items of the validation split, [B, *shape].
        """
        return {}

    def curves(self) -> dict[str, Curves]:
        """Pictures of logged metrics at the end of a run, by the names of their files; none by default."""
        return {}

    def normalise_weights(self) -> None:
        """Normalise the weights of layers that ask for it, such as `UnitWeights`; called before each step.

        No graph is alive then, and averages of weights and other copies stay as they are.
        """
        if self._with_unit_weights is None:
            parts: list[Any] = [part for part in self.modules() if part is not self]
            self._with_unit_weights = [part for part in parts if hasattr(part, "normalise_weights")]
        for layer in self._with_unit_weights:
            layer.normalise_weights()

    def parameters_apart(self) -> list[list[nn.Parameter]]:
        """Groups of parameters that are clipped apart from each other and from all others, and have no weight decay."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of trained parameters: first all others, then each of `parameters_apart`."""
        apart = self.parameters_apart()
        known = {id(parameter) for group in apart for parameter in group}
        first: dict[str, Any] = {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in known]}
        return [first, *({"params": [p for p in group if p.requires_grad], "weight_decay": 0.0} for group in apart)]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients, those of `parameters_apart` by norms of their own."""
        if not self.parameters_apart() or not gradient_clip_val or gradient_clip_algorithm == "value":
            plugin = self.trainer.precision_plugin
            if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val:
                # bfloat16 has no scale; Lightning refuses fused optimizers all the same.
                kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
                Precision.clip_gradients(plugin, optimizer, gradient_clip_val, kind)
                return
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for group in self.parameter_groups():
            nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def summary(self) -> dict[str, str]:
        """Lines on what is trained, by heading, for the log of a run."""
        return {"model": f"{public_path(type(self))}, {sum(p.numel() for p in self.parameters()):,} parameters"}
