"""`python -m sde_diffusion.evaluate ckpt=PATH sampler=ode n=2000 out=DIR`: how good are a checkpoint's samples?"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import Tensor, nn

from sde_diffusion.commands import comparison
from sde_diffusion.commands.app import is_overridden, overrides, resolved
from sde_diffusion.commands.conditions import items_with, matching, requested_conditions
from sde_diffusion.commands.data_sides import DataSides, extractor_for, resumed_features
from sde_diffusion.commands.drawing import check_seeds, first
from sde_diffusion.commands.loading import device_of, load_data, load_model
from sde_diffusion.commands.sample_sources import (
    SampleSet,
    check_shape,
    drawn_samples,
    is_checkpoint,
    read_source,
    stored_samples,
)
from sde_diffusion.config import build
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FAKE,
    REAL,
    TRAIN,
    FeatureMetric,
    Features,
    Measured,
    Probabilities,
    measure,
)
from sde_diffusion.modality import pictures
from sde_diffusion.storage import record
from sde_diffusion.storage.files import forget, fresh, writing
from sde_diffusion.storage.memory import check_fits

log = logging.getLogger(__name__)

_UNFINISHED = (".samples", ".against", ".features")
"""Folders of partial results, removed when the command has finished."""


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
    result = fresh(out / "metrics.json", cfg.overwrite, *(out / name for name in _UNFINISHED))
    grid = out / "metrics.png"
    _check(cfg)
    model, device = (None, device_of(cfg)) if cfg.ckpt is None else load_model(cfg)
    data = load_data(cfg, model)
    wanted = {}
    if model is not None:
        wanted = matching(model.conditions, requested_conditions(cfg, model.conditions))
        check_shape(data, model)
    file = None if cfg.samples is None else read_source(cfg, str(cfg.samples), data)
    n = cfg.n if file is None else len(file)
    name, extractor = extractor_for(cfg.extractor, data, min(n, len(items_with(data.split(cfg.split), wanted))))
    width: Any = extractor.num_features
    check_fits(f"{n} samples as {width} features", 8 * n * width, "take fewer")
    extractor = extractor.to(device)
    sides = DataSides(cfg, data, name, extractor, wanted)
    make = functools.partial(_metrics, cfg, data, extractor, device, [*sides.batches, FAKE])
    metrics, unsuitable = make()
    features = Features(sides.batches, device, cfg.batch_size)
    sides.fill(features, out / ".features")
    if model is None:
        assert file is not None
        samples = stored_samples(str(cfg.samples), file, data)
    else:
        samples = drawn_samples(cfg, model, data, device, out / ".samples")
    features.sides[FAKE] = samples.batches
    features_of = functools.partial(_features, functools.partial(features.of, extractor), sides, out / ".features")
    features.put(extractor, FAKE, features_of("samples", samples))
    about = {side: key.data_digest + key.extractor_digest for side, key in sides.keys.items()}
    other = _other_samples(cfg, data, features_of, out, about)
    begin, before = time.perf_counter(), features.seconds
    found = measure(metrics, features, cfg.confidence, cfg.resamples, reference=cfg.reference)
    baseline, n_baseline = sides.baseline(metrics, features, samples.n)
    real_labels = None if wanted else data.split(cfg.split).label
    classifier = extractor if name == data.name and hasattr(extractor, "head") else None
    classes = _classes(cfg, metrics, features, samples.labels, real_labels, classifier)
    against = None
    if other is not None:
        settings = {"level": cfg.confidence, "resamples": cfg.resamples, "reference": cfg.reference}
        against = comparison.compare(lambda: make()[0], features, extractor, other, samples.origin["seeds"], **settings)
    statistics = time.perf_counter() - begin - (features.seconds - before)
    skipped = unsuitable | found.skipped
    if not found.figures:
        raise UserError("none of the metrics can be computed: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    more: dict[str, Any] = {key: part for key, part in (("classes", classes), ("against", against)) if part}
    report = _report(
        cfg,
        data,
        extractor,
        samples,
        found,
        training_split=baseline,
        skipped=skipped,
        **more,
        extractor=name,
        n_reference=len(features(extractor, REAL)),
        n_training_split=n_baseline,
        seconds={"sampling": samples.seconds, "features": features.seconds, "statistics": statistics},
    )
    shown = (first(side(), data.modality.most_drawn) for side in (samples.batches, sides.batches[REAL]))
    pictures.save(data.modality.beside(*map(data.modality.from_metrics, shown)), grid)
    if _is_multirun():
        comparison.store_features(out, about, features(extractor, FAKE), samples.origin["seeds"])
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    for folder in _UNFINISHED:
        forget(out / folder)
    _log_report(report, metrics, found)
    if against:
        signs = {key: 1 if metric.higher_is_better else -1 for metric in metrics.values() for key in metric.names}
        comparison.log_comparison(against, signs)
    log.info("%s\n%s", result, grid)
    return report


def _report(
    cfg: DictConfig, data: DataModule, features: nn.Module, samples: SampleSet, found: Measured, **more: Any
) -> dict[str, Any]:
    """The contents of `metrics.json`: the metrics, `more`, and how they were computed."""
    return {
        **{key: figure.value for key, figure in found.figures.items()},
        **found.details,
        "intervals": {key: figure.as_dict() for key, figure in found.figures.items()},
        **more,
        "data": data.name,
        "split": cfg.split,
        "features": features.num_features,
        "resize": getattr(features, "resize", "none"),
        "n": samples.n,
        "reference": cfg.reference,
        **samples.origin,
        "settings": list(HydraConfig.get().overrides.task),
        **record.provenance(),
    }


def _check(cfg: DictConfig) -> None:
    if (cfg.ckpt is None) == (cfg.samples is None):
        raise UserError(
            "give either ckpt=PATH, to sample from a checkpoint, or samples=FILE.npz or a folder of pictures"
        )
    if cfg.samples is not None:
        drawing = [key for key in ("guidance", "label", "conditions", "n", "sampler", "seed") if is_overridden(key)]
        if drawing:
            raise UserError(
                f"{'= and '.join(drawing)}= cannot be given with samples=, but only for samples drawn from a checkpoint"
            )
    check_seeds(cfg)
    if cfg.against is not None and is_checkpoint(str(cfg.against)) and cfg.samples is not None:
        raise UserError("samples=FILE cannot be compared against a checkpoint: draw from the checkpoint first")


def _is_multirun() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _other_samples(
    cfg: DictConfig, data: DataModule, features_of: Callable[[str, SampleSet], Tensor], out: Path, about: dict[str, str]
) -> comparison.OtherSamples | None:
    """The samples to compare with: those of `against`, or in a multirun those of its first run."""
    if cfg.against is None:
        first_run = out.parent / "0"
        return comparison.stored_features(first_run, about) if _is_multirun() and out != first_run else None
    source = str(cfg.against)
    if is_checkpoint(source):
        own = cfg.copy()
        own.ckpt = source
        model, device = load_model(own)
        check_shape(data, model)
        samples = drawn_samples(own, model, data, device, out / ".against")
    else:
        samples = stored_samples(source, read_source(cfg, source, data), data)
    return comparison.OtherSamples(source, features_of("against", samples), samples.origin["seeds"])


def _features(of: Callable[[Tensor], Tensor], sides: DataSides, folder: Path, name: str, samples: SampleSet) -> Tensor:
    """The features of samples, computed in batches that are stored as they are finished."""
    return resumed_features(of, samples.batches, folder / name, {"extractor": sides.keys[REAL].extractor_digest})


def _metrics(
    cfg: DictConfig, data: DataModule, extractor: nn.Module, device: torch.device, sides: Sequence[str]
) -> tuple[dict[str, FeatureMetric], dict[str, str]]:
    """The metrics, and for each that cannot be used with this data, extractor or split the reason."""
    nodes: dict[str, Any] = resolved(cfg.metrics)
    chosen = any(override.key_or_group == "metrics" for override in overrides())
    metrics: dict[str, FeatureMetric] = {}
    unsuitable: dict[str, str] = {}
    for name, node in nodes.items():
        try:
            metric: FeatureMetric = build(node, extractor=extractor).to(device)
        except UserError as error:
            unsuitable[name] = str(error)
            continue
        if not set(metric.sides) <= set(sides):
            unsuitable[name] = "it needs another split than train: set split=test or split=val"
        elif metric.for_points and not data.modality.few_dimensions and not chosen:
            unsuitable[name] = f"it is meant for points; metrics=[{name},...] computes it for {data.modality.unit} too"
        else:
            metrics[name] = metric
    return metrics, unsuitable


def _classes(
    cfg: DictConfig,
    metrics: Mapping[str, FeatureMetric],
    features: Features,
    labels: Tensor | None,
    real_labels: Tensor | None,
    classifier: nn.Module | None,
) -> dict[str, Any]:
    """The metrics of each class, against the data of that class, and the share that a classifier assigns to it."""
    if labels is None or real_labels is None:
        return {}
    usable = {name: metric for name, metric in metrics.items() if TRAIN not in metric.sides}
    guess = None if classifier is None else features(Probabilities(classifier), FAKE).argmax(1)
    found: dict[str, Any] = {}
    for label in sorted(set(labels.tolist())):
        rows = {FAKE: labels == label, REAL: real_labels == label}

        def own(extractor: nn.Module, side: str, rows: dict[str, Tensor] = rows) -> Tensor:
            return features(extractor, side)[rows[side]]

        counts = {"n": int(rows[FAKE].sum()), "n_reference": int(rows[REAL].sum())}
        figures = measure(usable, own, cfg.confidence, cfg.resamples, reference=cfg.reference).figures
        found[str(label)] = counts | {key: figure.as_dict() for key, figure in figures.items()}
        if guess is not None:
            found[str(label)]["recognised"] = float((guess[rows[FAKE]] == label).double().mean())
    return found


def _log_report(report: dict[str, Any], metrics: Mapping[str, FeatureMetric], found: Measured) -> None:
    passes = "" if report["nfe"] is None else f", {report['nfe']} network passes each"
    log.info(
        f"{report['n']} samples{passes}, against {report['n_reference']} of {report['data']} {report['split']}, "
        f"in {report['features']} features of {report['extractor']}"
    )
    confidence = next(iter(found.figures.values())).level
    log.info("%-26s%10s   %-24s%16s", "", "samples", f"{confidence:.0%} interval", "training split")
    signs = {key: "+" if metric.higher_is_better else "-" for metric in metrics.values() for key in metric.names}
    for key, figure in found.figures.items():
        baseline = report["training_split"].get(key)
        last = "" if baseline is None else f"{baseline:.4g}"
        log.info("%s %-24s%10.4g   %-24s%16s", signs[key], key, figure.value, figure.ends, last)
    for key, value in found.details.items():
        log.info("  %-24s%10.4g", key, value)
    count = report["n_training_split"]
    column = f"; last column: {count} items of the training split in place of samples" if count else ""
    fewer = ", fewer than the samples, which alone makes distances larger" if 0 < count < report["n"] else ""
    log.info("  (-: lower is better, +: higher is better%s%s)", column, fewer)
    for metric in metrics.values():
        if metric.note and set(metric.names) <= set(found.figures):
            log.info("  (%s)", metric.note)
    for label, figures in report.get("classes", {}).items():
        known = [f"{key} {figures[key]['value']:.4g}" for key in found.figures if key in figures]
        share = [f"recognised {figures['recognised']:.1%}"] if "recognised" in figures else []
        if share or known:
            log.info("  class %s (%d samples): %s", label, figures["n"], ", ".join([*share, *known]))
    for name, reason in report["skipped"].items():
        log.info("  no %s: %s", name, reason)
    log.info("seconds: %s", ", ".join(f"{part} {seconds:.1f}" for part, seconds in report["seconds"].items()))
