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
from sde_diffusion.commands.app import is_given, overrides, plain
from sde_diffusion.commands.conditions import given, items_with, matching
from sde_diffusion.commands.data_sides import DataSides, extractor_for, resumed_features
from sde_diffusion.commands.drawing import check_seeds, first
from sde_diffusion.commands.loading import device_of, load_data, load_model
from sde_diffusion.commands.sample_sources import Made, check_shape, drawn_of, is_checkpoint, of_file, read_source
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
"""Folders of what is finished before the result is."""


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Compare samples with a split of the data; writes `metrics.json` and `metrics.png`.

    Beside each figure stands that of as many items of the training split, or of all: the mark that data themselves
    reach at these sizes. With `against` the figures of other samples too, and the differences. A run that was
    interrupted or killed resumes after its last finished batch of samples when it is started again.

    Args:
        cfg: The composed configuration of conf/evaluate.yaml.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    result = fresh(out / "metrics.json", cfg.overwrite, *(out / name for name in _UNFINISHED))
    grid = out / "metrics.png"
    _check(cfg)
    model, device = (None, device_of(cfg)) if cfg.ckpt is None else load_model(cfg)
    data = load_data(cfg, model)
    wanted = {}
    if model is not None:
        wanted = matching(model.conditions, given(cfg, model.conditions))
        check_shape(data, model)
    file = None if cfg.samples is None else read_source(cfg, str(cfg.samples), data)
    n = cfg.n if file is None else len(file)
    name, extractor = extractor_for(cfg.extractor, data, min(n, len(items_with(data.split(cfg.split), wanted))))
    width: Any = extractor.num_features
    check_fits(f"{n} samples as {width} features", 8 * n * width, "take fewer")
    extractor = extractor.to(device)
    sides = DataSides(cfg, data, name, extractor, wanted)
    make = functools.partial(_metrics, cfg, data, extractor, device, [*sides.batches, FAKE])
    metrics, unfit = make()
    features = Features(sides.batches, device, cfg.batch_size)
    sides.fill(features, out / ".features")
    if model is None:
        assert file is not None
        made = of_file(str(cfg.samples), file, data)
    else:
        made = drawn_of(cfg, model, data, device, out / ".samples")
    features.sides[FAKE] = made.batches
    keep = functools.partial(_keep, functools.partial(features.of, extractor), sides, out / ".features")
    features.put(extractor, FAKE, keep("samples", made))
    about = {side: key.data_digest + key.extractor_digest for side, key in sides.keys.items()}
    rival = _rival(cfg, data, keep, out, about)
    begin, before = time.perf_counter(), features.seconds
    found = measure(metrics, features, cfg.level, cfg.resamples, reference=cfg.reference)
    mark, n_mark = sides.mark(metrics, features, made.n)
    real_labels = None if wanted else data.split(cfg.split).label
    classifier = extractor if name == data.name and hasattr(extractor, "head") else None
    classes = _classes(cfg, metrics, features, made.labels, real_labels, classifier)
    against = None
    if rival is not None:
        settings = {"level": cfg.level, "resamples": cfg.resamples, "reference": cfg.reference}
        against = comparison.compare(lambda: make()[0], features, extractor, rival, made.origin["seeds"], **settings)
    statistics = time.perf_counter() - begin - (features.seconds - before)
    skipped = unfit | found.skipped
    if not found.figures:
        raise UserError("none of the metrics can be taken: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    more: dict[str, Any] = {key: part for key, part in (("classes", classes), ("against", against)) if part}
    report = _report(
        cfg,
        data,
        extractor,
        made,
        found,
        training_split=mark,
        skipped=skipped,
        **more,
        extractor=name,
        n_reference=len(features(extractor, REAL)),
        n_training_split=n_mark,
        seconds={"sampling": made.seconds, "features": features.seconds, "statistics": statistics},
    )
    drawn, real = (data.modality.from_metrics(first(side(), 256)) for side in (made.batches, sides.batches[REAL]))
    pictures.save(data.modality.beside(drawn, real), grid)
    if _many():
        comparison.keep(out, about, features(extractor, FAKE), made.origin["seeds"])
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    for folder in _UNFINISHED:
        forget(out / folder)
    _tell(report, metrics, found)
    if against:
        signs = {key: 1 if metric.higher_is_better else -1 for metric in metrics.values() for key in metric.names}
        comparison.tell(against, signs)
    log.info("%s\n%s", result, grid)
    return report


def _report(
    cfg: DictConfig, data: DataModule, features: nn.Module, made: Made, found: Measured, **more: Any
) -> dict[str, Any]:
    """What `metrics.json` holds: the figures, `more`, and what they are of."""
    return {
        **{key: figure.value for key, figure in found.figures.items()},
        **found.details,
        "intervals": {key: figure.as_dict() for key, figure in found.figures.items()},
        **more,
        "data": data.name,
        "split": cfg.split,
        "features": features.num_features,
        "resize": getattr(features, "resize", "none"),
        "n": made.n,
        "reference": cfg.reference,
        **made.origin,
        "settings": list(HydraConfig.get().overrides.task),
        **record.provenance(),
    }


def _check(cfg: DictConfig) -> None:
    if (cfg.ckpt is None) == (cfg.samples is None):
        raise UserError(
            "give either ckpt=PATH, to sample from a checkpoint, or samples=FILE.npz or a folder of pictures"
        )
    if cfg.samples is not None:
        drawing = [key for key in ("guidance", "label", "conditions", "n", "sampler", "seed") if is_given(key)]
        if drawing:
            raise UserError(
                f"{'= and '.join(drawing)}= cannot be given with samples=, but only for samples drawn from a checkpoint"
            )
    check_seeds(cfg)
    if cfg.against is not None and is_checkpoint(str(cfg.against)) and cfg.samples is not None:
        raise UserError("samples of a file are compared with those of another file: draw from the checkpoint first")


def _many() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _rival(
    cfg: DictConfig, data: DataModule, keep: Callable[[str, Made], Tensor], out: Path, about: dict[str, str]
) -> comparison.Rival | None:
    """What is compared with: the samples that `against` names, or in a multirun those of its first run."""
    if cfg.against is None:
        first_run = out.parent / "0"
        return comparison.kept(first_run, about) if _many() and out != first_run else None
    source = str(cfg.against)
    if is_checkpoint(source):
        own = cfg.copy()
        own.ckpt = source
        model, device = load_model(own)
        check_shape(data, model)
        made = drawn_of(own, model, data, device, out / ".against")
    else:
        made = of_file(source, read_source(cfg, source, data), data)
    return comparison.Rival(source, keep("against", made), made.origin["seeds"])


def _keep(of: Callable[[Tensor], Tensor], sides: DataSides, folder: Path, name: str, made: Made) -> Tensor:
    """The features of samples, made in batches that outlive a killed process."""
    return resumed_features(of, made.batches, folder / name, {"extractor": sides.keys[REAL].extractor_digest})


def _metrics(
    cfg: DictConfig, data: DataModule, extractor: nn.Module, device: torch.device, sides: Sequence[str]
) -> tuple[dict[str, FeatureMetric], dict[str, str]]:
    """The metrics, and those that the data, the extractor or the sides do not serve."""
    nodes: dict[str, Any] = plain(cfg.metrics)
    asked = any(override.key_or_group == "metrics" for override in overrides())
    metrics: dict[str, FeatureMetric] = {}
    unfit: dict[str, str] = {}
    for name, node in nodes.items():
        try:
            metric: FeatureMetric = build(node, extractor=extractor).to(device)
        except UserError as error:
            unfit[name] = str(error)
            continue
        if not set(metric.sides) <= set(sides):
            unfit[name] = f"it looks at {TRAIN} too, beside another split: take split=test or val"
        elif metric.for_points and not data.modality.few_dimensions and not asked:
            unfit[name] = f"it is meant for points; metrics=[{name},...] takes it of {data.modality.unit} too"
        else:
            metrics[name] = metric
    return metrics, unfit


def _classes(
    cfg: DictConfig,
    metrics: Mapping[str, FeatureMetric],
    features: Features,
    labels: Tensor | None,
    real_labels: Tensor | None,
    classifier: nn.Module | None,
) -> dict[str, Any]:
    """The figures of each class by itself, against the data of that class, and how many a classifier takes for it."""
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
        figures = measure(usable, own, cfg.level, cfg.resamples, reference=cfg.reference).figures
        found[str(label)] = counts | {key: figure.as_dict() for key, figure in figures.items()}
        if guess is not None:
            found[str(label)]["recognised"] = float((guess[rows[FAKE]] == label).double().mean())
    return found


def _tell(report: dict[str, Any], metrics: Mapping[str, FeatureMetric], found: Measured) -> None:
    told = "" if report["nfe"] is None else f", {report['nfe']} network passes each"
    log.info(
        "%d samples%s, against %d of %s %s, in %d features of %s",
        *(report["n"], told, report["n_reference"], report["data"], report["split"]),
        *(report["features"], report["extractor"]),
    )
    level = next(iter(found.figures.values())).level
    log.info("%-26s%10s   %-24s%16s", "", "samples", f"{level:.0%} interval", "training split")
    arrows = {key: "+" if metric.higher_is_better else "-" for metric in metrics.values() for key in metric.names}
    for key, figure in found.figures.items():
        mark = report["training_split"].get(key)
        beside = "" if mark is None else f"{mark:.4g}"
        log.info("%s %-24s%10.4g   %-24s%16s", arrows[key], key, figure.value, figure.ends, beside)
    for key, value in found.details.items():
        log.info("  %-24s%10.4g", key, value)
    count = report["n_training_split"]
    beside = f"; the training split's column: what {count} of its items reach" if count else ""
    fewer = ", fewer than the samples, which alone makes distances larger" if 0 < count < report["n"] else ""
    log.info("  (-: lower is better, +: higher%s%s)", beside, fewer)
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
