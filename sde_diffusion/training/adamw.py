"""Checks of AdamW's settings."""

from __future__ import annotations

from collections.abc import Sequence

from sde_diffusion.checks import as_number
from sde_diffusion.checks.reprs import shown


def check_decay(weight_decay: object) -> float:
    """The weight decay, as a number.

    Raises:
        ValueError: If it is negative, or not a number.
    """
    decay = as_number("weight_decay", weight_decay)
    if not decay >= 0:
        raise ValueError(f"weight_decay must be at least 0; got {decay!r}")
    return decay


def check_betas(betas: object) -> tuple[float, float]:
    """The decay rates of the two moments, as numbers.

    Raises:
        ValueError: If they are not two numbers in [0, 1).
    """
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1); got {shown(betas)}")
    first, second = as_number("betas[0]", betas[0]), as_number("betas[1]", betas[1])
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"betas must be two numbers in [0, 1); got {shown((first, second))}")
    return first, second
