r"""The lower bound on log p(x) of latent diffusion: an autoencoder with a diffusion model as the prior of z.

With z ~ q(z | x) and w = (z - shift) / scale,

    log p(x) >= E log p(x | z) + H(q(z | x)) + E log p_w(w) - sum of log scale,

where the sum, of the Jacobian of w, is over all dimensions of z. This is the evidence lower bound of a VAE with another
prior than N(0, I). Over data whose q(z | x) has the mean q(z), the two bounds differ by KL(q(z) || N(0, I)) -
KL(q(z) || p_z) (Hoffman & Johnson 2016, "ELBO surgery").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_batch, check_choice, check_count, check_kind
from sde_diffusion.denoiser import Denoiser, repeated
from sde_diffusion.denoiser.conditions import chosen
from sde_diffusion.density import Bound, elbo, log_likelihood
from sde_diffusion.density.trace import trace_of
from sde_diffusion.sampling.noise import as_seeds
from sde_diffusion.variational.bounds import Draws, by_items, estimated_bound, latent_noise
from sde_diffusion.variational.first_stage import FirstStage

DENSITIES = {"flow": log_likelihood, "elbo": partial(elbo, steps=None)}
"""How log p_w is computed: by the probability flow, or bounded in continuous time."""

_APART = 0x9E3779B97F4A7C15  # odd, so that all draws of a sample have different seeds


def latent_bound(
    first_stage: FirstStage,
    denoiser: Denoiser,
    x: Tensor,
    draws: int = 1,
    importance: int = 1,
    *,
    seeds: Sequence[int] | None = None,
    density: str = "flow",
    rows: int = 4096,
    **options: Any,
) -> Bound:
    """Estimate of the bound on log p(x) of latent diffusion, or with importance > 1 of the tighter one of K draws.

    Args:
        first_stage: The first stage.
        denoiser: The denoiser of w; conditions are passed to it.
        x: Data, [B, *shape].
        draws: Number of estimates, of which the mean is returned, at least 1; four or more give a standard error.
        importance: K, number of draws of z for each estimate, at least 1; see `variational.bound`. More than 1 needs
            the density itself, density="flow" with trace="exact", which is then the default trace.
        seeds: One integer for each item, on which alone its noise depends; 0, 1, ... by default.
        density: What log p_w is: "flow", its density at t_min by `log_likelihood`, or "elbo", the lower bound in
            continuous time by `elbo`.
        rows: Largest number of draws, times items, that are computed at once.
        **options: Further arguments of `log_likelihood` or `elbo`, and conditions, such as label=[B].

    Returns:
        The bound, of one latent variable: reconstruction is E log p(x | z), and kl is KL(q(z | x) || p_z), estimated by
        -H(q) - log p_w(w) + sum of log scale.

    Raises:
        ValueError: If a value is out of its range, the shapes do not fit, or importance > 1 without an exact density.
        UserError: If q(z | x) is a point, as for codes, and has no entropy.
    """
    check_batch("x", x)
    check_kind("first_stage", first_stage, FirstStage)
    check_choice("density", density, DENSITIES)
    if check_count("importance", importance) > 1:
        options = {"trace": "exact", **options} if density == "flow" else options
        if "trace" not in options or not trace_of(options["trace"], options.get("probes", 1)).exact:
            raise ValueError(
                f"importance={importance} would count the noise of an estimated log p_w as likelihood: take "
                "density=flow and trace=exact, or importance=1"
            )
    seeds = as_seeds(range(len(x)) if seeds is None else seeds, len(x))

    def part(items: slice) -> Bound:
        own = x[items]
        few = {name: chosen(value, items, len(x)) for name, value in options.items()}
        return _part(first_stage, denoiser, own, draws, importance, seeds[items], density, rows, few)

    return by_items(part, len(x), rows)


def _part(
    first_stage: FirstStage,
    denoiser: Denoiser,
    x: Tensor,
    draws: int,
    importance: int,
    seeds: Sequence[int],
    density: str,
    rows: int,
    options: dict[str, Any],
) -> Bound:
    """`latent_bound` of at most `rows` items, with checked arguments."""
    (stream,) = latent_noise(first_stage.autoencoder, seeds, x.device, x.dtype)
    with torch.no_grad():
        q = first_stage.encode(x)
        entropy = q.entropy().double()

    def draw(numbers: Sequence[int]) -> Draws:
        z = [q.draw(stream.normal(number).to(q.mean)) for number in numbers]
        w = first_stage.standardise(torch.cat(z))
        own = {name: repeated(value, len(numbers), len(x)) for name, value in options.items()}
        each = [seed + number * _APART for number in numbers for seed in seeds]
        found = DENSITIES[density](denoiser, w, seeds=each, **own)  # type: ignore[operator]
        log_p = found.log_prob.to(x.device) - first_stage.log_scale
        reconstruction = first_stage.log_prob(repeated(x, len(numbers)), w).double()
        log_q = torch.cat([q.log_prob(one).double() for one in z])
        kl = -entropy.repeat(len(numbers)) - log_p
        return Draws(reconstruction, kl.unsqueeze(0), reconstruction + log_p - log_q, len(numbers) * found.nfe)

    return estimated_bound(draw, len(x), draws, importance, rows)
