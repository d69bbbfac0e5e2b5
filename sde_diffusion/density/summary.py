"""Items' scores made figures with error bars."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def summary(scores: dict[str, Tensor], size: int, levels: int | None) -> dict[str, Any]:
    """Means with standard errors of items' scores.

    Args:
        scores: What `Scoring` gives, [N] each.
        size: Dimensions D.
        levels: Levels of the data; None for continuous data, whose figures are in nats per dimension.

    Returns:
        bits_per_dim (or nats_per_dim: the negative log-density), std_error, log_prob (nats), n, nfe and elbo.
    """
    unit = "nats_per_dim" if levels is None else "bits_per_dim"
    mean, error = mean_and_error(per_dim(scores["log_prob"], size, levels))
    report: dict[str, Any] = {
        unit: mean,
        "std_error": error,
        "log_prob": float(scores["log_prob"].mean()),
        "n": len(scores["log_prob"]),
        "nfe": {"mean": float(scores["nfe"].mean()), "max": int(scores["nfe"].max())},
    }
    if "elbo" in scores:
        mean, error = mean_and_error(per_dim(scores["elbo"], size, levels))
        parts = {
            part: float(per_dim(sign * scores[f"elbo_{part}"], size, levels).mean())
            for part, sign in (("reconstruction", 1), ("prior", -1), ("diffusion", -1))
        }
        report["elbo"] = {unit: mean, "std_error": error, **parts}
    return report


def per_dim(log_prob: Tensor, size: int, levels: int | None) -> Tensor:
    """Negative log-probabilities per dimension: in bits for data on levels, in nats for continuous ones."""
    return -log_prob / (size * (1 if levels is None else math.log(2)))


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Mean and its standard error over items (which holds the noise of traces and draws too); None for one item."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def plus_minus(mean: float, error: float | None) -> str:
    """A figure with its standard error, in words."""
    return f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
