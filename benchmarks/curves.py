"""The results of `benchmarks.nfe_fid`: a table in Markdown, a picture, and both for wandb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from omegaconf import DictConfig

from sde_diffusion.metrics import FrechetDistance, Pixels
from sde_diffusion.modality.pictures import plain_numbers
from sde_diffusion.storage.files import writing

if TYPE_CHECKING:
    from benchmarks.drawn_points import Bench

FRECHET = "frechet_distance"


def markdown(cfg: DictConfig, bench: Bench, rows: list[dict[str, Any]], best: list[dict[str, Any]]) -> str:
    """The table of all samplers, the best at each number of passes, and why values are missing."""
    passes = sorted(cfg.nfe)
    baseline = FrechetDistance(Pixels(bench.real.shape[1:]))
    baseline.update(bench.real, real=True)
    train = bench.data.tensor("train")
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: cfg.n * len(cfg.seeds)]
    train = bench.features(train[some])  # at most as many as samples: the distance depends on the number
    baseline.update(train, real=False)
    denoiser = "the closed-form denoiser of the training split" if cfg.exact else "the model"
    paths = {name: str(model.denoiser.sde) for name, model in bench.models.items()}
    several = len(paths) > 1
    of = "; ".join(f"{name}: {path}" for name, path in paths.items()) if several else next(iter(paths.values()))
    lines = [
        f"Fréchet distance, in {bench.extractor_name} features, of {cfg.n * len(cfg.seeds)} samples of {denoiser} "
        f"({of}) to the {cfg.split} split of {bench.data.name} ({len(bench.real)} items). First seeds: "
        f"{', '.join(str(seed) for seed in cfg.seeds)}; {cfg.confidence:.0%} confidence intervals: curves.csv. For "
        f"comparison, the distance of {len(train)} items of the training split: {float(baseline.compute()):.3f}.",
        "",
        "| network passes, at most | " + " | ".join(str(nfe) for nfe in passes) + " |",
        "|---" * (len(passes) + 1) + "|",
    ]
    for name in bench.rows:
        cells = []
        for nfe in passes:
            row = next(row for row in rows if row["sampler"] == name and row["passes"] == nfe)
            value = f"**{row[FRECHET]:.2f}**" if any(b["nfe"] == nfe and b["sampler"] == name for b in best) else None
            cells.append("–" if row["reason"] else value or f"{row[FRECHET]:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Differences are between samples of the same seeds; one is significant if its {cfg.confidence:.0%} interval "
        "excludes 0. Each number of passes is tested by itself, without a correction for several tests."
        + " Within 10%: the whole interval is."
        * bool(cfg.long),
        "",
        f"| passes | best |{f' the same sampler, {cfg.long} passes | ratio (difference) |' if cfg.long else ''} "
        "lead over the second |",
        f"|---|---|{'---|---|' if cfg.long else ''}---|",
    ]
    lines += [
        f"| {one['nfe']} | {one['sampler']}, {one[FRECHET]:.3f} |"
        f"{' {:.3f} | {} |'.format(one['long'], one['over']) if cfg.long else ''} {one['next']} |"
        for one in best
    ]
    reasons = {row["sampler"]: row["reason"] for row in rows if row["reason"]}
    lines += ["", *(f"{name} has no value for some numbers of passes: {reason}" for name, reason in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def draw(rows: list[dict[str, Any]], bench: Bench, path: Path) -> None:
    """Log-log curves with intervals, and the Pareto front behind them."""
    figure = Figure(figsize=(8.0, 5.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    able = [row for row in rows if not row["reason"]]
    colours = colormaps["tab20"].colors  # pairs of dark and light: dark ones first
    for index, name in enumerate(dict.fromkeys(row["sampler"] for row in able)):
        mine = [row for row in able if row["sampler"] == name]
        aside = 1.006 ** (index - 6)  # so that intervals do not overlap
        nfe, value = [row["nfe"] * aside for row in mine], [row[FRECHET] for row in mine]
        bars = [
            [max(row[FRECHET] - row["low"], 0) for row in mine],
            [row["high"] - row[FRECHET] for row in mine],
        ]
        style = {"marker": "osD^v<>Pp*hX"[index % 12], "ms": 4, "lw": 1, "capsize": 2}
        axes.errorbar(nfe, value, yerr=bars, label=name, color=colours[(2 * index + index // 10) % 20], **style)
    axes.plot(*zip(*front(able), strict=True), color="0.6", lw=6, alpha=0.5, zorder=0, label="Pareto front")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted({row["passes"] for row in able}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_numbers(axes.yaxis)
    axes.set_xlabel("network passes")
    axes.set_ylabel(f"Fréchet distance ({bench.extractor_name} features)")
    axes.legend(fontsize=7, ncols=2)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")


def front(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """The Pareto front: the least distance of all samplers in at most so many passes, as (passes, distance).

    All samplers were measured at the same numbers of passes allowed. Those of two passes a step may make fewer, at
    which the others were not measured: a sampler is not on the front for having made 4 of 5.

    Args:
        rows: Rows of curves.csv that have a value.
    """
    allowed = sorted({row["passes"] for row in rows})
    return [(most, min(row[FRECHET] for row in rows if row["passes"] <= most)) for most in allowed]


def to_wandb(project: str, out: Path, rows: list[dict[str, Any]], picture: Path) -> None:
    """Log the curves as a table and the picture to a project."""
    import wandb

    from sde_diffusion.training.loggers import WandbLogger

    logger = WandbLogger(out, project=project)
    run = logger.experiment
    run.log({"curves": wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})
    run.log({"plot": wandb.Image(str(picture))})
    logger.finalize("success")
