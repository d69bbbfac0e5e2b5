"""The results of `benchmarks.guidance`: a table in Markdown and a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from omegaconf import DictConfig

from benchmarks.guided_points import MEASURES, where
from sde_diffusion.modality.pictures import plain_numbers
from sde_diffusion.storage.files import writing

if TYPE_CHECKING:
    from benchmarks.guided_points import GuidedBench

TITLES = {
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "share": "share of the asked class",
}
SHOWN = ("frechet_distance", "share", "precision", "recall")


def _name(row: dict[str, Any]) -> str:
    """Which line of the picture a row belongs to."""
    ends = None if (row["low"], row["high"]) == (0.0, math.inf) else (row["low"], row["high"])
    return f"{row['guidance']}, {where(ends)}"


def markdown(cfg: DictConfig, bench: GuidedBench, rows: list[dict[str, Any]]) -> str:
    """One line for each row, the half width of the intervals beside the values, and the best of each column."""
    lines = [
        f"{cfg.n} samples for each row, from seed {cfg.seed} and with the labels of the {cfg.split} split of "
        f"{bench.data.name}; Fréchet distance to its {len(bench.real)} items, nearest neighbours among {cfg.n} of "
        f"them, in {bench.extractor_name} features. ±: half of the {cfg.confidence:.0%} interval.",
        "",
        "| guidance | scale | passes | " + " | ".join(TITLES[name] for name in MEASURES) + " |",
        "|---" * (len(MEASURES) + 3) + "|",
    ]
    for row in rows:
        real = math.isnan(row["scale"])
        start = "training data | – | –" if real else f"{_name(row)} | {row['scale']:g} | {row['passes']}"
        cells = ["–" if math.isnan(row[name]) else f"{row[name]:.3g} ± {_half(row, name):.2g}" for name in MEASURES]
        lines.append(f"| {start} | " + " | ".join(cells) + " |")
    best = []
    for name in MEASURES:
        able = [row for row in rows if not math.isnan(row["scale"]) and not math.isnan(row[name])]
        if able:
            first = min(able, key=lambda row: row[name] if name == "frechet_distance" else -row[name])
            best.append(f"{TITLES[name]}: {_name(first)}, scale {first['scale']:g} ({first[name]:.3g})")
    return "\n".join([*lines, "", "Best by each measure: " + "; ".join(best) + "."]) + "\n"


def _half(row: dict[str, Any], name: str) -> float:
    return float(row[f"{name}_high"] - row[f"{name}_low"]) / 2


def draw(rows: list[dict[str, Any]], bench: GuidedBench, path: Path) -> None:
    """Each measure against the scale, one line for each interval; dashed: the training data."""
    figure = Figure(figsize=(9.0, 6.5), layout="constrained", dpi=110)
    baseline, drawn = rows[0], rows[1:]
    grid = figure.subplots(2, 2, sharex=True)
    for axes, name in zip(grid.flat, SHOWN, strict=True):
        for index, line in enumerate(dict.fromkeys(map(_name, drawn))):
            mine = [row for row in drawn if _name(row) == line and not math.isnan(row[name])]
            aside = 0.02 * (index - 1)  # so that intervals do not overlap
            bars = [
                [max(row[name] - row[f"{name}_low"], 0) for row in mine],
                [max(row[f"{name}_high"] - row[name], 0) for row in mine],
            ]
            style = {"marker": "osD^v<"[index % 6], "ms": 4, "lw": 1, "capsize": 2}
            scales = [row["scale"] + aside for row in mine]
            axes.errorbar(scales, [row[name] for row in mine], bars, label=line, **style)
        if not math.isnan(baseline[name]):
            axes.axhline(baseline[name], color="0.5", lw=1, ls="--", label="training data")
        axes.set_title(TITLES[name], fontsize=10)
        axes.grid(alpha=0.3)
    grid[0, 0].set_yscale("log")
    plain_numbers(grid[0, 0].yaxis)
    figure.supxlabel("guidance scale (1: the conditional model, 0: the unconditional one)", fontsize=10)
    grid[0, 1].legend(fontsize=7)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")
