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

from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.overrides import hydra_value
from sde_diffusion.commands.app import is_overridden, resolved
from sde_diffusion.commands.loading import denoiser_of, load_model
from sde_diffusion.commands.outliers import compare
from sde_diffusion.commands.scored_data import ScoredData, against_data, own_data, row_data
from sde_diffusion.commands.scoring_run import ScoringRun
from sde_diffusion.config import build, build_around
from sde_diffusion.density import Decoder, GaussianDecoder, GaussianPrior, LevelDecoder, Prior, best_place
from sde_diffusion.density.scoring import COLUMNS, Scoring
from sde_diffusion.density.summary import in_own_units, per_dim, plus_minus, quoted, summary
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of, pictures
from sde_diffusion.sampling.ode_adams import ROUGH
from sde_diffusion.storage import record
from sde_diffusion.storage.files import forget, fresh, writing

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_PLACING_ITEMS = 200
"""Maximum number of validation items used to choose the time of the ELBO's decoder."""


def likelihood(cfg: DictConfig) -> dict[str, Any]:
    """Exact log-likelihood and ELBO of data; writes `likelihood.json`, `likelihood.csv` and `likelihood.png`.

    If the command is interrupted or killed, it resumes after its last finished batch when it is started again.

    Args:
        cfg: The composed configuration of conf/likelihood.yaml.

    Returns:
        The contents of `likelihood.json`.

    Raises:
        UserError: If the configuration, the checkpoint or the data do not allow it, or the results exist already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    result = fresh(out / "likelihood.json", cfg.overwrite, out / ".scores")
    table, picture = out / "likelihood.csv", out / "likelihood.png"
    _check(cfg)
    model, device = load_model(cfg)
    data, splits = own_data(cfg, model)
    scored, splits = (data, splits) if cfg.x is None else (row_data(cfg, model), ["rows"])
    other = against_data(cfg, model, data)
    matched = data.matched_prior(denoiser_of(model).sde)
    run = _run(cfg, model, device, data, matched, out / ".scores")
    scoring, begin = run.scoring, time.perf_counter()
    scores = {split: run.score(scored, split) for split in splits}
    other_scores = None if other is None else run.score(other, other.splits[0])
    size = math.prod(model.data["shape"])
    if not any(bool(values["log_prob"].isfinite().any()) for values in scores.values()):
        raise UserError(f"the solver takes no item of {scored.name} to t_max: try method=dopri5 or larger rtol=")
    units = None if scoring.levels is not None else modality_of(model.data).units
    for values in (*scores.values(), *([] if other_scores is None or units is None else [other_scores])):
        if units is not None:
            values["log_density"] = values["log_prob"] - units.log_volume(size)
    reports = {split: summary(values, size, scoring.levels) for split, values in scores.items()}
    own = None if units is None else in_own_units(scores[splits[-1]]["log_density"], units, size)
    report = _report(cfg, model, scored, run, reports, own_units=own, terminal_kl=run.prior.kl_of(matched, size))
    if other is not None and other_scores is not None:
        report["against"] = _against(other.name, scores[splits[-1]], other_scores, size, scoring.levels)
    every = scores if other is None or other_scores is None else {**scores, other.name: other_scores}
    drawn = _draw_histogram(picture, every, size, scoring.levels)
    report["seconds"] = run.seconds + time.perf_counter() - begin - run.scored_now
    _write_table(table, scores if other_scores is None else {**scores, "against": other_scores})
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    forget(out / ".scores")
    _log_report(report, reports, scored.in_words(), [result, table, *([picture] if drawn else [])])
    return report


def _run(
    cfg: DictConfig,
    model: GenerativeModel,
    device: torch.device,
    data: ScoredData,
    matched: GaussianPrior,
    folder: Path,
) -> ScoringRun:
    """What scores the data, as the configuration asks for."""
    flow = {key: build(resolved(cfg[key]), key) for key in ("rtol", "atol", "method", "steps", "max_nfe", "grid")}
    trace = build_around(resolved(cfg.trace), "trace", probes=cfg.probes)
    settings = {"draws": cfg.draws, "trace": trace, "probes": cfg.probes, "flow": flow}
    try:
        scoring = Scoring(levels=data.levels, **settings, **_bound(cfg, model, device, data))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    sde = denoiser_of(model).sde
    priors = {"standard": GaussianPrior.standard(sde), "matched": matched}
    prior: Prior = as_instance("prior", build_around(resolved(cfg.prior), "prior", sde=sde), priors, Prior)
    return ScoringRun(cfg, model, device, scoring, prior, folder)


def _draw_histogram(path: Path, scores: dict[str, dict[str, Tensor]], size: int, levels: int | None) -> bool:
    """Draw the finite values of all items; returns whether there are any."""
    found = {name: parts["log_prob"][parts["log_prob"].isfinite()] for name, parts in scores.items()}
    values = {name: per_dim(some, size, levels) for name, some in found.items() if len(some)}
    if values:
        label = f"-log p by the flow, {'bits/dim' if levels else 'nats/dim'} (lower: more likely)"
        pictures.save(pictures.histogram(values, label), path)
    return bool(values)


def _report(
    cfg: DictConfig,
    model: GenerativeModel,
    scored: ScoredData,
    run: ScoringRun,
    reports: dict[str, dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """The contents of `likelihood.json`: the results of the last split, `more`, and how they were computed."""
    split, levels = list(reports)[-1], run.scoring.levels
    settings = ("target_se", "draws", "prior", "method", "rtol", "atol", "steps", "grid", "trace", "probes")
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
        "uniform": None if levels is None else math.log2(levels),  # bits/dim of the uniform distribution
        "convention": run.scoring.convention,
        "columns": COLUMNS,
        "quote": quoted(reports[split], levels),
        **more,
        **{key: resolved(cfg[key]) for key in (*settings, "batch_size", "seed")},
        "conditions": {name: scored.reported(name) for name in model.conditions},
        "batch_sizes": run.sizes,  # those that were used; smaller than batch_size where memory ran out
        "guidance": resolved(cfg.guidance),
        "elbo_settings": None if cfg.elbo is None else {**resolved(cfg.elbo), "t_end": t_end},
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": run.plan["checkpoint"],
        **record.provenance(),
    }


def _against(
    name: str, own: dict[str, Tensor], others: dict[str, Tensor], size: int, levels: int | None
) -> dict[str, Any]:
    """The scores of other data, and how well likelihood distinguishes them from the model's own."""
    return {
        "data": name,
        **summary(others, size, levels),
        **compare(own["log_prob"], others["log_prob"]),
        **({"by_elbo": compare(own["elbo"], others["elbo"])} if "elbo" in others else {}),
    }


