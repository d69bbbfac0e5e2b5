"""`python -m sde_diffusion.likelihood ckpt=PATH split=test out=DIR`: how likely are data under a checkpoint's model?"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sde_diffusion.commands.app import is_overridden, resolved
from sde_diffusion.commands.bound_scorer import BoundScorer, check_bound
from sde_diffusion.commands.flow_scorer import FlowScorer
from sde_diffusion.commands.likelihood_report import against, draw_histogram, label, log_report, write_table
from sde_diffusion.commands.loading import load_model, walks_on_data
from sde_diffusion.commands.scored_data import ScoredData, against_data, own_data, row_data
from sde_diffusion.commands.scorer import Scorer
from sde_diffusion.commands.scoring_run import ScoringRun
from sde_diffusion.density.summary import in_own_units, main_score, order, quoted, summary
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of
from sde_diffusion.storage import record
from sde_diffusion.storage.files import forget, fresh, writing

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel


def likelihood(cfg: DictConfig) -> dict[str, Any]:
    """Log-likelihood of data, exact or by lower bounds; writes `likelihood.json`, `likelihood.csv`, `likelihood.png`.

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
    if not walks_on_data(model):
        check_bound(cfg, model)
    data, splits = own_data(cfg, model)
    scored, splits = (data, splits) if cfg.x is None else (row_data(cfg, model), ["rows"])
    other = against_data(cfg, model, data)
    scorer = scorer_for(cfg, model, device, data)
    run = ScoringRun(cfg, model, device, scorer, out / ".scores")
    levels, begin = scorer.levels, time.perf_counter()
    scores = {split: run.score(scored, split) for split in splits}
    other_scores = None if other is None else run.score(other, other.splits[0])
    size = math.prod(model.data["shape"])
    if not any(bool(values[main_score(values)].isfinite().any()) for values in scores.values()):
        raise UserError(f"the solver takes no item of {scored.name} to t_max: try method=dopri5 or larger rtol=")
    units = None if levels is not None else modality_of(model.data).units
    for values in (*scores.values(), *([] if other_scores is None or units is None else [other_scores])):
        if units is not None:
            values["log_density"] = values[main_score(values)] - units.log_volume(size)
    reports = {split: summary(values, size, levels) for split, values in scores.items()}
    equal = {"equal": scorer.equal} if scorer.equal else {}
    for split, values in scores.items():
        reports[split] |= {"order": [order(values, *pair, size, levels) | equal for pair in scorer.ordered]}
    own = None if units is None else in_own_units(scores[splits[-1]]["log_density"], units, size)
    report = _report(cfg, model, scored, run, reports, own_units=own)
    if other is not None and other_scores is not None:
        report["against"] = against(other.name, scores[splits[-1]], other_scores, size, levels)
    every = scores if other is None or other_scores is None else {**scores, other.name: other_scores}
    drawn = draw_histogram(picture, every, size, levels, label(report["by"], cfg.importance))
    report["seconds"] = run.seconds + time.perf_counter() - begin - run.scored_now
    write_table(table, scores if other_scores is None else {**scores, "against": other_scores})
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    forget(out / ".scores")
    log_report(report, reports, scored.in_words(), [result, table, *([picture] if drawn else [])])
    return report


def scorer_for(cfg: DictConfig, model: GenerativeModel, device: torch.device, data: ScoredData) -> Scorer:
    """What scores data under a model: the flow and the bounds of a denoiser of the data, or the model's own bound.

    Raises:
        UserError: If the model has neither, or a setting is for the other kind.
    """
    kind: type[FlowScorer | BoundScorer] = FlowScorer if walks_on_data(model) else BoundScorer
    return kind(cfg, model, device, data)


def _report(
    cfg: DictConfig,
    model: GenerativeModel,
    scored: ScoredData,
    run: ScoringRun,
    reports: dict[str, dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """The contents of `likelihood.json`: the results of the last split, `more`, and how they were computed."""
    split, scorer = list(reports)[-1], run.scorer
    levels = scorer.levels
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
        "convention": scorer.convention,
        "columns": scorer.columns,
        "quote": quoted(reports[split], levels),
        **more,
        **scorer.more,
        **{key: resolved(cfg[key]) for key in (*scorer.settings, "batch_size", "seed")},
        "conditions": {name: scored.reported(name) for name in model.conditions},
        "batch_sizes": run.sizes,  # those that were used; smaller than batch_size where memory ran out
        "guidance": resolved(cfg.guidance),
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": run.plan["checkpoint"],
        **record.provenance(),
    }


def _check(cfg: DictConfig) -> None:
    if cfg.x is not None and is_overridden("split"):
        raise UserError(f"x= scores rows of a file, split= items of a data set: leave split={cfg.split} out")
