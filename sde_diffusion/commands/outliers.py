"""What a model's likelihood says of other data than its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compare(own: Tensor, other: Tensor) -> dict[str, Any]:
    """How well log-likelihood tells other data from the model's own.

    Args:
        own: Log-probability of each of the model's own items, [N].
        other: Of each of the others, [M].

    Returns:
        auroc: The probability that one of its own is more likely than one of the others (1: told apart, 0.5: not at
        all, 0: the others are all more likely). auroc_typicality: the same of being nearer to the median of its own,
        which also finds what is too likely (Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs to Deep
        Generative Models Using Typicality"). below, above: the shares of the others that are less, and more likely than
        all but one in a hundred of its own. verdict: in words.
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
            "simple images; typicality, not likelihood, tells them apart"
        )
    if below + above >= 0.5:
        return f"unlike the model's data: {below:.0%} are less, {above:.0%} more likely than 99% of them"
    return f"not told apart for certain: the model's own are the more likely with probability {auroc:.2f}"


def _auroc(own: Tensor, other: Tensor) -> float:
    """The probability that one of own is larger than one of other, ties counted half: the Mann-Whitney U statistic."""
    from scipy.stats import mannwhitneyu

    u = mannwhitneyu(own.double().numpy(), other.double().numpy(), method="asymptotic").statistic
    return float(u) / (len(own) * len(other))
