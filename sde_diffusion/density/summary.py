"""Summaries of the scores of many items, with error bars."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.modality.units import Units


def summary(scores: dict[str, Tensor], size: int, levels: int | None) -> dict[str, Any]:
    """Means and standard errors of the scores; for the flow, of the finite ones.

    Args:
        scores: What `Scoring` returns, [N] each.
        size: Number of dimensions D.
        levels: Number of levels of the data; None for continuous data, for which nats per dimension are reported.

    Returns:
        A dict with bits_per_dim (or nats_per_dim), the mean of -log p per dimension; its std_error over items; log_prob
        (nats); n; nfe; and elbo with its parts. If there are such items, `impossible` is the number of those left out
        because no solver took them to the prior, and `solver_error` has the number of `items` for which the tolerance
        could not be met, and the mean estimate of their error in the same unit. The mean of no items is None.
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
    off = scores["solver_error"][fine] if "solver_error" in scores else scores["log_prob"][:0]
    off = off[off.isfinite()]
    if len(off):
        report["solver_error"] = {"items": len(off), unit: abs(float(per_dim(off, size, levels).mean()))}
    if not bool(fine.all()):
        report["impossible"] = int((~fine).sum())
    if "elbo" in scores:
        mean, error = mean_and_error(per_dim(scores["elbo"], size, levels))
        parts = {
            part: mean_and_error(per_dim(scores[f"elbo_{part}"], size, levels))[0]
            for part in ("reconstruction", "prior", "diffusion")
        }
        report["elbo"] = {unit: mean, "std_error": error, **parts}
    return report


def quoted(report: dict[str, Any], levels: int | None) -> dict[str, Any]:
    """Which of the two results to quote. For data on levels both are upper bounds on -log2 P(x): the smaller one.

    Args:
        report: What `summary` returns.
        levels: Number of levels of the data; None for continuous data, for which the flow's density is exact.

    Returns:
        A dict with by (flow or elbo), the value with its std_error, and because, the reason as text.
    """
    unit = "nats_per_dim" if levels is None else "bits_per_dim"
    bound = report.get("elbo")
    flow = {"by": "flow", unit: report[unit], "std_error": report["std_error"]}
    if levels is None:
        return {**flow, "because": "the flow's density is exact but for its solver and trace; the ELBO is below it"}
    if bound is None or bound[unit] is None or (flow[unit] is not None and flow[unit] < bound[unit]):
        why = "the flow with uniform dequantisation, an upper bound on -log2 P of the levels"
        return {**flow, "because": why if bound is None else f"{why}, here a smaller one than the ELBO's"}
    return {
        "by": "elbo",
        unit: bound[unit],
        "std_error": bound["std_error"],
        "because": "the ELBO on the levels themselves, here the smaller of two upper bounds on -log2 P; the flow's is "
        "for comparisons with others that dequantise uniformly",
    }


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
