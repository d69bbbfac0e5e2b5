"""`python -m sde_diffusion.likelihood ckpt=PATH split=test out=DIR`: how likely are data under a checkpoint's model?"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import is_given, plain
from sde_diffusion.commands.loading import denoiser_of, load_model
from sde_diffusion.commands.outliers import compare
from sde_diffusion.commands.scored_data import ScoredData, against_data, own_data, row_data
from sde_diffusion.commands.scoring_run import ScoringRun
from sde_diffusion.density import Decoder, GaussianDecoder, GaussianPrior, LevelDecoder, best_place
from sde_diffusion.density.scoring import COLUMNS, Scoring
from sde_diffusion.density.summary import in_own_units, per_dim, plus_minus, quoted, summary
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of, pictures
from sde_diffusion.sampling.ode_adams import ROUGH
from sde_diffusion.storage import record
from sde_diffusion.storage.files import forget, fresh, writing

if TYPE_CHECKING:
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)

_PLACING_ITEMS = 200
"""Validation items, at most, by which the ELBO's decoder is placed."""


def likelihood(cfg: DictConfig) -> dict[str, Any]:
    """Exact log-likelihood and ELBO of data; writes `likelihood.json`, `likelihood.csv` and `likelihood.png`.

    An interrupted or killed run resumes after its last finished batch when the command is started again.

    Args:
        cfg: The composed configuration of conf/likelihood.yaml.

    Returns:
        What `likelihood.json` holds.

    Raises:
        UserError: If the configuration, the checkpoint or the data do not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    result = fresh(out / "likelihood.json", cfg.overwrite, out / ".scores")
    table, picture = out / "likelihood.csv", out / "likelihood.png"
    _check(cfg)
    model, device = load_model(cfg)
    data, splits = own_data(cfg, model)
    scored, splits = (data, splits) if cfg.x is None else (row_data(cfg, model), ["rows"])
    flow = {key: cfg[key] for key in ("rtol", "atol", "method", "steps", "max_nfe")}
    try:
        scoring = Scoring(
            levels=data.levels,
            draws=cfg.draws,
            trace=cfg.trace,
            probes=cfg.probes,
            flow=flow,
            **_bound(cfg, model, device, data),
        )
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    matched = data.matched_prior(model.denoiser.sde)
    prior = matched if cfg.prior == "matched" else GaussianPrior.standard(model.denoiser.sde)
    run = ScoringRun(cfg, model, device, scoring, prior, out / ".scores")
    begin = time.perf_counter()
    other = against_data(cfg, model, data)
    scores = {split: run.score(scored, split) for split in splits}
    strange = None if other is None else run.score(other, other.splits[0])
    size = math.prod(model.data["shape"])
    if not any(bool(values["log_prob"].isfinite().any()) for values in scores.values()):
        raise UserError(f"no solver brings an item of {scored.name} to the prior: try method=dopri5, or larger rtol=")
    units = None if scoring.levels is not None else modality_of(model.data).units
    for values in (*scores.values(), *([] if strange is None or units is None else [strange])):
        if units is not None:
            values["log_density"] = values["log_prob"] - units.log_volume(size)
    reports = {split: summary(values, size, scoring.levels) for split, values in scores.items()}
    own = None if units is None else in_own_units(scores[splits[-1]]["log_density"], units, size)
    report = _report(cfg, model, scored, run, reports, own_units=own, terminal_kl=matched.kl(prior, size))  # kl: nats
    if other is not None and strange is not None:
        report["against"] = _against(other.name, scores[splits[-1]], strange, size, scoring.levels)
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


def _report(
    cfg: DictConfig,
    model: ScoreModel,
    scored: ScoredData,
    run: ScoringRun,
    reports: dict[str, dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """What `likelihood.json` holds: the last split's figures, `more`, and what they are of."""
    split, levels = list(reports)[-1], run.scoring.levels
    settings = ("target_se", "draws", "prior", "method", "rtol", "atol", "steps", "trace", "probes")
    t_end = (run.scoring.bound or {}).get("t_end")
    return {
        **reports[split],
        "data": scored.name,
        "split": split,
        **({"splits": reports} if len(reports) > 1 else {}),
        "n_wanted": scored.count(split),
        "trained_on": model.data["name"],
        "dims": math.prod(model.data["shape"]),
        "levels": levels,
        "uniform": None if levels is None else math.log2(levels),  # bits/dim of knowing nothing
        "convention": run.scoring.convention,
        "columns": COLUMNS,
        "quote": quoted(reports[split], levels),
        **more,
        **{key: cfg[key] for key in (*settings, "batch_size", "seed")},
        "label": scored.said("label"),
        "conditions": {name: scored.said(name) for name in model.conditions if name != "label"},
        "batch_sizes": run.sizes,  # those that memory allowed
        "guidance": plain(cfg.guidance),
        "elbo_settings": None if cfg.elbo is None else {**plain(cfg.elbo), "t_end": t_end},
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": run.plan["checkpoint"],
        **record.provenance(),
    }


