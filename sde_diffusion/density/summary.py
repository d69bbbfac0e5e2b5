"""Summaries of the scores of many items, with error bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.modality.units import Units


def main_score(scores: Mapping[str, Tensor]) -> str:
    """The name of the score that stands for log p: that of the flow, or else the tightest bound."""
    return next(name for name in ("log_prob", "iwae", "elbo") if name in scores)


def summary(scores: dict[str, Tensor], size: int, levels: int | None) -> dict[str, Any]:
    """Means and standard errors of the scores; for the flow, of the finite ones.

    Args:
        scores: What `Scoring` or another scorer returns, [N] each.
        size: Number of dimensions D.
        levels: Number of levels of the data; None for continuous data, for which nats per dimension are reported.

    Returns:
        A dict with bits_per_dim (or nats_per_dim), the mean of -log p per dimension by the flow, or without one by the
        tightest bound (`by` says which); its std_error over items; log_prob (nats); n; nfe; elbo with its terms; and
        iwae. If there are such items, `impossible` is the number of those left out because no solver took them to the
        prior, and `solver_error` has the number of `items` for which the tolerance could not be met, and the mean
        estimate of their error in the same unit. The mean of no items is None.
    """
    unit, name = _unit(levels), main_score(scores)
    main = scores[name]
    fine = torch.isfinite(main)
    mean, error = mean_and_error(per_dim(main[fine], size, levels))
    report: dict[str, Any] = {
        unit: mean,
        "std_error": error,
        "by": "flow" if name == "log_prob" else name,
        "log_prob": mean_and_error(main[fine])[0],
        "n": int(fine.sum()),
        "nfe": {
            "mean": mean_and_error(scores["nfe"][fine])[0],
            "max": int(scores["nfe"][fine].max()) if bool(fine.any()) else None,
        },
    }
    off = scores["solver_error"][fine] if "solver_error" in scores else main[:0]
    off = off[off.isfinite()]
    if len(off):
        report["solver_error"] = {"items": len(off), unit: abs(float(per_dim(off, size, levels).mean()))}
    if not bool(fine.all()):
        report["impossible"] = int((~fine).sum())
    for bound in ("elbo", "iwae", "chain_elbo"):
        if bound in scores:
            mean, error = mean_and_error(per_dim(scores[bound], size, levels))
            report[bound] = {unit: mean, "std_error": error}
    for name, values in scores.items():
        if name.startswith("elbo_") and name != "elbo_error":
            report["elbo"][name.removeprefix("elbo_")] = mean_and_error(per_dim(values, size, levels))[0]
    return report


def order(scores: dict[str, Tensor], below: str, above: str, size: int, levels: int | None) -> dict[str, Any]:
    """How much one score exceeds another on average, with the standard error of the differences of the items.

    Returns:
        A dict with below and above, the names; the mean difference of log p per dimension, in bits or nats; std_error;
        and holds: whether above is not less than below by more than three standard errors.
    """
    found = per_dim(scores[below] - scores[above], size, levels)
    mean, error = mean_and_error(found[found.isfinite()])
    holds = mean is None or error is None or mean >= -3 * error
    return {"below": below, "above": above, "difference": mean, "std_error": error, "holds": holds}


def quoted(report: dict[str, Any], levels: int | None) -> dict[str, Any]:
    """Which of the results to quote: the smallest of the upper bounds on -log P, or the exact value.

    Args:
        report: What `summary` returns.
        levels: Number of levels of the data; None for continuous data, for which the flow's density is exact.

    Returns:
        A dict with by (flow, elbo or iwae), the value with its std_error, and because, the reason as text.
    """
    unit, by_flow = _unit(levels), report["by"] == "flow"
    bounds = {name: report[name] for name in ("elbo", "iwae") if name in report}
    flow = {"by": "flow", unit: report[unit], "std_error": report["std_error"]}
    lost = report.get("impossible", 0)  # items without a value, which the flow's mean leaves out
    if by_flow and levels is None and not (lost and bounds):
        left_out = f"; without {lost} items that could not be solved" if lost else ""
        why = "the flow's density is exact but for its solver and trace; the ELBO is below it"
        return {**flow, "because": why + left_out}
    best = min(bounds, key=lambda name: math.inf if bounds[name][unit] is None else bounds[name][unit], default=None)
    value = math.inf if lost or flow[unit] is None else flow[unit]
    if by_flow and (best is None or bounds[best][unit] is None or value < bounds[best][unit]):
        why = "the flow with uniform dequantisation, an upper bound on -log2 P of the levels"
        why += f" that could be solved, without {lost} others" if lost else ""
        return {**flow, "because": why if best is None else f"{why}, here a smaller one than the ELBO's"}
    assert best is not None  # without a flow there is a bound
    found = {"by": best, unit: bounds[best][unit], "std_error": bounds[best]["std_error"]}
    if not by_flow or levels is None:
        return {**found, "because": f"an upper bound on {'-log p' if levels is None else '-log2 P'}"}
    least = "the smaller of two" if len(bounds) == 1 else "the smallest of three"
    return {
        **found,
        "because": f"the {best.upper()}, here {least} upper bounds on -log2 P; the flow's is for "
        "comparisons with others that dequantise uniformly",
    }


def _unit(levels: int | None) -> str:
    return "nats_per_dim" if levels is None else "bits_per_dim"


def in_own_units(log_density: Tensor, units: Units, size: int) -> dict[str, Any]:
    """Mean of the finite log-densities in the data's own units, in nats, with its standard error.

    Args:
        log_density: log p(y) = log p(x) - log |dy/dx| of each item, [N].
        units: The units.
        size: Number of dimensions D.
    """
    mean, error = mean_and_error(log_density[log_density.isfinite()])
    ends = {"low": list(units.low), "high": list(units.high)}
    return {"log_density": mean, "std_error": error, "log_volume": units.log_volume(size), **ends}


def per_dim(log_prob: Tensor, size: int, levels: int | None) -> Tensor:
    """Negative log-probabilities per dimension: in bits for data on levels, in nats for continuous data."""
    return -log_prob / (size * (1 if levels is None else math.log(2)))


def mean_and_error(values: Tensor) -> tuple[float | None, float | None]:
    """Mean and its standard error over items, which includes the noise of traces and draws; None if too few."""
    n = len(values)
    return float(values.mean()) if n else None, float(values.std() / n**0.5) if n > 1 else None


def plus_minus(mean: float | None, error: float | None) -> str:
    """A value ± its standard error, as text."""
    if mean is None:
        return "nothing"
    return f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
