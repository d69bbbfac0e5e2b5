"""`python -m sde_diffusion.evaluate ckpt=PATH sampler=ode n=2000 out=DIR`: how good are a checkpoint's samples?"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sde_diffusion.commands import comparison
from sde_diffusion.commands.app import is_overridden
from sde_diffusion.commands.drawing import check_seeds
from sde_diffusion.commands.evaluation import UNFINISHED, Evaluation
from sde_diffusion.commands.sample_sources import is_checkpoint
from sde_diffusion.commands.sampling_run import passes_in_words
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import FeatureMetric, Measured
from sde_diffusion.modality import pictures
from sde_diffusion.storage.files import forget, fresh, writing

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Compare samples with a split of the data; writes `metrics.json` and `metrics.png`.

    Each metric comes with a baseline: its value for as many items of the training split (all if there are fewer) in
    place of samples. With `against`, the metrics of other samples and the differences are reported too. If the command
    is interrupted or killed, it resumes after its last finished batch of samples when it is started again.

    Args:
        cfg: The composed configuration of conf/evaluate.yaml.

    Returns:
        The contents of `metrics.json`.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results exist already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    result = fresh(out / "metrics.json", cfg.overwrite, *(out / name for name in UNFINISHED))
    _check(cfg)
    evaluation = Evaluation(cfg, out)
    evaluation.compute_features()
    report = evaluation.report()
    pictures.save(evaluation.picture(), out / "metrics.png")
    evaluation.keep_features()
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    for name in UNFINISHED:
        forget(out / name)
    _log_report(report, evaluation.metrics, evaluation.found)
    _log_classes(report, evaluation.found)
    for name, reason in report["skipped"].items():
        log.info("  no %s: %s", name, reason)
    log.info("seconds: %s", ", ".join(f"{part} {seconds:.1f}" for part, seconds in report["seconds"].items()))
    if "against" in report:
        metrics = evaluation.metrics.values()
        signs = {key: 1 if metric.higher_is_better else -1 for metric in metrics for key in metric.names}
        comparison.log_comparison(report["against"], signs)
    log.info("%s\n%s", result, out / "metrics.png")
    return report


def _check(cfg: DictConfig) -> None:
    if (cfg.ckpt is None) == (cfg.samples is None):
        raise UserError(
            "give either ckpt=PATH, to sample from a checkpoint, or samples=FILE.npz or a folder of pictures"
        )
    if cfg.samples is not None:
        drawing = [key for key in ("guidance", "n", "of", "sampler", "seed") if is_overridden(key)]
        if drawing := [*(cfg.conditions or {}), *drawing]:
            raise UserError(
                f"{'= and '.join(drawing)}= cannot be given with samples=, but only for samples drawn from a checkpoint"
            )
    check_seeds(cfg)
    if cfg.against is not None and is_checkpoint(str(cfg.against)) and cfg.samples is not None:
        raise UserError("samples=FILE cannot be compared against a checkpoint: draw from the checkpoint first")


def _log_report(report: dict[str, Any], metrics: Mapping[str, FeatureMetric], found: Measured) -> None:
    passes = "" if report["nfe"] is None else f", {passes_in_words(report['nfe'])}"
    what = report.get("of", "samples")
    log.info(
        f"{report['n']} {what}{passes}, against {report['n_reference']} of {report['data']} {report['split']}, "
        f"in {report['features']} features of {report['extractor']}"
    )
    confidence = next(iter(found.figures.values())).confidence
    base = "originals" if "originals" in report else "training_split"
    first = "value" if "originals" in report else "samples"
    log.info("%-26s%10s   %-24s%16s", "", first, f"{confidence:.0%} interval", base.replace("_", " "))
    signs = {key: "+" if metric.higher_is_better else "-" for metric in metrics.values() for key in metric.names}
    for key, figure in found.figures.items():
        baseline = report[base].get(key)
        last = "" if baseline is None else f"{baseline:.4g}"
        log.info("%s %-24s%10.4g   %-24s%16s", signs[key], key, figure.value, figure.ends, last)
    errors: dict[str, float] = {key: report[key] for key in ("rmse", "psnr") if key in report}
    for key, value in (found.details | errors).items():
        log.info("  %-24s%10.4g", key, value)
    if "rmse" in report:
        log.info("  (rmse: over all values, on the model's scale of [-1, 1]%s)", "; psnr: in dB" * ("psnr" in report))
    log.info("  (-: lower is better, +: higher is better%s)", _last_column(report))
    for metric in metrics.values():
        if metric.note and set(metric.names) <= set(found.figures):
            log.info("  (%s)", metric.note)


def _last_column(report: dict[str, Any]) -> str:
    if "originals" in report:
        return "; last column: the items themselves in place of their reconstructions"
    count = report["n_training_split"]
    fewer = ", fewer than the samples, which alone makes distances larger" if count < report["n"] else ""
    return f"; last column: {count} items of the training split in place of samples{fewer}" if count else ""


def _log_classes(report: dict[str, Any], found: Measured) -> None:
    for condition, classes in report.get("classes", {}).items():
        for name, figures in classes.items():
            known = [f"{key} {figures[key]['value']:.4g}" for key in found.figures if key in figures]
            share = [f"recognised {figures['recognised']:.1%}"] if "recognised" in figures else []
            if share or known:
                log.info("  %s %s (%d samples): %s", condition, name, figures["n"], ", ".join([*share, *known]))
