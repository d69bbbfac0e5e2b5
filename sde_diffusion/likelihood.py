"""`python -m sde_diffusion.likelihood ckpt=PATH split=test out=DIR`: how likely are data under a checkpoint's model?"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from sde_diffusion import pictures, record
from sde_diffusion.cli import command, plain, whole
from sde_diffusion.density import Decoder, GaussianDecoder, GaussianPrior, LevelDecoder, best_place
from sde_diffusion.density.scoring import SCORES, Scoring
from sde_diffusion.density.summary import mean_and_error, per_dim, plus_minus, summary
from sde_diffusion.errors import UserError
from sde_diffusion.files import fresh, writing
from sde_diffusion.loading import checkpoint_digest, load_model
from sde_diffusion.outliers import compare
from sde_diffusion.overrides import setting
from sde_diffusion.parts import Parts, forget
from sde_diffusion.scored_data import ScoredData, against_data, own_data

if TYPE_CHECKING:
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)

_PLACING_ITEMS = 200
"""Validation items, at most, by which the ELBO's decoder is placed."""


def likelihood(cfg: DictConfig) -> dict[str, Any]:
    """Exact log-likelihood and ELBO of data; writes `likelihood.json`, `likelihood.csv` and `likelihood.png`.

    A run that was interrupted or killed goes on, when it is started again, after its last whole batch.

    Args:
        cfg: The composed configuration of conf/likelihood.yaml.

    Returns:
        What `likelihood.json` holds.

    Raises:
        UserError: If the configuration, the checkpoint or the data do not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    names = ("likelihood.json", "likelihood.csv", "likelihood.png")
    result, table, picture = (fresh(out / name, cfg.overwrite) for name in names)
    _check(cfg)
    model, device = load_model(cfg)
    data, splits = own_data(cfg, model)
    try:
        scoring = Scoring(
            levels=data.levels,
            draws=cfg.draws,
            trace=cfg.trace,
            probes=cfg.probes,
            flow={key: cfg[key] for key in ("rtol", "atol", "method", "steps", "max_nfe")},
            **_bound(cfg, model, device, data),
        )
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    matched = data.matched_prior(model.denoiser.sde)
    prior = matched if cfg.prior == "matched" else GaussianPrior.standard(model.denoiser.sde)
    run = _Run(cfg, model, device, scoring, prior, out / ".scores")
    begin = time.perf_counter()
    other = against_data(cfg, model, data)
    try:
        scores = {split: run.score(data, split) for split in splits}
        strange = None if other is None else run.score(other, other.splits[0])
    except KeyboardInterrupt:
        log.warning("what was scored is kept: the same command with %s resumes there", setting("out", out))
        raise
    size = math.prod(model.data["shape"])
    reports = {split: summary(values, size, scoring.levels) for split, values in scores.items()}
    report: dict[str, Any] = {
        **reports[splits[-1]],
        "data": data.name,
        "split": splits[-1],
        **({"splits": reports} if len(splits) > 1 else {}),
        "n_wanted": data.count(splits[-1]),
        "target_se": cfg.target_se,
        "trained_on": model.data["name"],
        "dims": size,
        "levels": scoring.levels,
        "uniform": None if scoring.levels is None else math.log2(scoring.levels),  # bits/dim of knowing nothing
        "convention": scoring.convention,
        "draws": cfg.draws,
        "prior": cfg.prior,
        "terminal_kl": matched.kl(prior, size),  # nats
        "method": cfg.method,
        "rtol": cfg.rtol,
        "atol": cfg.atol,
        "steps": cfg.steps,
        "trace": cfg.trace,
        "probes": cfg.probes,
        "elbo_settings": None if cfg.elbo is None else {**plain(cfg.elbo), "t_end": (scoring.bound or {})["t_end"]},
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "label": cfg.label,
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": run.plan["checkpoint"],
        **record.provenance(),
    }
    if other is not None and strange is not None:
        theirs = summary(strange, size, scoring.levels)
        report["against"] = {
            "data": other.name,
            **theirs,
            **compare(scores[splits[-1]]["log_prob"], strange["log_prob"]),
            **({"by_elbo": compare(scores[splits[-1]]["elbo"], strange["elbo"])} if "elbo" in strange else {}),
        }
    every = scores if other is None or strange is None else {**scores, other.name: strange}
    found = {name: parts["log_prob"][parts["log_prob"].isfinite()] for name, parts in every.items()}
    values = {name: per_dim(some, size, scoring.levels) for name, some in found.items() if len(some)}
    if values:
        pictures.save(pictures.histogram(values, "bits/dim" if scoring.levels else "nats/dim"), picture)
    report["seconds"] = run.seconds + time.perf_counter() - begin - run.scored_now
    _write_table(table, scores if strange is None else {**scores, "against": strange})
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    forget(out / ".scores")
    _tell(report, reports, [result, table, *([picture] if values else [])])
    return report


class _Run:
    """Scores data batch by batch, with a progress bar, keeping finished batches in files."""

    def __init__(
        self,
        cfg: DictConfig,
        model: ScoreModel,
        device: torch.device,
        scoring: Scoring,
        prior: GaussianPrior,
        folder: Path,
    ) -> None:
        self.cfg, self.model, self.device = cfg, model, device
        self.scoring, self.prior = scoring, prior
        settings = {
            key: value for key, value in plain(cfg).items() if key not in ("ckpt", "out", "overwrite", "device")
        }
        self.plan = {"checkpoint": checkpoint_digest(cfg.ckpt), "settings": settings}
        self.folder = folder
        self.seconds, self.scored_now = 0.0, 0.0
        self.most = int(cfg.batch_size)  # rows at once, halved when memory runs out

    def score(self, data: ScoredData, split: str) -> dict[str, Tensor]:
        """Scores of each item of a split, in order, until the standard error is small enough."""
        cfg = self.cfg
        kept = Parts(
            self.folder / f"{data.role}-{split}", {**self.plan, "data": data.name, "split": split}, cfg.overwrite
        )
        there = {int(part["start"]): part for part in kept.load()}
        n = data.count(split)
        if there:
            known = sum(len(part["index"]) for part in there.values())
            log.info("going on after %d of %d items of %s %s, kept in %s", known, n, data.name, split, kept.folder)
        words = (data.name, split)
        parts: list[dict[str, Tensor]] = []
        columns = (
            TextColumn(f"{data.name} {split}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[so_far]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, transient=True) as progress:
            progress.disable = not progress.console.is_terminal
            task = progress.add_task("likelihood", total=n, so_far="")
            for start in range(0, n, cfg.batch_size):
                stop = min(n, start + cfg.batch_size)
                part = there.get(start)
                if part is None:
                    part = self._batch(data, split, start, stop)
                    kept.add(start, part)
                self.seconds += float(part["seconds"])
                parts.append(part)
                mean, error = mean_and_error(
                    per_dim(torch.cat([p["log_prob"] for p in parts]), data.size, self.scoring.levels)
                )
                unit = "bits/dim" if self.scoring.levels else "nats/dim"
                progress.update(task, completed=stop, so_far=f"{plus_minus(mean, error)} {unit}")
                reached = cfg.target_se is not None and error is not None and error <= cfg.target_se
                if reached and len(parts) > 1:
                    log.info("%s %s: target_se=%g reached with %d of %d items", *words, cfg.target_se, stop, n)
                    break
            else:
                if cfg.target_se is not None:
                    log.warning(
                        "%s %s: all %d items give a standard error of %s, more than target_se=%g",
                        *(*words, n, "nothing known" if error is None else f"{error:.4g}", cfg.target_se),
                    )
        scores = {name: torch.cat([part[name] for part in parts]) for name in ("index", *SCORES) if name in parts[0]}
        order = scores["index"].argsort()
        return {name: values[order] for name, values in scores.items()}

    def _batch(self, data: ScoredData, split: str, start: int, stop: int) -> dict[str, Tensor]:
        begin = time.perf_counter()
        pieces = list(self._pieces(data, split, data.items(split)[start:stop]))
        seconds = time.perf_counter() - begin
        self.scored_now += seconds
        part = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        part["index"] = data.items(split)[start:stop].double()
        return {**part, "start": torch.tensor(start), "seconds": torch.tensor(seconds, dtype=torch.float64)}

    def _pieces(self, data: ScoredData, split: str, items: Tensor) -> Iterator[dict[str, Tensor]]:
        """The scores of items, as many at once as memory allows."""
        while len(items):
            some = items[: self.most]
            x, conditions = data.batch(split, some, self.device)
            seeds = [self.cfg.seed + item for item in some.tolist()]
            try:
                yield self.scoring(self.model.denoiser, x, seeds, self.prior, **conditions)
            except UserError as error:
                if data.role == "own":
                    raise
                log.warning(
                    "%d items of %s make a batch beyond the solver, and count as impossible: %s",
                    *(len(x), data.name, error),
                )
                yield self.scoring.impossible(self.model.denoiser, x, seeds, self.prior, **conditions)
            except RuntimeError as error:  # of which torch's OutOfMemoryError is one
                if len(some) < 2 or not _is_memory(error):
                    raise
                if self.most == self.cfg.batch_size:
                    log.warning(
                        "memory does not hold %d items at once: going on with half as many, or fewer", self.most
                    )
                self.most = len(some) // 2
                continue
            except ValueError as error:
                raise UserError(str(error)) from error
            items = items[len(some) :]


def _bound(cfg: DictConfig, model: ScoreModel, device: torch.device, data: ScoredData) -> dict[str, Any]:
    """The ELBO's decoder and arguments, with the decoder's place chosen on the validation split."""
    if cfg.elbo is None:
        return {"bound": None}
    bound = plain(cfg.elbo)
    name = bound.pop("decoder")
    if name not in ("frequencies", "uniform"):
        raise UserError(f"elbo.decoder must be frequencies or uniform; got {name}")
    decoder: Decoder = GaussianDecoder()
    if data.levels is not None:
        weighted = name == "frequencies"
        decoder = LevelDecoder.frequencies(data.levels, data.some("train")) if weighted else LevelDecoder(data.levels)
    if bound["t_end"] is None:
        sde = model.denoiser.sde
        x = data.some("val", _PLACING_ITEMS).to(device)
        bound["t_end"] = best_place(
            model.denoiser, decoder, x, decoder.places(sde), steps=None, draws=32, rows=cfg.batch_size
        )
    return {"decoder": decoder, "bound": {**bound, "rows": cfg.batch_size}}


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or ("alloc" in str(error) and "memory" in str(error))


def _check(cfg: DictConfig) -> None:
    for key in ("batch_size", "draws", "probes"):
        whole(cfg, key, 1)
    whole(cfg, "seed", -(2**63))
    for key in ("n", "steps"):
        if cfg[key] is not None:
            whole(cfg, key, 1)
    if cfg.elbo is not None:
        if not isinstance(cfg.elbo, DictConfig):
            raise UserError(f"elbo must be null, or its settings be given (elbo.steps=, ...); got elbo={cfg.elbo}")
        for key in ("steps", "draws"):
            if cfg.elbo[key] is not None:
                whole(cfg, f"elbo.{key}", 1)
        t_end = cfg.elbo.t_end
        if t_end is not None and (not isinstance(t_end, int | float) or isinstance(t_end, bool)):
            raise UserError(f"elbo.t_end must be a time, or null for the best one; got elbo.t_end={t_end}")
    for key in ("rtol", "atol", *(["target_se"] if cfg.target_se is not None else [])):
        if not isinstance(cfg[key], int | float) or isinstance(cfg[key], bool) or not cfg[key] > 0:
            raise UserError(f"{key} must be a positive number; got {key}={cfg[key]}")
    if cfg.prior not in ("standard", "matched"):
        raise UserError(f"prior must be standard (N(0, sigma_T^2)) or matched (the data's moments); got {cfg.prior}")


def _write_table(path: Path, scores: dict[str, dict[str, Tensor]]) -> None:
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        columns = list(next(iter(scores.values())))
        table.writerow(["split", *columns])
        for split, values in scores.items():
            rows = torch.stack([values[name] for name in columns], 1).tolist()
            table.writerows([split, *(f"{value:.10g}" for value in row)] for row in rows)


def _tell(report: dict[str, Any], reports: dict[str, dict[str, Any]], paths: list[Path]) -> None:
    unit = "bits_per_dim" if "bits_per_dim" in report else "nats_per_dim"
    for split, values in reports.items():
        figure = plus_minus(values[unit], values["std_error"])
        line = f"{report['data']} {split}: -log p = {figure} {unit.replace('_per_', '/')}"
        if "elbo" in values:
            bound = "-ELBO" if report["uniform"] is None else "of the levels themselves at most (-ELBO)"
            line += f"; {bound} {plus_minus(values['elbo'][unit], values['elbo']['std_error'])}"
        items = "item" if values["n"] == 1 else "items"
        log.info("%s  (%d %s, %.0f passes)", line, values["n"], items, values["nfe"]["mean"] or math.nan)
    known = "" if report["uniform"] is None else f"; {report['uniform']:.3f} is that of the uniform distribution"
    log.info("  lower is better%s; prior=%s, trace=%s, label=%s", *(known, *(report[k] for k in _TOLD)))
    log.info("  %s", report["convention"])
    if "against" in report:
        other = report["against"]
        log.info(
            "against %s: %s; AUROC %.3f, of typicality %.3f",
            *(other["data"], plus_minus(other[unit], other["std_error"]), other["auroc"], other["auroc_typicality"]),
        )
        log.info("  %s: %s", other["data"], other["verdict"])
        if "by_elbo" in other:
            bound = other["by_elbo"]
            figures = (bound["auroc"], bound["auroc_typicality"], bound["verdict"])
            log.info("  by the ELBO: AUROC %.3f, of typicality %.3f; %s", *figures)
    for path in paths:
        log.info("%s", path)


_TOLD = ("prior", "trace", "label")
"""Settings that the printed figures depend on most."""


def main() -> None:
    """Entry point of the command."""
    command("likelihood", likelihood)


if __name__ == "__main__":
    main()
