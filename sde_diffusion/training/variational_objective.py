"""Objectives of latent variable models: lower bounds on log p(x)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_choice, check_count
from sde_diffusion.distributed import process_count, summed
from sde_diffusion.errors import UserError
from sde_diffusion.training.objective import Objective
from sde_diffusion.variational import LatentVariableModel, PosteriorSample

GRADIENTS = ("dreg", "standard")


class VariationalObjective(Objective):
    """An objective that draws the latent variables of each sample once or several times.

    Attributes:
        importance: Number of draws.
        validation: How the loss of validation, the negative ELBO, differs from that of training, in words.
        warmup_steps: Number of steps in which it differs from what it is later.
        scales_latent_gradients: Whether its loss scales all gradients that reach the latent variables, also those of
            other losses.
        collapse_advice: What to try when latent variables are not used, for a warning.
    """

    importance = 1
    validation = "validation by the ELBO"
    warmup_steps = 0
    scales_latent_gradients = False
    collapse_advice = "more steps or less dropout"

    def check(self, model: Any) -> None:
        """Check that a model has latent variables, of the kind that this objective needs; see `Objective.check`."""
        if not isinstance(model, LatentVariableModel):
            raise UserError(f"{type(self).__name__} is for models with latent variables, such as model=vae")

    def draw(
        self, model: LatentVariableModel, x0: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """noise of each latent variable, `z_1`, `z_2`, ..., [B, importance, *latent_shape]; see `Objective.draw`."""
        device = x0.device if generator is None else generator.device
        shapes = ((len(x0), self.importance, *dims) for dims in model.latent_shapes)
        return {
            f"z_{t}": torch.randn(shape, generator=generator, device=device, dtype=x0.dtype).to(x0.device)
            for t, shape in enumerate(shapes, 1)
        }

    def infer(self, model: LatentVariableModel, x0: Tensor, draws: Mapping[str, Tensor]) -> PosteriorSample:
        """Infer the latent variables of each sample `importance` times, those of one sample side by side."""
        draws = draws or self.draw(model, x0)
        noise = [draws[f"z_{t}"].flatten(0, 1) for t in range(1, len(model.latent_shapes) + 1)]
        return model.infer(x0.repeat_interleave(self.importance, 0), noise)

    def __call__(self, model: LatentVariableModel, x0: Tensor, /, step: int | None = None, **draws: Tensor) -> Tensor:
        """Loss of each sample, [B]; see `Objective`.

        Args:
            model: The model.
            x0: Data, [B, *].
            step: Number of the training step; None: after any warm-up.
            **draws: See `draw`.
        """
        return self.loss(self.infer(model, x0, draws), x0, step)

    @abstractmethod
    def loss(self, found: PosteriorSample, x0: Tensor, step: int | None = None) -> Tensor:
        """Loss of each sample given what has been inferred, [B]."""


class BetaELBO(VariationalObjective):
    """-(E log p(x | z) - beta KL) / D, in nats for each of D dimensions.

    Only for beta = 1 is it a bound; for beta > 1 a looser one, and for beta < 1 none. Validation is at beta = 1.

    With `free_nats`, KL is the sum over the latent variables of max(free_nats, mean of its KL over the batch, that of
    all processes): below that, information costs nothing. It prevents collapse, and binds too: use it for the warm-up.

    Args:
        beta: Weight of KL, positive.
        warmup_steps: Number of training steps in which beta rises linearly from 0, at least 0.
        free_nats: In nats for each latent variable and sample, at least 0; only while beta rises, if there is a
            warm-up.

    Raises:
        ValueError: If a value is out of its range.
        UserError: From `check`, if the latent variables are codes.

    References:
        Higgins et al. 2017, "beta-VAE"; Soenderby et al. 2016, "Ladder Variational Autoencoders" (warm-up); Kingma et
        al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", appendix C (free bits).
    """

    validation = "validation at beta = 1"
    collapse_advice = (
        "more steps, a longer objective.warmup_steps, objective.free_nats=1, a smaller objective.beta, or less dropout"
    )

    def __init__(self, beta: float = 1.0, warmup_steps: int = 0, free_nats: float = 0.0) -> None:
        self.beta = as_positive("beta", beta)
        self.warmup_steps = check_count("warmup_steps", warmup_steps, least=0)
        self.free_nats = as_number("free_nats", free_nats)
        if not 0 <= self.free_nats < math.inf:
            raise ValueError(f"free_nats must be a finite number of at least 0; got {free_nats}")

    def check(self, model: Any) -> None:
        """See `Objective.check`: the latent variables must be continuous."""
        super().check(model)
        _check_continuous(model, self)

    def loss(self, found: PosteriorSample, x0: Tensor, step: int | None = None) -> Tensor:
        """See `VariationalObjective.loss`; beta is below its value in the first `warmup_steps` steps."""
        rising = step is not None and step < self.warmup_steps
        beta = self.beta * step / self.warmup_steps if rising and step is not None else self.beta
        kl = found.kl()
        if self.free_nats and (rising or not self.warmup_steps):
            mean = summed(kl.detach().mean(1, keepdim=True)) / process_count()
            kl = torch.where(mean > self.free_nats, kl, self.free_nats)
        return (beta * kl.sum(0) - found.log_prob) / x0[0].numel()


class ImportanceWeighted(VariationalObjective):
    """-L_K / D with L_K = E log 1/K sum_k w_k, the bound of importance weighted autoencoders; see `variational.bound`.

    With gradient="dreg" the gradient of q is computed through the draws alone, with the squares of the normalised
    weights, so that it does not lose itself in noise as K grows. It is for models with one latent variable.

    Args:
        importance: K, at least 1.
        gradient: dreg or standard.

    Raises:
        ValueError: If a value is not allowed.
        UserError: From `check`, if dreg is asked of several latent variables, or the latent variables are codes.

    References:
        Burda et al. 2016, "Importance Weighted Autoencoders"; Tucker et al. 2019, "Doubly Reparameterized Gradient
        Estimators for Monte Carlo Objectives".
    """

    def __init__(self, importance: int = 8, gradient: str = "dreg") -> None:
        self.importance = check_count("importance", importance)
        self.gradient = check_choice("gradient", gradient, GRADIENTS)
        self.scales_latent_gradients = self.gradient == "dreg"

    def check(self, model: Any) -> None:
        """See `Objective.check`: the latent variables must be continuous, and for dreg there must be one."""
        super().check(model)
        _check_continuous(model, self)
        if self.gradient == "dreg" and len(model.latent_shapes) > 1:
            raise UserError(
                "objective.gradient=dreg is for one latent variable; for several take objective.gradient=standard"
            )

    def loss(self, found: PosteriorSample, x0: Tensor, step: int | None = None) -> Tensor:
        """See `VariationalObjective.loss`; `step` is not used."""
        log_weights = found.log_weight(pathwise=self.gradient == "dreg").reshape(len(x0), self.importance)
        value = log_weights.logsumexp(1) - math.log(self.importance)
        if self.gradient == "dreg" and value.requires_grad:
            share = log_weights.detach().softmax(1).flatten()
            z = found.latents[0].z
            if z.requires_grad:
                factor = share.reshape(-1, *(1,) * (z.ndim - 1)).to(z)
                z.register_hook(lambda g: g * factor)  # type: ignore[no-untyped-call]
            value = value.detach() + _only_gradient((share.reshape(log_weights.shape) * log_weights).sum(1))
        loss: Tensor = -value / x0[0].numel()
        return loss


def _check_continuous(model: LatentVariableModel, objective: VariationalObjective) -> None:
    if model.quantized:
        raise UserError(
            f"{type(objective).__name__} has no commitment term, without which the encoder's vectors drift from their "
            "codes: use objective=vq"
        )


def _only_gradient(value: Tensor) -> Tensor:
    """Zero, with the gradient of a value."""
    return value - value.detach()


class QuantizedELBO(VariationalObjective):
    """-(E log p(x | z) - KL - commitment |z_e - sg(z)|^2) / D, for models whose latent variables are codes.

    z_e are the encoder's vectors, which the last term pulls to their codes z; sg stops gradients, so that it does not
    move the codes. The codes themselves follow the vectors by moving averages. The reconstruction reaches the encoder
    through the codes, whose gradient is passed on to the vectors as it is. KL is constant: the rate of a uniform prior
    over codes. All terms are sums over dimensions, in nats for each of D dimensions of the data.

    Args:
        commitment: Weight of the commitment term, at least 0.

    Raises:
        ValueError: If it is out of its range.
        UserError: From `check`, if the latent variables are continuous.

    References:
        van den Oord et al. 2017, "Neural Discrete Representation Learning", equation 3, where the weight is 0.25.
    """

    validation = "validation without the commitment"

    def __init__(self, commitment: float = 0.25) -> None:
        self.commitment = as_number("commitment", commitment)
        if not 0 <= self.commitment < math.inf:
            raise ValueError(f"commitment must be a finite number of at least 0; got {commitment}")

    def check(self, model: Any) -> None:
        """See `Objective.check`: the latent variables must be codes."""
        super().check(model)
        if not model.quantized:
            raise UserError("objective=vq is for models whose latent variables are codes, such as model/autoencoder=vq")

    def loss(self, found: PosteriorSample, x0: Tensor, step: int | None = None) -> Tensor:
        """See `VariationalObjective.loss`; `step` is not used."""
        if found.commitment is None:
            raise UserError(
                "infer() of a quantized model must give the distance to the codes: PosteriorSample.commitment"
            )
        return (found.kl().sum(0) + self.commitment * found.commitment - found.log_prob) / x0[0].numel()
