"""Which sampler, in how many network passes? `python -m benchmarks.nfe_fid ckpt=PATH out=DIR`

The Fréchet distance of each sampler's samples at each number of passes, with confidence intervals, all from the same
seeds: `curves.csv`, `curves.png` (log-log, with the Pareto front) and `table.md`, which says for each number of passes
which sampler is best and whether the difference to the next is significant. Few passes come first. A run that was
interrupted or killed goes on when it is started again. Settings: conf/nfe_fid.yaml.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from sde_diffusion.cli import command, plain, whole
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser, EmpiricalDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.files import fresh, writing
from sde_diffusion.levels import from_levels, to_levels
from sde_diffusion.loading import checkpoint_digest, load_data, load_model
from sde_diffusion.metrics import FrechetDistance, Pixels, difference, extractor_names, load_extractor
from sde_diffusion.parts import Parts, forget
from sde_diffusion.sampling import Sampler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One measurement to make: a sampler at a number of passes from a set of seeds."""

    name: str
    nfe: int
    seed: int


@dataclass
class Measured:
    """A point's samples, as features [n, F], the passes they took and the seconds; or why there are none."""

    features: Tensor
    nfe: int
    seconds: float
    reason: str = ""


class Bench:
    """Draws and keeps the points of a configuration."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        model, self.device = load_model(cfg)
        self.cfg = cfg
        self.data = load_data(cfg, model)
        self.denoiser: Denoiser = model.denoiser
        if cfg.exact:
            self.denoiser = EmpiricalDenoiser(model.denoiser.sde, self.data.tensor("train")).to(self.device)
        self.extractor_name = cfg.extractor or (self.data.name if self.data.name in extractor_names() else "pixels")
        self.extractor = load_extractor(self.extractor_name, self.data.shape).to(self.device)
        self.real = self.features(self.data.tensor(cfg.split))
        elsewhere = ("ckpt", "out", "overwrite", "device", "wandb", "long", "nfe", "samplers")
        self.settings = {key: value for key, value in plain(cfg).items() if key not in elsewhere}
        self.digest = checkpoint_digest(cfg.ckpt)
        self.folder = folder

    def features(self, x: Tensor) -> Tensor:
        """Features of samples [N, *shape], as they would be stored: on the levels, if the data have levels."""
        levels = self.data.levels
        x = x if levels is None else from_levels(to_levels(x, levels), levels)
        with torch.no_grad():
            return torch.cat([self.extractor(part.to(self.device)).cpu() for part in torch.split(x, 1000)])

    def sampler(self, point: Point) -> tuple[dict[str, Any], Sampler]:
        """A point's sampler and its configuration."""
        entry = plain(self.cfg.samplers[point.name])
        steps = (point.nfe - entry["extra"]) // entry["each"]
        config = {**entry["sampler"], "steps": steps}
        return config, build(config)

    def measure(self, point: Point) -> Measured:
        """A point's samples, drawn now or by an earlier run."""
        plan = {"checkpoint": self.digest, "settings": self.settings, "point": [point.name, point.nfe, point.seed]}
        try:
            config, sampler = self.sampler(point)
        except (UserError, ValueError) as error:
            return Measured(torch.empty(0), 0, 0.0, str(error))
        kept = Parts(self.folder / f"{point.name}-{point.nfe}-{point.seed}", {**plan, "sampler": config}, True)
        parts = kept.load()
        done = sum(len(part["features"]) for part in parts)
        seeds = range(point.seed, point.seed + self.cfg.n)
        for start in range(done, len(seeds), self.cfg.batch_size):
            some = seeds[start : start + self.cfg.batch_size]
            begin = time.perf_counter()
            try:
                drawn = sampler(self.denoiser, (len(some), *self.data.shape), seeds=some, device=self.device)
            except (UserError, ValueError) as error:
                return Measured(torch.empty(0), 0, 0.0, str(error))
            seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
            part = {"features": self.features(drawn.x), "nfe": torch.tensor(drawn.nfe), "seconds": seconds}
            kept.add(start, part)
            parts.append(part)
        features = torch.cat([part["features"] for part in parts])
        return Measured(features, int(parts[0]["nfe"]), sum(float(part["seconds"]) for part in parts))

    def metric(self, measured: list[Measured]) -> FrechetDistance:
        """The Fréchet distance of some points' samples together."""
        metric = FrechetDistance(Pixels(self.real.shape[1:]), keep_features=True)
        metric.update(self.real, real=True)
        for one in measured:
            metric.update(one.features, real=False)
        return metric


