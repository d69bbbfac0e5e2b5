"""Which sampler, in how many network passes? `python -m benchmarks.nfe_fid ckpt=PATH out=DIR`, or `ckpt=[A,B,C]`

It measures the Fréchet distance of each sampler at each number of passes, with confidence intervals, from the same
seeds. The results are `curves.csv`, `curves.png` (log-log, with the Pareto front) and `table.md`, which says for each
number of passes which sampler is best and whether its lead over the second is significant. Small numbers of passes are
measured first. With `tune=true`, grids for few passes are found first (`grid_tuning`), and measured beside the
samplers' own. With several checkpoints the rows are named RUN/SAMPLER and compared with each other. A run that was
interrupted or killed resumes when it is started again. Settings: conf/nfe_fid.yaml.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from benchmarks.curves import FRECHET, draw, markdown, to_wandb
from benchmarks.drawn_points import Bench, Drawn, Point
from benchmarks.grid_tuning import add_rows, tune
from sde_diffusion.checks.hints import check
from sde_diffusion.commands.app import command, resolved
from sde_diffusion.commands.tuned_grids import with_placeholder
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import difference, interval
from sde_diffusion.sampling import Sampler
from sde_diffusion.storage import progress, record
from sde_diffusion.storage.files import forget, fresh, writing

log = logging.getLogger(__name__)


def nfe_fid(cfg: DictConfig) -> dict[str, Any]:
    """Measure and write `curves.csv`, `curves.png`, `table.md` and `settings.json`.

    Args:
        cfg: The composed configuration of conf/nfe_fid.yaml.

    Returns:
        The best sampler at each number of passes.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results exist already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    settings = fresh(out / "settings.json", cfg.overwrite, out / ".points")
    table, picture, words = (out / name for name in ("curves.csv", "curves.png", "table.md"))
    add_rows(cfg)
    _check(cfg)
    bench = Bench(cfg, out / ".points")
    if cfg.tune:
        tune(cfg, bench)
    points = [Point(name, nfe, seed) for nfe in sorted(cfg.nfe) for name in bench.rows for seed in cfg.seeds]
    found: dict[Point, Drawn] = {}
    if kept := len(list((out / ".points").glob("*-*"))):
        log.info("resuming: %d of %d points are finished or begun", kept, len(points))
    with progress.bar("network passes", sum(point.nfe for point in points)) as bar:
        for point in points:
            bar.update(name=f"{point.name}, {point.nfe} passes")
            found[point] = bench.measure(point)
            bar.update(advance=point.nfe)
    rows = [_row(cfg, bench, name, nfe, found) for nfe in sorted(cfg.nfe) for name in bench.rows]
    best = [_best(cfg, bench, nfe, rows, found) for nfe in sorted(cfg.nfe)]
    text = markdown(cfg, bench, rows, best)
    with writing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, bench, picture)
    with writing(words) as temporary:
        temporary.write_text(text)
    about = {
        "settings": resolved(cfg),
        "checkpoint_sha256": {name: model.digest for name, model in bench.models.items()},
        "batch_sizes": sorted({size for one in found.values() for size in one.batch_sizes}),  # as memory allowed
        **record.provenance(),
    }
    if cfg.wandb:
        to_wandb(str(cfg.wandb), out, rows, picture)
    with writing(settings) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n")
    forget(out / ".points")
    log.info("%s", text)
    for path in (table, picture, words, settings):
        log.info("%s", path)
    return {str(one["nfe"]): one["sampler"] for one in best}


def _check(cfg: DictConfig) -> None:
    if cfg.exact and cfg.guidance is not None:
        raise UserError("exact=true puts a closed form without classes in the network's place: leave guidance= out")
    gaps = [b - a for a, b in itertools.pairwise(sorted(cfg.seeds))]
    if gaps and min(gaps) < cfg.n:
        raise UserError(
            f"sets of n={cfg.n} samples from seeds={list(cfg.seeds)} overlap: first seeds lie n apart or more"
        )
    if len(set(cfg.nfe)) < len(cfg.nfe):
        raise UserError(f"nfe names a number of passes twice: {list(cfg.nfe)}")
    if cfg.long is not None and cfg.long <= max(cfg.nfe):
        raise UserError(f"long must be more than the most of nfe, {max(cfg.nfe)}; got long={cfg.long} (null: none)")
    for name, entry in resolved(cfg.samplers).items():  # before the measurements, which may take hours
        key, steps = f"samplers.{name}.sampler", max((max(cfg.nfe) - entry["extra"]) // entry["each"], 1)
        check(key, build({**with_placeholder(entry["sampler"]), "steps": steps}, key), Sampler)


def _row(cfg: DictConfig, bench: Bench, name: str, nfe: int, found: dict[Point, Drawn]) -> dict[str, Any]:
    """The row of curves.csv for a sampler at a number of passes; several sets of seeds are combined."""
    measured = [found[Point(name, nfe, seed)] for seed in cfg.seeds]
    row: dict[str, Any] = {"sampler": name, "passes": nfe, "nfe": measured[0].nfe}
    reasons = [one.reason for one in measured if one.reason]
    if reasons:
        return {
            **row,
            FRECHET: math.nan,
            "low": math.nan,
            "high": math.nan,
            "seconds": 0.0,
            "reason": reasons[0],
        }
    measure = interval(bench.metric(measured), confidence=cfg.confidence)[FRECHET]
    seconds = sum(one.seconds for one in measured)
    figures = {FRECHET: measure.value, "low": measure.low, "high": measure.high, "seconds": seconds}
    return {**row, **figures, "reason": ""}


def _best(
    cfg: DictConfig, bench: Bench, nfe: int, rows: list[dict[str, Any]], found: dict[Point, Drawn]
) -> dict[str, Any]:
    """The best sampler at a number of passes, compared with the others and with its own long walk."""
    able = sorted((row for row in rows if row["passes"] == nfe and not row["reason"]), key=lambda row: row[FRECHET])
    if not able:
        raise UserError(f"no sampler can do with {nfe} passes: {rows[0]['reason']}")
    first = able[0]
    mine = bench.metric([found[Point(first["sampler"], nfe, seed)] for seed in cfg.seeds])
    result = {
        "nfe": nfe,
        "sampler": first["sampler"],
        FRECHET: first[FRECHET],
        "next": "",
        "long": math.nan,
        "over": "",
    }
    gaps = []
    for row in able[1:]:
        other = bench.metric([found[Point(row["sampler"], nfe, seed)] for seed in cfg.seeds])
        gaps.append(difference(mine, other, confidence=cfg.confidence)[FRECHET])
    if gaps:
        # All others are compared: the third may be less correlated with the best than the second is.
        ahead = sum(gap.high < 0 for gap in gaps)
        verdict = f"significant against {'all' if ahead == len(gaps) else f'{ahead} of {len(gaps)}'}"
        gap = gaps[0]
        result["next"] = f"{able[1]['sampler']}, by {-gap.value:.3f} [{-gap.high:.3f}, {-gap.low:.3f}]; {verdict}"
    if cfg.long:
        walk = [bench.measure(Point(first["sampler"], cfg.long, seed)) for seed in cfg.seeds]
        if not any(one.reason for one in walk):
            end = bench.metric(walk)
            result["long"] = float(end.compute())
            gap = difference(mine, end, confidence=cfg.confidence)[FRECHET]
            near = "; within 10%" * (gap.high < 0.1 * result["long"])
            result["over"] = (
                f"{first[FRECHET] / result['long']:.3f} ({gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]{near})"
            )
    return result


def main() -> None:
    command("nfe_fid", nfe_fid)


if __name__ == "__main__":
    main()
