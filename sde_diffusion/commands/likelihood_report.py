"""What `sde_diffusion.likelihood` writes and prints of its scores."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.overrides import hydra_value
from sde_diffusion.commands.outliers import compare
from sde_diffusion.commands.sampling_run import passes_in_words
from sde_diffusion.density.summary import main_score, per_dim, plus_minus, summary
from sde_diffusion.modality import pictures
from sde_diffusion.sampling.ode_adams import ROUGH
from sde_diffusion.storage.files import writing

log = logging.getLogger(__name__)


def label(score: str, importance: int) -> str:
    """The name of a score, or of `by` in a report, in a sentence: "the flow", "IWAE-64"."""
    return {
        "flow": "the flow",
        "log_prob": "log p by the flow",
        "elbo": "the ELBO",
        "iwae": f"IWAE-{importance}",
        "chain_elbo": "the ELBO of the same chain",
    }[score]


def draw_histogram(path: Path, scores: Mapping[str, dict[str, Tensor]], size: int, levels: int | None, by: str) -> bool:
    """Draw the finite values of all items; returns whether there are any.

    Args:
        path: The picture.
        scores: The scores of each split.
        size: Number of dimensions D.
        levels: Number of levels of the data; None for continuous data.
        by: What -log p is by, for the axis.
    """
    main = {name: parts[main_score(parts)] for name, parts in scores.items()}
    values = {name: per_dim(some[some.isfinite()], size, levels) for name, some in main.items()}
    values = {name: some for name, some in values.items() if len(some)}
    if values:
        title = f"-log p by {by}, {'bits/dim' if levels else 'nats/dim'} (lower: more likely)"
        pictures.save(pictures.histogram(values, title), path)
    return bool(values)


def against(
    name: str, own: dict[str, Tensor], others: dict[str, Tensor], size: int, levels: int | None
) -> dict[str, Any]:
    """The scores of other data, and how well likelihood distinguishes them from the model's own."""
    main = main_score(own)
    return {
        "data": name,
        **summary(others, size, levels),
        **compare(own[main], others[main]),
        **({"by_elbo": compare(own["elbo"], others["elbo"])} if "elbo" in others and main != "elbo" else {}),
    }


def write_table(path: Path, scores: Mapping[str, dict[str, Tensor]]) -> None:
    """Write the scores of all items as a table."""
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        columns = list(next(iter(scores.values())))
        table.writerow(["split", *columns])
        for split, values in scores.items():
            rows = torch.stack([values[name] for name in columns], 1).tolist()
            table.writerows([split, *(f"{value:.10g}" for value in row)] for row in rows)


def log_report(report: dict[str, Any], reports: dict[str, dict[str, Any]], conditions: str, paths: list[Path]) -> None:
    """Log the results of each split, what they mean, and where they are."""
    unit = "bits_per_dim" if "bits_per_dim" in report else "nats_per_dim"
    per = unit.replace("_per_", "/")
    for split, values in reports.items():
        items = "item" if values["n"] == 1 else "items"
        passes = values["nfe"]["mean"] or math.nan
        log.info("%s %s, %d %s, %s", report["data"], split, values["n"], items, passes_in_words(passes))
        if values["by"] == "flow":
            log.info("  -log p by the flow: %s %s", plus_minus(values[unit], values["std_error"]), per)
        _log_bounds(values, int(report["importance"]), unit)
        if "impossible" in values:
            log.warning(
                "  %d items could not be solved: they count as impossible, and are left out", values["impossible"]
            )
        if "solver_error" in values:
            off = values["solver_error"]
            count = f"{off['items']} {'item' if off['items'] == 1 else 'items'}"
            log.warning(
                f"  {ROUGH}: rtol={report['rtol']:g} could not be reached for {count}; the solver used a larger "
                f"tolerance, and an item's value may be off by {off[unit]:.2g} {per} (the difference from a solution "
                "with four times that tolerance)"
            )
    log.info("  lower is better; ± is one standard error of the mean over the items")
    if report["uniform"] is not None:
        log.info("  the uniform distribution over the levels has %.3f %s", report["uniform"], per)
    settings = [key for key in ("prior", "trace", "draws", "bound") if report.get(key) is not None]
    log.info("  settings: %s", ", ".join(f"{key}={hydra_value(report[key])}" for key in settings))
    if conditions:
        log.info("  given %s", conditions)
    if report["own_units"] is not None:
        own = report["own_units"]
        log.info(
            "  in the data's own units: log p = %s nats per item", plus_minus(own["log_density"], own["std_error"])
        )
        log.info("    (log-density on [-1, 1], minus %.6g, the log of the ranges' volume)", own["log_volume"])
    if "elbo" in report and report["by"] == "flow":
        reason, *more = report["quote"]["because"].split("; ")
        log.info("  to quote: %.4f %s, %s", report["quote"][unit] or math.nan, per, reason)
        for fact in more:
            log.info("    (%s)", fact)
    for fact in report["convention"].split("; "):
        log.info("  %s", fact)
    if "against" in report:
        _log_against(report["against"], unit, per, report["importance"])
    for path in paths:
        log.info("%s", path)


def _log_bounds(values: dict[str, Any], importance: int, unit: str) -> None:
    """Log the bounds of a split, the terms of the ELBO, and how the scores compare."""
    per = unit.replace("_per_", "/")
    for name in ("elbo", "iwae"):
        if name in values:
            bound = plus_minus(values[name][unit], values[name]["std_error"])
            log.info("  -log p by %s: at most %s %s", label(name, importance), bound, per)
        if name == "elbo" in values:
            terms = {key: value for key, value in values[name].items() if key not in (unit, "std_error")}
            log.info("    = %s", " + ".join(f"{key} {value:.4f}" for key, value in terms.items() if value is not None))
    for found in values["order"]:
        names = [label(found[key], importance) for key in ("above", "below")]
        if found["below"] == "chain_elbo":
            names[1] += f", {values['iwae'][unit] + found['difference']:.4f}"
        if "equal" in found:
            log.info("  %s equals %s: %s", *names, found["equal"])
            continue
        by = plus_minus(found["difference"], found["std_error"])
        relation, sense = "is tighter than", "as it must be" if found["holds"] else "though it must not be looser"
        if found["above"] == "log_prob":
            relation = "is higher than"
            sense = "as with an exact denoiser" if found["holds"] else "which an exact denoiser would not be below"
        level = logging.INFO if found["holds"] else logging.WARNING
        log.log(level, "  %s %s %s, by %s %s, %s", names[0], relation, names[1], by, per, sense)


def _log_against(other: dict[str, Any], unit: str, per: str, importance: int) -> None:
    figure = plus_minus(other[unit], other["std_error"])
    by = label(other["by"], importance)
    log.info("against %s, %d items: -log p by %s: %s %s", other["data"], other["n"], by, figure, per)
    for name, found in ((by, other), ("the ELBO", other.get("by_elbo"))):
        if found is not None:
            log.info("  by %s: %s", name, found["verdict"])
            figures = (found["auroc"], found["auroc_typicality"])
            log.info("    (AUROC %.3f, of typicality %.3f; 1: always told apart, 0.5: by chance alone)", *figures)
