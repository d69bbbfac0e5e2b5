"""Items' scores made figures with error bars."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def summary(scores: dict[str, Tensor], size: int, levels: int | None) -> dict[str, Any]:
    """Means with standard errors of items' scores, the flow's of those that are finite.

    Args:
        scores: What `Scoring` gives, [N] each.
        size: Dimensions D.
        levels: Levels of the data; None for continuous data, whose figures are in nats per dimension.

    Returns:
        bits_per_dim (or nats_per_dim: the negative log-density), std_error, log_prob (nats), n, nfe and elbo; and
        `impossible`, the number of items left out because no solver brought them to the prior, if there are any. Means
        of nothing are None.
    """
    unit = "nats_per_dim" if levels is None else "bits_per_dim"
    fine = torch.isfinite(scores["log_prob"])
    mean, error = mean_and_error(per_dim(scores["log_prob"][fine], size, levels))
    report: dict[str, Any] = {
        unit: mean,
        "std_error": error,
        "log_prob": mean_and_error(scores["log_prob"][fine])[0],
        "n": int(fine.sum()),
        "nfe": {
            "mean": mean_and_error(scores["nfe"][fine])[0],
            "max": int(scores["nfe"][fine].max()) if bool(fine.any()) else None,
        },
    }
    if not bool(fine.all()):
        report["impossible"] = int((~fine).sum())
    if "elbo" in scores:
        mean, error = mean_and_error(per_dim(scores["elbo"], size, levels))
        parts = {
            part: mean_and_error(per_dim(sign * scores[f"elbo_{part}"], size, levels))[0]
            for part, sign in (("reconstruction", 1), ("prior", -1), ("diffusion", -1))
        }
        report["elbo"] = {unit: mean, "std_error": error, **parts}
    return report


def per_dim(log_prob: Tensor, size: int, levels: int | None) -> Tensor:
    """Negative log-probabilities per dimension: in bits for data on levels, in nats for continuous ones."""
    return -log_prob / (size * (1 if levels is None else math.log(2)))


def mean_and_error(values: Tensor) -> tuple[float | None, float | None]:
    """Mean and its standard error over items (which holds the noise of traces and draws too); None of too few."""
    n = len(values)
    return float(values.mean()) if n else None, float(values.std() / n**0.5) if n > 1 else None


def plus_minus(mean: float | None, error: float | None) -> str:
    """A figure with its standard error, in words."""
    if mean is None:
        return "nothing"
    return f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