def _bound(cfg: DictConfig, model: GenerativeModel, device: torch.device, data: ScoredData) -> dict[str, Any]:
    """The ELBO's decoder and arguments; the time of the decoder is chosen on the validation split."""
    if cfg.elbo is None:
        return {"bound": None}
    bound = resolved(cfg.elbo)
    bound["grid"] = build(bound["grid"], "elbo.grid")
    if bound["steps"] and bound["draws"] and bound["draws"] > bound["steps"]:
        if is_overridden("elbo.draws"):
            raise UserError(
                f"elbo.draws={bound['draws']} is more than elbo.steps={bound['steps']}: leave elbo.draws out"
            )
        bound["draws"] = None  # one for each step
    levels = data.levels
    decoders: dict[str, Any] = dict.fromkeys(("frequencies", "uniform"), GaussianDecoder)
    if levels is not None:
        decoders = {
            "frequencies": lambda: LevelDecoder.frequencies(levels, data.some("train")),
            "uniform": lambda: LevelDecoder(levels),
        }
    offered: dict[str, Any] = {} if levels is None else {"levels": levels}
    named = build_around(bound.pop("decoder"), "elbo.decoder", **offered)
    decoder: Decoder = as_instance("elbo.decoder", named, decoders, Decoder)
    if bound["t_end"] is None:
        denoiser = denoiser_of(model)
        x, conditions = data.batch("val", data.some_items("val", _PLACING_ITEMS), device)
        places = decoder.places(denoiser.sde)
        settings = {"steps": None, "draws": 32, "rows": cfg.batch_size, "grid": bound["grid"]}
        bound["t_end"] = best_place(denoiser, decoder, x, places, **settings, **conditions)
    return {"decoder": decoder, "bound": {**bound, "rows": cfg.batch_size}}


def _check(cfg: DictConfig) -> None:
    if cfg.x is not None and is_overridden("split"):
        raise UserError(f"x= scores rows of a file, split= items of a data set: leave split={cfg.split} out")


def _write_table(path: Path, scores: dict[str, dict[str, Tensor]]) -> None:
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        columns = list(next(iter(scores.values())))
        table.writerow(["split", *columns])
        for split, values in scores.items():
            rows = torch.stack([values[name] for name in columns], 1).tolist()
            table.writerows([split, *(f"{value:.10g}" for value in row)] for row in rows)


def _log_report(report: dict[str, Any], reports: dict[str, dict[str, Any]], conditions: str, paths: list[Path]) -> None:
    unit = "bits_per_dim" if "bits_per_dim" in report else "nats_per_dim"
    per = unit.replace("_per_", "/")
    for split, values in reports.items():
        items = "item" if values["n"] == 1 else "items"
        passes = values["nfe"]["mean"] or math.nan
        log.info("%s %s, %d %s, %.0f network passes each", report["data"], split, values["n"], items, passes)
        log.info("  -log p by the flow: %s %s", plus_minus(values[unit], values["std_error"]), per)
        if "elbo" in values:
            bound = plus_minus(values["elbo"][unit], values["elbo"]["std_error"])
            log.info("  -log p by the ELBO: at most %s %s", bound, per)
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
    log.info("  settings: %s", ", ".join(f"{key}={hydra_value(report[key])}" for key in ("prior", "trace")))
    if conditions:
        log.info("  given %s", conditions)
    if report["own_units"] is not None:
        own = report["own_units"]
        log.info(
            "  in the data's own units: log p = %s nats per item", plus_minus(own["log_density"], own["std_error"])
        )
        log.info("    (log-density on [-1, 1], minus %.6g, the log of the ranges' volume)", own["log_volume"])
    if "elbo" in report:
        reason, *more = report["quote"]["because"].split("; ")
        log.info("  to quote: %.4f %s, %s", report["quote"][unit] or math.nan, per, reason)
        for fact in more:
            log.info("    (%s)", fact)
    for fact in report["convention"].split("; "):
        log.info("  %s", fact)
    if "against" in report:
        _log_against(report["against"], unit, per)
    for path in paths:
        log.info("%s", path)


def _log_against(other: dict[str, Any], unit: str, per: str) -> None:
    figure = plus_minus(other[unit], other["std_error"])
    log.info("against %s, %d items: -log p by the flow: %s %s", other["data"], other["n"], figure, per)
    for name, found in (("flow", other), ("ELBO", other.get("by_elbo"))):
        if found is not None:
            log.info("  by the %s: %s", name, found["verdict"])
            figures = (found["auroc"], found["auroc_typicality"])
            log.info("    (AUROC %.3f, of typicality %.3f; 1: always told apart, 0.5: by chance alone)", *figures)
