"""What callbacks and commands ask of any model: its data, its conditions, a denoiser, samples."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from sde_diffusion.conditions import Conditions
from sde_diffusion.config import public_path
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling import Samples
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.measured import Measured

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
        denoiser: The trained denoiser; None if the model is not made of one. `sample`, `evaluate` and `likelihood` need
            it.
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
        self.run: dict[str, Any] = {}
        self.digest = ""
        self.guides: dict[str, str] = {}

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

    def draw_samples(
        self, sampler: Callable[..., Samples], denoiser: Denoiser | None, shape: Sequence[int], **options: Any
    ) -> Tensor | None:
        """Samples for the pictures during training, on the scale of the data; None: no pictures.

        A model that draws its samples in another way than by walking with a denoiser overrides this method.

        Args:
            sampler: The sampler.
            denoiser: The model's denoiser, perhaps with guidance; None if it has none.
            shape: Shape of all samples, [N, *dims].
            **options: The conditions by name, [N, *] each, and further arguments of samplers.
        """
        return None if denoiser is None else sampler(denoiser, shape, **options).x

    def pictures(self, x: Tensor) -> dict[str, Image]:
        """Further pictures during training, by name, such as reconstructions; none by default.

        Args:
            x: Items of the validation split, [B, *shape].
        """
        return {}

    def summary(self) -> dict[str, str]:
        """Lines on what is trained, by heading, for the log of a run."""
        return {"model": f"{public_path(type(self))}, {sum(p.numel() for p in self.parameters()):,} parameters"}
