"""What callbacks and commands ask of any model: its data, its conditions, a denoiser, samples."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from sde_diffusion.conditions import Conditions
from sde_diffusion.config import public_path
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling import Samples
from sde_diffusion.training.dropout import ConditionDropout

Batch = dict[str, Tensor]


class BaseModel(LightningModule, ABC):
    """What callbacks and commands ask of a model. A kind of model sets the attributes that it has, and no others.

    Attributes:
        data: Description of the training data, `DataModule.describe()`; empty if it is unknown.
        conditions: Conditions by name; empty if there are none.
        dropout: How often the conditions are dropped in training.
        denoiser: The trained denoiser; None if the model is not made of one. `sample`, `evaluate` and `likelihood` need
            it.
        run: Configuration of the run, stored in checkpoints for resuming.
        digest: SHA-256 of the checkpoint from which a command has loaded the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}
        self.conditions = Conditions()
        self.dropout = ConditionDropout(self.conditions, 0.0)
        self.denoiser: Denoiser | None = None
        self.run: dict[str, Any] = {}
        self.digest = ""

    def conditions_of(self, batch: Batch) -> dict[str, Tensor]:
        """The conditions in a batch.

        Raises:
            ValueError: If one is missing.
        """
        if lacking := [name for name in self.conditions if name not in batch]:
            raise ValueError(f"batches must have {', '.join(lacking)}, which the model is conditioned on")
        return {name: batch[name] for name in self.conditions}

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

    def summary(self) -> dict[str, str]:
        """Lines on what is trained, by heading, for the log of a run."""
        return {"model": f"{public_path(type(self))}, {sum(p.numel() for p in self.parameters()):,} parameters"}
