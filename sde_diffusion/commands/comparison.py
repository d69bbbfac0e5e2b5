"""Comparison of two sets of samples, and the table that `evaluate --multirun` writes."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_diffusion.metrics import FAKE, FeatureMetric, Features, IntervalSettings, measure_differences, point_estimates
from sde_diffusion.storage.files import read_json, readable, writing

log = logging.getLogger(__name__)

TABLE = "table.csv"
_FEATURES = ".features.safetensors"


@dataclass(frozen=True)
class OtherSamples:
    """Other samples, to compare with.

    Args:
        name: Where they are from, for the report.
        features: Their features, by the extractor of the comparison, [N, F].
        seeds: First and last of their seeds; None if unknown.
    """

    name: str
    features: Tensor
    seeds: list[int] | None


def compare(
    metrics: Callable[[], Mapping[str, FeatureMetric]],
    features: Features,
    extractor: nn.Module,
    other: OtherSamples,
    seeds: list[int] | None,
    **settings: Unpack[IntervalSettings],
) -> dict[str, Any]:
    """The metrics of other samples, and the differences: those of the samples minus those of the others.

    Args:
        metrics: Makes the metrics; called twice.
        features: Features of the samples and of the data.
        extractor: The extractor of all features.
        other: The other samples.
        seeds: First and last seed of the samples; None if unknown.
        **settings: See `IntervalSettings`.

    Returns:
        name, n, paired (whether sample i has the same seed on both sides), figures (the values of the other samples),
        differences with their intervals, and skipped: the reason for each difference that is missing.
    """
    n = len(features(extractor, FAKE))
    others = Features({**features.sides, FAKE: other.features}, features.device)
    others.put(extractor, FAKE, other.features)

    def features_of_other(module: nn.Module, side: str) -> Tensor:
        return others(module, side) if side == FAKE else features(module, side)

    report: dict[str, Any] = {
        "name": other.name,
        "n": len(other.features),
        "paired": seeds is not None and seeds == other.seeds,
        "figures": point_estimates(metrics(), features_of_other),
    }
    if len(other.features) != n:
        reason = f"{n} and {len(other.features)} samples: differences need equal numbers, as the values depend on them"
        return {**report, "differences": {}, "skipped": {"differences": reason}}
    one, two = metrics(), metrics()
    pairs = {name: (one[name], two[name]) for name in one}
    found = measure_differences(pairs, features, features_of_other, **settings)
    differences = {name: figure.as_dict() for name, figure in found.figures.items()}
    return {**report, "differences": differences, "skipped": found.skipped}


def log_comparison(report: Mapping[str, Any], better: Mapping[str, int]) -> None:
    """Log a comparison; `better` is 1 for values of which higher is better, and -1 for the others."""
    pairing = "paired by seeds" if report["paired"] else "not paired: the seeds differ or are unknown"
    log.info("minus those of %s (%d samples; %s)", report["name"], report["n"], pairing)
    for key, gap in report["differences"].items():
        verdict = "" if gap["low"] <= 0 <= gap["high"] else "better" if gap["value"] * better[key] > 0 else "worse"
        ends = f"[{gap['low']:.4g}, {gap['high']:.4g}]"
        log.info("  %-24s%+10.4g   %-24s%16.4g  %s", key, gap["value"], ends, report["figures"][key], verdict)
    for name, reason in report["skipped"].items():
        log.info("  no %s: %s", name, reason)
    log.info("  (difference, its interval, value of the others; not corrected for multiple comparisons)")


def store_features(folder: Path, about: Mapping[str, str], features: Tensor, seeds: list[int] | None) -> None:
    """Store a run's features where the other runs of a multirun find them."""
    metadata = {**about, "seeds": json.dumps(seeds)}
    with writing(folder / _FEATURES) as temporary:
        temporary.write_bytes(save({"features": features.contiguous()}, metadata))


def stored_features(folder: Path, about: Mapping[str, str]) -> OtherSamples | None:
    """The stored features of another run of a multirun; None if there are none, or they are of other data or kinds."""
    try:
        with safe_open(readable(folder / _FEATURES), "pt") as file:
            metadata = file.metadata()
            if any(metadata.get(key) != value for key, value in about.items()):
                return None
            return OtherSamples(f"run {folder.name}", file.get_tensor("features"), json.loads(metadata["seeds"]))
    except Exception:  # not written yet, or damaged in one of many ways
        return None


class Table(Callback):
    """After the last run of `evaluate --multirun`, write a table of all runs into their folder, and print it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print it."""
        folder = Path(config.hydra.sweep.dir)
        numbered = [path for path in folder.glob("*/metrics.json") if path.parent.name.isdecimal()]
        runs = {int(path.parent.name): read_json(path) for path in numbered}
        for path in folder.glob(f"*/{_FEATURES}"):
            path.unlink()
        if not runs:
            return
        with writing(folder / TABLE) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            gaps = ("difference", "difference_low", "difference_high", "paired")
            writer.writerow(["run", "settings", "n", "nfe", "figure", "value", "low", "high", *gaps])
            for number in sorted(runs):
                writer.writerows(_rows(number, runs[number]))
        print(_text({number: runs[number] for number in sorted(runs)}))
        print(folder / TABLE)


def _rows(number: int, run: Mapping[str, Any]) -> list[list[Any]]:
    against = run.get("against") or {"differences": {}, "paired": ""}
    rows = []
    for key, figure in run["intervals"].items():
        gap = against["differences"].get(key)
        gaps = ["", "", "", ""] if gap is None else [gap["value"], gap["low"], gap["high"], against["paired"]]
        ends = (figure["value"], figure["low"], figure["high"])
        rows.append([number, " ".join(run["settings"]), run["n"], run["nfe"], key, *ends, *gaps])
    return rows


def _text(runs: Mapping[int, Mapping[str, Any]]) -> str:
    """A row for each metric and a column for each run; a star where the difference from the first run is not 0."""
    names = list(dict.fromkeys(key for run in runs.values() for key in run["intervals"]))
    rows = [["", *(f"run {number}" for number in runs)]]
    for key in names:
        cells = []
        for run in runs.values():
            gap = (run.get("against") or {"differences": {}})["differences"].get(key)
            star = "*" if gap is not None and not gap["low"] <= 0 <= gap["high"] else " "
            cells.append(f"{run['intervals'][key]['value']:.4g}{star}" if key in run["intervals"] else "- ")
        rows.append([key, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"run {number}: {' '.join(run['settings'])}" for number, run in runs.items()]
    first = next(iter(runs))
    for row in rows:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *right]))
    compared = [f"  *: differs from run {first}: the interval of the difference does not contain 0"]
    return "\n".join([*lines, *(compared if len(runs) > 1 else [])])