def _against(
    name: str, own: dict[str, Tensor], others: dict[str, Tensor], size: int, levels: int | None
) -> dict[str, Any]:
    """The scores of other data, and how well they are told from one's own."""
    return {
        "data": name,
        **summary(others, size, levels),
        **compare(own["log_prob"], others["log_prob"]),
        **({"by_elbo": compare(own["elbo"], others["elbo"])} if "elbo" in others else {}),
    }


def _bound(cfg: DictConfig, model: ScoreModel, device: torch.device, data: ScoredData) -> dict[str, Any]:
    """The ELBO's decoder and arguments, with the decoder's place chosen on the validation split."""
    if cfg.elbo is None:
        return {"bound": None}
    bound = plain(cfg.elbo)
    name = bound.pop("decoder")
    decoder: Decoder = GaussianDecoder()
    if data.levels is not None:
        weighted = name == "frequencies"
        decoder = LevelDecoder.frequencies(data.levels, data.some("train")) if weighted else LevelDecoder(data.levels)
    if bound["t_end"] is None:
        denoiser = denoiser_of(cfg, model)
        x, conditions = data.batch("val", data.some_items("val", _PLACING_ITEMS), device)
        places, settings = decoder.places(denoiser.sde), {"steps": None, "draws": 32, "rows": cfg.batch_size}
        bound["t_end"] = best_place(denoiser, decoder, x, places, **settings, **conditions)
    return {"decoder": decoder, "bound": {**bound, "rows": cfg.batch_size}}


def _check(cfg: DictConfig) -> None:
    if cfg.x is not None and is_given("split"):
        raise UserError(f"x= scores the rows of a file, split= those of a data set: leave split={cfg.split} out")


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
    per = unit.replace("_per_", "/")
    for split, values in reports.items():
        figure = plus_minus(values[unit], values["std_error"])
        line = f"{report['data']} {split}: -log p = {figure} {per}"
        if "elbo" in values:
            bound = "-ELBO" if report["uniform"] is None else "of the levels themselves at most (-ELBO)"
            line += f"; {bound} {plus_minus(values['elbo'][unit], values['elbo']['std_error'])}"
        items = "item" if values["n"] == 1 else "items"
        log.info("%s  (%d %s, %.0f passes)", line, values["n"], items, values["nfe"]["mean"] or math.nan)
        if "impossible" in values:
            log.warning("  %d beyond the solver count as impossible, and are left out", values["impossible"])
        if "solver_error" in values:
            off = values["solver_error"]
            log.warning(
                "  %s: rtol=%g was out of reach for %d %s; the solver settled for what some hundred passes tell, and "
                "an item's figure may be off by %.2g %s (the difference to a solution with four times the tolerance)",
                *(ROUGH, report["rtol"], off["items"], "item" if off["items"] == 1 else "items", off[unit], per),
            )
    known = "" if report["uniform"] is None else f"; {report['uniform']:.3f} is that of the uniform distribution"
    log.info("  lower is better; ± is one standard error of the mean over the items%s", known)
    log.info("  prior=%s, trace=%s, label=%s", *(report[key] for key in _TOLD))
    if report["own_units"] is not None:
        own = report["own_units"]
        told = plus_minus(own["log_density"], own["std_error"])
        log.info("  in the data's own units: log p = %s nats, less log-volume %.6g", told, own["log_volume"])
    if "elbo" in report:
        log.info("  to quote: %.4f %s, %s", report["quote"][unit] or math.nan, per, report["quote"]["because"])
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
