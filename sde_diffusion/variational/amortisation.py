r"""How much of the bound is lost because one network makes q for all items: the amortisation gap.

    log p(x) - L = [log p(x) - max_q L] + [max_q L - L],

the gap of the family of q, and that of the network (Cremer et al. 2018, "Inference Suboptimality in Variational
Autoencoders"). The second is found by refining q of each item by gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive, check_batch, check_count
from sde_diffusion.denoiser import repeated
from sde_diffusion.density.bound import Bound
from sde_diffusion.sampling.noise import as_seeds
from sde_diffusion.variational.bounds import bound, latent_noise
from sde_diffusion.variational.chain import LatentVariableModel, PosteriorSample
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.inference import residual


@dataclass(frozen=True)
class AmortisationGap:
    """The bound with the network's q, and with q refined for each item.

    Attributes:
        before: With the network's q.
        after: With the refined q, by the same noise.
        change: The change of each q, of z_1 first, in its own units: N(m, s^2) became N(m + s a, (s b)^2).
    """

    before: Bound
    after: Bound
    change: list[DiagonalGaussian]

    @property
    def gap(self) -> Tensor:
        """The amortisation gap of each item, in nats; [B]."""
        return self.after.log_prob - self.before.log_prob


class _Refined(LatentVariableModel):
    """A model in which each q, N(m, s^2), is replaced by N(m + s a, (s b)^2), with a and b of each item.

    Its draws are the model's for the noise a + b n, so that a hierarchy's q keeps what it knows of the others.
    Gradients reach a and b through the draws alone, and not through the density of q, whose part has the mean 0.
    """

    def __init__(self, model: LatentVariableModel, change: Sequence[DiagonalGaussian]) -> None:
        super().__init__()
        self.model, self.change = model, change
        self.shape, self.latent_shapes, self.nfe = model.shape, model.latent_shapes, model.nfe

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> PosteriorSample:
        """See `LatentVariableModel.infer`; x is the items, one or several times one after the other."""
        change = [_repeated(one, len(x) // len(one.mean)) for one in self.change]
        found = self.model.infer(x, [one.draw(n) for one, n in zip(change, noise, strict=True)])
        latents = [
            replace(latent, q=residual(one.detach(), latent.q))  # type: ignore[arg-type]
            for latent, one in zip(found.latents, change, strict=True)
        ]
        return replace(found, latents=latents)

    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """That of the model."""
        return self.model.generate(noise)


def _repeated(change: DiagonalGaussian, times: int) -> DiagonalGaussian:
    return DiagonalGaussian(repeated(change.mean, times), repeated(change.log_std, times))


def amortisation_gap(
    model: LatentVariableModel,
    x: Tensor,
    *,
    steps: int = 300,
    lr: float = 0.05,
    draws: int = 8,
    evaluation_draws: int = 64,
    seeds: Sequence[int] | None = None,
) -> AmortisationGap:
    """Refine q of each item by gradients, and compare the bounds.

    Mean and standard deviation of each q are changed for each item, in units of the network's q; in a hierarchy, whose
    q of one latent variable depends on draws of others, by the same change whatever these are. The gradient is that
    through the draws alone, which has no noise at q = p(z | x) (Roeder et al. 2017, "Sticking the Landing"). The
    learning rate of Adam falls to 0 with the cosine.

    Args:
        model: The model, each of whose q is a `DiagonalGaussian`; it is used as it is: call `.eval()` before.
        x: Data, [B, *shape].
        steps: Number of steps, at least 1.
        lr: Learning rate at the start, positive.
        draws: Draws for each item and step, at least 1.
        evaluation_draws: Draws for each item and bound, at least 1.
        seeds: One integer for each item, on which alone its noise depends; 0, 1, ... by default.

    Returns:
        The two bounds, and the change of q. The refined one is a bound like any other: a gap below 0 means that there
        were too few steps or draws.

    Raises:
        ValueError: If a number is out of its range, or the shapes do not fit.
        TypeError: If a q is not a `DiagonalGaussian`.
    """
    check_batch("x", x)
    steps, draws = check_count("steps", steps), check_count("draws", draws)
    lr, seeds = as_positive("lr", lr), as_seeds(range(len(x)) if seeds is None else seeds, len(x))
    with torch.no_grad():
        found = model.infer(x, [x.new_zeros(len(x), *dims) for dims in model.latent_shapes])
    if wrong := [type(latent.q).__name__ for latent in found.latents if not isinstance(latent.q, DiagonalGaussian)]:
        raise TypeError(f"q must be a DiagonalGaussian, which can be refined by gradients; got {wrong[0]}")
    change = [DiagonalGaussian.standard_like(latent.z) for latent in found.latents]
    free = [part.requires_grad_() for one in change for part in (one.mean, one.log_std)]
    refined, optimizer = _Refined(model, change), torch.optim.Adam(free, lr)
    noises = latent_noise(model, seeds, x.device, x.dtype)
    pairs = zip(noises, model.latent_shapes, strict=True)
    streams = [noise.stream("refinement", (draws, *dims)) for noise, dims in pairs]
    many = repeated(x, draws)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            noise = [stream.normal(step).transpose(0, 1).flatten(0, 1) for stream in streams]
            loss = -refined.infer(many, noise).log_weight().sum() / draws
            for part, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
                part.grad = gradient
            optimizer.step()
    refined.change = [one.detach() for one in change]
    before, after = (bound(one, x, evaluation_draws, seeds=seeds) for one in (model, refined))
    return AmortisationGap(before, after, list(refined.change))
