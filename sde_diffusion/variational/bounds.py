r"""Lower bounds on log p(x) of latent variable models, with error bars.

    L_K = E log 1/K sum_k w_k,    w_k = p(x, z_k) / q(z_k | x),

for K independent draws: the evidence lower bound for K = 1, and tighter for more (Burda et al. 2016, "Importance
Weighted Autoencoders"). L_K <= L_{K+1} <= log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import check_batch, check_count, check_kind
from sde_diffusion.density.bound import Bound
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
) -> Bound:
    """Unbiased estimate of L_K, the mean of `draws` estimates of K = `importance` draws each.

    Args:
        model: The model; it is used as it is: call `.eval()` before.
        x: Data, [B, *shape].
        draws: Number of estimates, at least 1; two or more give a standard error.
        importance: K, at least 1.
        seeds: One integer for each item, on which alone its noise depends; 0, 1, ... by default.
        rows: Largest batch of a network pass.
        dtype: Type of the noise; that of x by default.

    Returns:
        The bound; `reconstruction` and `kl` are the parts of the evidence lower bound (K = 1) by all draws.

    Raises:
        ValueError: If a number is out of its range, or the shapes do not fit.
    """
    check_kind("model", model, LatentVariableModel)
    check_batch("x", x)
    if dtype is not None:
        check_dtype(dtype)
    draws, importance, rows = (
        check_count(name, value) for name, value in (("draws", draws), ("importance", importance), ("rows", rows))
    )
    seeds = as_seeds(range(len(x)) if seeds is None else seeds, len(x))
    streams = latent_noise(model, seeds, x.device, dtype or x.dtype)
    weights, reconstructions, kls = [], [], []
    total = draws * importance
    at_once = min(total, max(1, rows // len(x)))
    with torch.no_grad():
        for start in range(0, total, at_once):
            numbers = range(start, min(total, start + at_once))
            noise = [torch.cat([stream.normal(draw) for draw in numbers]) for stream in streams]
            found = model.infer(x.repeat(len(numbers), *(1,) * (x.ndim - 1)), noise)
            weights.append(found.log_weight().double().reshape(len(numbers), -1))
            reconstructions.append(found.log_prob.double().reshape(len(numbers), -1))
            kls.append(found.kl().double().reshape(len(streams), len(numbers), -1))
    reconstruction, kl = torch.cat(reconstructions), torch.cat(kls, 1)
    if importance == 1:
        estimates = reconstruction - kl.sum(0)  # the closed forms have less noise than the weights
    else:
        each = torch.cat(weights).reshape(draws, importance, -1)
        estimates = each.logsumexp(1) - math.log(importance)
    error = None if draws < 2 else estimates.std(0) / math.sqrt(draws)
    return Bound(estimates.mean(0), reconstruction.mean(0), kl.mean(1), error, total * model.nfe)


def latent_noise(
    model: LatentVariableModel, seeds: Sequence[int], device: torch.device | str, dtype: torch.dtype
) -> list[Noise]:
    """A stream of noise for each latent variable, z_1 first, of which sample i's are a function of seeds[i] alone."""
    first = Noise(seeds, model.shape, device, dtype)
    return [first.stream(f"latent {level}", dims) for level, dims in enumerate(model.latent_shapes)]