def nfe_fid(cfg: DictConfig) -> dict[str, Any]:
    """Measure and write `curves.csv`, `curves.png` and `table.md`.

    Args:
        cfg: The composed configuration of conf/nfe_fid.yaml.

    Returns:
        The best sampler at each number of passes.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    names = ("curves.csv", "curves.png", "table.md")
    table, picture, words = (fresh(out / name, cfg.overwrite) for name in names)
    for key in ("n", "batch_size"):
        whole(cfg, key, 1)
    bench = Bench(cfg, out / ".points")
    points = [Point(name, nfe, seed) for nfe in sorted(cfg.nfe) for name in cfg.samplers for seed in cfg.seeds]
    found: dict[Point, Measured] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), transient=True) as progress:
        progress.disable = not progress.console.is_terminal
        task = progress.add_task("", total=sum(point.nfe for point in points))
        for point in points:
            progress.update(task, description=f"{point.name}, {point.nfe} passes")
            found[point] = bench.measure(point)
            progress.advance(task, point.nfe)
    rows = [_row(cfg, bench, name, nfe, found) for nfe in sorted(cfg.nfe) for name in cfg.samplers]
    best = [_best(cfg, bench, nfe, rows, found) for nfe in sorted(cfg.nfe)]
    text = _markdown(cfg, bench, rows, best)
    with writing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _draw(rows, bench, picture)
    with writing(words) as temporary:
        temporary.write_text(text)
    if cfg.wandb:
        _to_wandb(str(cfg.wandb), out, rows, picture)
    forget(out / ".points")
    log.info("%s", text)
    for path in (table, picture, words):
        log.info("%s", path)
    return {str(one["nfe"]): one["sampler"] for one in best}


def _row(cfg: DictConfig, bench: Bench, name: str, nfe: int, found: dict[Point, Measured]) -> dict[str, Any]:
    """What curves.csv says of a sampler at a number of passes; with several sets of seeds, of all samples together."""
    measured = [found[Point(name, nfe, seed)] for seed in cfg.seeds]
    row: dict[str, Any] = {"sampler": name, "passes": nfe, "nfe": measured[0].nfe}
    reasons = [one.reason for one in measured if one.reason]
    if reasons:
        return {**row, "frechet": math.nan, "low": math.nan, "high": math.nan, "seconds": 0.0, "reason": reasons[0]}
    interval = bench.metric(measured).interval(level=cfg.level)["frechet_distance"]
    seconds = sum(one.seconds for one in measured)
    figures = {"frechet": interval.value, "low": interval.low, "high": interval.high, "seconds": seconds}
    return {**row, **figures, "reason": ""}


def _best(
    cfg: DictConfig, bench: Bench, nfe: int, rows: list[dict[str, Any]], found: dict[Point, Measured]
) -> dict[str, Any]:
    """The best sampler at a number of passes, how it does against the next, and against its own long walk."""
    able = sorted((row for row in rows if row["passes"] == nfe and not row["reason"]), key=lambda row: row["frechet"])
    if not able:
        raise UserError(f"no sampler can do with {nfe} passes: {rows[0]['reason']}")
    first = able[0]
    result = {"nfe": nfe, "sampler": first["sampler"], "frechet": first["frechet"], "next": "", "long": math.nan}
    sets = [[found[Point(row["sampler"], nfe, seed)] for seed in cfg.seeds] for row in able[:2]]
    if len(able) > 1:
        gap = difference(*(bench.metric(one) for one in sets), level=cfg.level)["frechet_distance"]
        verdict = "significant" if gap.high < 0 else "not significant"
        result["next"] = f"{able[1]['sampler']}, by {-gap.value:.3f} [{-gap.high:.3f}, {-gap.low:.3f}], {verdict}"
    if cfg.long:
        walk = [bench.measure(Point(first["sampler"], cfg.long, seed)) for seed in cfg.seeds]
        result["long"] = float(bench.metric(walk).compute())
    return result


def _markdown(cfg: DictConfig, bench: Bench, rows: list[dict[str, Any]], best: list[dict[str, Any]]) -> str:
    passes = sorted(cfg.nfe)
    floor = FrechetDistance(Pixels(bench.real.shape[1:]))
    floor.update(bench.real, real=True)
    floor.update(bench.features(bench.data.tensor("train")), real=False)
    denoiser = "the closed-form denoiser of the training split" if cfg.exact else "the model"
    lines = [
        f"Fréchet distance of {cfg.n * len(cfg.seeds)} samples of {denoiser} ({bench.denoiser.sde}) to the {cfg.split} "
        f"split of {bench.data.name} ({len(bench.real)} items), {bench.extractor_name} features, first seeds "
        f"{', '.join(str(seed) for seed in cfg.seeds)}; {cfg.level:.0%} intervals in curves.csv. The training split's "
        f"own: {float(floor.compute()):.3f}.",
        "",
        "| passes | " + " | ".join(str(nfe) for nfe in passes) + " |",
        "|---" * (len(passes) + 1) + "|",
    ]
    for name in cfg.samplers:
        cells = []
        for nfe in passes:
            row = next(row for row in rows if row["sampler"] == name and row["passes"] == nfe)
            value = f"**{row['frechet']:.2f}**" if any(b["nfe"] == nfe and b["sampler"] == name for b in best) else None
            cells.append("–" if row["reason"] else value or f"{row['frechet']:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"| passes | best | its own at {cfg.long} | over that | before |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['nfe']} | {one['sampler']}, {one['frechet']:.3f} | {one['long']:.3f} | "
        f"{one['frechet'] / one['long']:.3f} | {one['next']} |"
        for one in best
    ]
    reasons = {row["sampler"]: row["reason"] for row in rows if row["reason"]}
    lines += ["", *(f"{name} is not there throughout: {reason}" for name, reason in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def _draw(rows: list[dict[str, Any]], bench: Bench, path: Path) -> None:
    figure = Figure(figsize=(8.0, 5.5), layout="constrained", dpi=110)
    axes = figure.subplots()
    able = [row for row in rows if not row["reason"]]
    for index, name in enumerate(dict.fromkeys(row["sampler"] for row in able)):
        mine = [row for row in able if row["sampler"] == name]
        nfe, value = [row["nfe"] for row in mine], [row["frechet"] for row in mine]
        bars = [[max(row["frechet"] - row["low"], 0) for row in mine], [row["high"] - row["frechet"] for row in mine]]
        style = {"marker": "osD^v<>Pp*hX"[index % 12], "ms": 4, "lw": 1, "capsize": 2}
        axes.errorbar(nfe, value, yerr=bars, label=name, color=f"C{index % 10}", **style)
    front, least = [], math.inf
    for row in sorted(able, key=lambda row: (row["nfe"], row["frechet"])):
        if row["frechet"] < least:
            least = row["frechet"]
            front.append((row["nfe"], least))
    axes.plot(*zip(*front, strict=True), color="0.6", lw=6, alpha=0.5, zorder=0, label="Pareto front")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("network passes")
    axes.set_ylabel(f"Fréchet distance ({bench.extractor_name} features)")
    axes.legend(fontsize=7, ncols=2)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")


def _to_wandb(project: str, out: Path, rows: list[dict[str, Any]], picture: Path) -> None:
    import wandb

    from sde_diffusion.training.loggers import WandbLogger

    run = WandbLogger(out, project=project).experiment
    run.log({"curves": wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})
    run.log({"plot": wandb.Image(str(picture))})
    run.finish()


def main() -> None:
    command("nfe_fid", nfe_fid)


if __name__ == "__main__":
    main()
