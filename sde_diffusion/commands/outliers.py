"""How well a model's likelihood distinguishes other data from its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compare(own: Tensor, other: Tensor) -> dict[str, Any]:
    """How well log-likelihood distinguishes other data from the model's own.

    Args:
        own: Log-probabilities of the model's own data, [N].
        other: Log-probabilities of the other data, [M].

    Returns:
        auroc: The probability that an item of the model's own data is more likely than one of the others (1: always,
        0.5: not distinguished, 0: never). auroc_typicality: The probability that it is nearer to the median of its own
        data, which also detects items that are too likely (Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs
        to Deep Generative Models Using Typicality"). below, above: The shares of the others that are less likely than
        99% of the model's own data, and more likely than 99%. verdict: A sentence that summarises these.
    """
    centre = own.median()
    low, high = torch.quantile(own, 0.01), torch.quantile(own, 0.99)
    below, above = float((other < low).double().mean()), float((other > high).double().mean())
    auroc, typicality = _auroc(own, other), _auroc(-(own - centre).abs(), -(other - centre).abs())
    return {
        "auroc": auroc,
        "auroc_typicality": typicality,
        "below": below,
        "above": above,
        "verdict": _verdict(below, above, auroc),
    }


def _verdict(below: float, above: float, auroc: float) -> str:
    if below >= 0.5:
        return f"unlike the model's data: {below:.0%} are less likely than 99% of them"
    if above >= 0.5:
        return (
            f"{above:.0%} are MORE likely than 99% of the model's data: a known failure of likelihoods, which prefer "
            "simple images; typicality distinguishes them, likelihood does not"
        )
    if below + above >= 0.5:
        return f"unlike the model's data: {below:.0%} are less, {above:.0%} more likely than 99% of them"
    return f"not clearly distinguished: the model's own data are more likely with probability {auroc:.2f}"


def _auroc(own: Tensor, other: Tensor) -> float:
    """The Mann-Whitney U statistic as a probability: that a value of `own` exceeds one of `other`; ties count half."""
    from scipy.stats import mannwhitneyu

    u = mannwhitneyu(own.double().numpy(), other.double().numpy(), method="asymptotic").statistic
    return float(u) / (len(own) * len(other))
