"""Checks of the arguments that the exact likelihood and the lower bound share, made once for a call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sde_diffusion.checks import check_batch, check_count
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.sampling.noise import as_seeds

_FAR = 4.0  # times the largest root mean square of data on [-1, 1]: grey levels 0 ... 16 and 0 ... 255 exceed it


def check_call(
    denoiser: Denoiser, x: Tensor, seed: int, seeds: Sequence[int] | None, conditions: Mapping[str, Any]
) -> tuple[list[int], dict[str, Any]]:
    """Check the arguments of a call; warn if the data are not on the denoiser's scale.

    Args:
        denoiser: The denoiser.
        x: [B, *dims].
        seed: Sample i has the seed seed + i, unless seeds are given.
        seeds: One integer for each sample, or None.
        conditions: Conditions of the denoiser, by name.

    Returns:
        The seeds, B of them, and the conditions as the denoiser takes them.

    Raises:
        TypeError: If the denoiser is not one, x not a tensor of floats, or a condition is not known.
        ValueError: If shapes do not fit, or a number is out of its range.
    """
    check_denoiser(denoiser)
    check_batch("x", x)
    if seeds is None:
        first = check_count("seed", seed, least=-(2**63))
        found = list(range(first, first + len(x)))
    else:
        found = as_seeds(seeds, len(x))
    size, usual = float(x.double().square().mean().sqrt()), max(1.0, denoiser.sigma_data or 0.0)
    if size > _FAR * usual:
        warnings.warn(
            f"x has a root mean square of {size:.3g}, and the denoiser's data of about {usual:.3g} at most: models "
            "take data on [-1, 1]; scale images on [0, 255] as x / 127.5 - 1, or levels by "
            "sde_diffusion.data.from_levels",
            stacklevel=4,
        )
    return found, denoiser.check_conditions(conditions, len(x), x.device)
