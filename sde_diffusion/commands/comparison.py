"""Two sets of samples against each other, and the table that `evaluate --multirun` leaves."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_diffusion.metrics import FAKE, FeatureMetric, Features, measure_differences, point_estimates
from sde_diffusion.storage.files import read_json, readable, writing

log = logging.getLogger(__name__)

TABLE = "table.csv"
_KEPT = ".features.safetensors"


@dataclass(frozen=True)
class Rival:
    """Other samples of as many items, to compare with.

    Args:
        name: What they are of.
        features: In the extractor of the comparison, [N, F].
        seeds: The first and the last of theirs, or None where that is not known.
    """

    name: str
    features: Tensor
    seeds: list[int] | None


def compare(
    metrics: Callable[[], Mapping[str, FeatureMetric]],
    features: Features,
    extractor: nn.Module,
    rival: Rival,
    seeds: list[int] | None,
    **settings: Any,
) -> dict[str, Any]:
    """The figures of a rival's samples, and those of the samples minus these.

    Args:
        metrics: Makes the metrics; called twice.
        features: Of the samples, and of the data.
        extractor: Of both.
        rival: The other samples.
        seeds: The first and the last of the samples, or None.
        **settings: level, resamples and reference of the intervals.

    Returns:
        name, n, paired (whether sample i is of the same seed on both sides), the rival's figures, the differences with
        their intervals, and skipped: what there are none of, with the reason.
    """
    n = len(features(extractor, FAKE))
    others = Features({**features.sides, FAKE: rival.features}, features.device)
    others.put(extractor, FAKE, rival.features)

    def theirs(module: nn.Module, side: str) -> Tensor:
        return others(module, side) if side == FAKE else features(module, side)

    report: dict[str, Any] = {
        "name": rival.name,
        "n": len(rival.features),
        "paired": seeds is not None and seeds == rival.seeds,
        "figures": point_estimates(metrics(), theirs),
    }
    if len(rival.features) != n:
        reason = f"{n} and {len(rival.features)} samples: differences need equal numbers, for figures depend on them"
        return {**report, "differences": {}, "skipped": {"differences": reason}}
    one, two = metrics(), metrics()
    found = measure_differences({name: (one[name], two[name]) for name in one}, features, theirs, **settings)
    differences = {name: figure.as_dict() for name, figure in found.figures.items()}
    return {**report, "differences": differences, "skipped": found.skipped}


def tell(report: Mapping[str, Any], better: Mapping[str, int]) -> None:
    """Print a comparison; `better` has 1 for figures of which more is better, and -1 for the others."""
    pairing = "paired by seeds" if report["paired"] else "not paired: other seeds, or seeds that are not known"
    log.info("minus those of %s (%d samples; %s)", report["name"], report["n"], pairing)
    for key, gap in report["differences"].items():
        verdict = "" if gap["low"] <= 0 <= gap["high"] else "better" if gap["value"] * better[key] > 0 else "worse"
        ends = f"[{gap['low']:.4g}, {gap['high']:.4g}]"
        log.info("  %-24s%+10.4g   %-24s%16.4g  %s", key, gap["value"], ends, report["figures"][key], verdict)
    for name, reason in report["skipped"].items():
        log.info("  no %s: %s", name, reason)
    log.info("  (difference, its interval, their figure; each by itself, with no correction for looking at several)")


def keep(folder: Path, about: Mapping[str, str], features: Tensor, seeds: list[int] | None) -> None:
    """Put a run's features where the other runs of a multirun find them."""
    note = {**about, "seeds": json.dumps(seeds)}
    with writing(folder / _KEPT) as temporary:
        temporary.write_bytes(save({"features": features.contiguous()}, note))


def kept(folder: Path, about: Mapping[str, str]) -> Rival | None:
    """The features of another run of a multirun; None if it has none (yet), or they are of other data or features."""
    try:
        with safe_open(readable(folder / _KEPT), "pt") as file:
            note = file.metadata()
            if any(note.get(key) != value for key, value in about.items()):
                return None
            return Rival(f"run {folder.name}", file.get_tensor("features"), json.loads(note["seeds"]))
    except Exception:  # not there (yet), or damaged in one of many ways
        return None


class Table(Callback):
    """After the last run of `evaluate --multirun`: a table of all, in the folder of the runs and printed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print it."""
        folder = Path(config.hydra.sweep.dir)
        numbered = [path for path in folder.glob("*/metrics.json") if path.parent.name.isdecimal()]
        runs = {int(path.parent.name): read_json(path) for path in numbered}
        for path in folder.glob(f"*/{_KEPT}"):
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
    """A row for each figure and a column for each run; a star where the difference from the first leaves 0 out."""
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
    compared = [f"  *: differs from run {first}: the interval of the difference leaves 0 out"]
    return "\n".join([*lines, *(compared if len(runs) > 1 else [])])
