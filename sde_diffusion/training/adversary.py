"""A discriminator that is trained beside an autoencoder, which learns to deceive it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sde_diffusion.checks import as_positive, check_count, check_sizes
from sde_diffusion.distributed import process_count, summed
from sde_diffusion.errors import UserError
from sde_diffusion.nn.discriminator import PatchDiscriminator
from sde_diffusion.training.variational_objective import VariationalObjective
from sde_diffusion.variational import Autoencoder, PosteriorSample


class PatchAdversary(nn.Module):
    r"""Hinge losses of a patch discriminator d and of reconstructions x', the means of p(x | z), in each step:

        discriminator:  1/2 [max(0, 1 - d(x)) + max(0, 1 + d(x'))],    autoencoder:  -w a d(x').

    The weight a = |grad of -log p(x | z) / D| / (|grad of -d(x')| + 1e-4), at most `max_weight`, makes both gradients
    of the decoder's last layer equally long. With several processes they are those of the batch of all.

    The sum of both losses is minimised by one optimizer step: in the first one x' has no gradient, and in the second
    one d's weights have none, so that neither player receives a gradient of the other's loss. As AdamW treats each
    weight by itself, this is what two optimizers with the same settings do when they step together; and the steps of a
    run, its schedule, accumulated gradients, averages and checkpoints are those of any run. Gradients are clipped for
    each player by itself.

    Reconstructions get worse by likelihood and error, and may get sharper. Start late, when they are good already.
    The usual betas of AdamW are then 0.5 and 0.9.

    Args:
        shape: Shape of the images, [C, H, W]; filled in from the data.
        layers: See `PatchDiscriminator`.
        channels: See `PatchDiscriminator`.
        weight: w, positive.
        start_step: Step at which both losses begin, at least 0.
        warmup_steps: Number of steps after `start_step` in which w rises linearly from 0, so that d is better than
            chance first.
        max_weight: Largest a, positive.

    Raises:
        ValueError: If a number is out of its range, or the images are too small for the discriminator.
        UserError: From `check`, if the model or its objective cannot be trained with it.

    References:
        Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", equations 6 and 7.
    """

    def __init__(
        self,
        shape: Sequence[int],
        layers: int = 1,
        channels: int = 32,
        weight: float = 0.5,
        start_step: int = 500,
        warmup_steps: int = 200,
        max_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.shape = check_sizes("shape", shape)
        self.discriminator = PatchDiscriminator(self.shape, layers, channels)
        self.weight, self.max_weight = as_positive("weight", weight), as_positive("max_weight", max_weight)
        self.start_step = check_count("start_step", start_step, least=0)
        self.warmup_steps = check_count("warmup_steps", warmup_steps, least=0)
        self.logged: dict[str, Tensor] = {}

    def check(self, model: Autoencoder, objective: VariationalObjective) -> None:
        """Check that a model can be trained with it.

        Args:
            model: The autoencoder.
            objective: Its objective.

        Raises:
            UserError: If the model has no last layer or makes other images, or the objective changes the gradients of
                latent variables.
        """
        if not hasattr(getattr(model.decoder, "last_layer", None), "weight"):
            raise UserError(
                f"model.adversary needs a decoder with a property last_layer, a layer with a weight; "
                f"{type(model.decoder).__name__} has none"
            )
        if tuple(model.shape) != self.shape:
            raise UserError(
                f"model.adversary judges images {list(self.shape)}, and the model makes {list(model.shape)}: leave "
                "its shape out"
            )
        if objective.scales_latent_gradients:
            raise UserError(
                "objective.gradient=dreg scales the gradients of latent variables, those of model.adversary too: take "
                "objective.gradient=standard"
            )

    def forward(self, model: Autoencoder, found: PosteriorSample, x0: Tensor, step: int) -> Tensor:
        """Sum of both losses, a mean over the batch, [].

        Args:
            model: The autoencoder.
            found: What it has inferred for x0, with the decoder's outputs.
            x0: Data, [B, C, H, W].
            step: Number of the training step.
        """
        # Gradients of 0 in place of none, which several processes could not add up; no step is made with them, see
        # `VariationalModel.on_before_optimizer_step`.
        if step < self.start_step:
            return 0.0 * torch.stack([p.sum() for p in self.discriminator.parameters()]).sum()
        if found.outputs is None:
            raise UserError(
                f"infer() of {type(model).__name__} must give the decoder's outputs: PosteriorSample.outputs"
            )
        made = model.observation.mean(found.outputs)
        real, fake = self.discriminator(x0), self.discriminator(made.detach())
        discriminator = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        deceiving = -functional_call(self.discriminator, fixed, (made,)).mean()
        adaptive = self._adaptive_weight(model, -found.log_prob.mean() / x0[0].numel(), deceiving)
        share = min(1.0, (step - self.start_step) / self.warmup_steps) if self.warmup_steps else 1.0
        self.logged = {"discriminator": discriminator.detach(), "adaptive_weight": adaptive}
        total: Tensor = discriminator + share * self.weight * adaptive * deceiving
        return total

    def _adaptive_weight(self, model: Autoencoder, reconstruction: Tensor, deceiving: Tensor) -> Tensor:
        last: Any = model.decoder.last_layer
        ours, its = (
            (summed(torch.autograd.grad(loss, last.weight, retain_graph=True)[0]) / process_count()).norm()
            for loss in (reconstruction, deceiving)
        )
        weight: Tensor = (ours / (its + 1e-4)).clamp(max=self.max_weight)
        return weight
