r"""Lower bounds on log p(x) of latent variable models, with error bars.

    L_K = E log 1/K sum_k w_k,    w_k = p(x, z_k) / q(z_k | x),

for K independent draws: the evidence lower bound for K = 1, and tighter for more (Burda et al. 2016, "Importance
Weighted Autoencoders"). L_K <= L_{K+1} <= log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_batch, check_count, check_kind
from sde_diffusion.denoiser import repeated
from sde_diffusion.denoiser.conditions import chosen
from sde_diffusion.density.bound import LEAST_DRAWS, Bound, student_factor
from sde_diffusion.sampling import Noise
from sde_diffusion.sampling.arguments import check_dtype
from sde_diffusion.sampling.noise import as_seeds
from sde_diffusion.variational.chain import LatentVariableModel


def bound(
    model: LatentVariableModel,
    x: Tensor,
    draws: int = 1,
    importance: int = 1,
    *,
    seeds: Sequence[int] | None = None,
    rows: int = 4096,
    dtype: torch.dtype | None = None,
    **conditions: Any,
) -> Bound:
    """Unbiased estimate of L_K, the mean of `draws` estimates of K = `importance` draws each.

    Args:
        model: The model; it is used as it is: call `.eval()` before.
        x: Data, [B, *shape].
        draws: Number of estimates, at least 1; four or more give a standard error.
        importance: K, at least 1.
        seeds: One integer for each item, on which alone its noise depends; 0, 1, ... by default.
        rows: Largest batch of a network pass.
        dtype: Type of the noise; that of x by default.
        **conditions: Passed to the model's `infer`, such as label=[B] for a `DiffusionChain`.

    Returns:
        The bound; `reconstruction` and `kl` are the parts of the evidence lower bound (K = 1) by all draws.

    Raises:
        TypeError: If the model does not take a condition.
        ValueError: If a number is out of its range, or the shapes do not fit.
    """
    check_kind("model", model, LatentVariableModel)
    check_batch("x", x)
    if dtype is not None:
        check_dtype(dtype)
    seeds = as_seeds(range(len(x)) if seeds is None else seeds, len(x))

    def part(items: slice) -> Bound:
        own = x[items]
        given = {name: chosen(value, items, len(x)) for name, value in conditions.items()}
        streams = latent_noise(model, seeds[items], x.device, dtype or x.dtype)

        def draw(numbers: Sequence[int]) -> Draws:
            noise = [torch.cat([stream.normal(number) for number in numbers]) for stream in streams]
            several = {name: repeated(value, len(numbers), len(own)) for name, value in given.items()}
            found = model.infer(repeated(own, len(numbers)), noise, **several)
            return Draws(found.log_prob, found.kl(), found.log_weight(), len(numbers) * model.nfe)

        return estimated_bound(draw, len(own), draws, importance, rows)

    return by_items(part, len(x), rows)


def by_items(part: Callable[[slice], Bound], items: int, rows: int) -> Bound:
    """The bound of several items, made of those of at most `rows` of them, for each slice of the items."""
    rows = check_count("rows", rows)
    parts = [part(slice(start, start + rows)) for start in range(0, items, rows)]
    errors = [one.std_error for one in parts if one.std_error is not None]
    return Bound(
        torch.cat([one.log_prob for one in parts]),
        torch.cat([one.reconstruction for one in parts]),
        torch.cat([one.kl for one in parts], 1),
        torch.cat(errors) if errors else None,
        parts[0].nfe,
    )


@dataclass(frozen=True)
class Draws:
    """Several draws of the latent variables of each of B items, all items of the first draw first.

    Attributes:
        reconstruction: Log p(x | z), [n B].
        kl: KL divergence of each latent variable, in closed form or by the draw; [T, n B].
        log_weight: Log w, [n B].
        nfe: Network passes per item, summed over these draws.
    """

    reconstruction: Tensor
    kl: Tensor
    log_weight: Tensor
    nfe: int


def estimated_bound(
    draw: Callable[[Sequence[int]], Draws], items: int, draws: int, importance: int, rows: int
) -> Bound:
    """The mean of `draws` estimates of L_K, K = `importance`, with its standard error by Student's t; see `Bound`.

    Args:
        draw: From the numbers of some draws, of 0, 1, ..., draws K - 1, to the draws.
        items: Number of items B, at least 1.
        draws: Number of estimates, at least 1.
        importance: K, at least 1.
        rows: Largest number of draws, times items, that are made at once; at least 1.

    Raises:
        ValueError: If a number is out of its range.
    """
    draws, importance, rows = (
        check_count(name, value) for name, value in (("draws", draws), ("importance", importance), ("rows", rows))
    )
    numbers, at_once = range(draws * importance), max(1, rows // items)
    with torch.no_grad():
        made = [draw(numbers[start : start + at_once]) for start in range(0, len(numbers), at_once)]
    reconstruction, weights = (
        torch.cat([getattr(part, name).double() for part in made]).reshape(len(numbers), items)
        for name in ("reconstruction", "log_weight")
    )
    kl = torch.cat([part.kl.double() for part in made], 1).reshape(-1, len(numbers), items)
    if importance == 1:
        estimates = reconstruction - kl.sum(0)  # the closed forms have less noise than the weights
    else:
        estimates = weights.reshape(draws, importance, items).logsumexp(1) - math.log(importance)
    error = None
    if draws >= LEAST_DRAWS:
        error = estimates.std(0) / math.sqrt(draws) * student_factor(draws - 1)
    return Bound(estimates.mean(0), reconstruction.mean(0), kl.mean(1), error, sum(part.nfe for part in made))


def latent_noise(
    model: LatentVariableModel, seeds: Sequence[int], device: torch.device | str, dtype: torch.dtype
) -> list[Noise]:
    """A stream of noise for each latent variable, z_1 first, of which sample i's are a function of seeds[i] alone."""
    first = Noise(seeds, model.shape, device, dtype)
    return [first.stream(f"z_{t}", dims) for t, dims in enumerate(model.latent_shapes, 1)]
