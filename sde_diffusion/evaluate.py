"""`python -m sde_diffusion.evaluate ckpt=PATH sampler=ode n=2000 out=DIR`: how good are a checkpoint's samples?"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from sde_diffusion import pictures, record
from sde_diffusion.cli import command, plain, whole
from sde_diffusion.config import build
from sde_diffusion.data import DataModule
from sde_diffusion.data_sides import DataSides
from sde_diffusion.drawing import check_seeds, class_labels, draw, first, read_samples, stored
from sde_diffusion.errors import UserError
from sde_diffusion.files import fresh, writing
from sde_diffusion.loading import checkpoint_digest, device_of, extractor_for, load_data, load_model
from sde_diffusion.metrics import (
    FAKE,
    REAL,
    TRAIN,
    Features,
    KeptFeatures,
    Measured,
    Probabilities,
    measure,
)
from sde_diffusion.parts import forget
from sde_diffusion.units import measured

if TYPE_CHECKING:
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Compare samples with a split of the data; writes `metrics.json` and `metrics.png`.

    Beside each figure stands that of as many items of the training split, or of all: the mark that data themselves
    reach at these sizes. A run that was interrupted or killed goes on, when it is started again, after its last whole
    batch of samples.

    Args:
        cfg: The composed configuration of conf/evaluate.yaml.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    result, grid = (fresh(out / name, cfg.overwrite) for name in ("metrics.json", "metrics.png"))
    _check(cfg)
    model, device = (None, device_of(cfg)) if cfg.ckpt is None else load_model(cfg)
    data = load_data(cfg, model)
    if model is not None:
        class_labels(cfg, model.hparams["n_classes"])
        if list(data.shape) != list(model.data["shape"]):
            raise UserError(
                f"{data.name} has items of shape {list(data.shape)}, and the model's are {model.data['shape']}"
            )
    name, extractor = extractor_for(cfg.extractor, data)
    extractor = extractor.to(device)
    sides = DataSides(cfg, data, name, extractor)
    metrics, unfit = _metrics(cfg, data, extractor, device, [*sides.batches, FAKE])
    features = Features(sides.batches, device, cfg.batch_size)
    sides.fill(features)
    made = _samples(cfg, model, data, device, out / ".samples")
    features.sides[FAKE] = made.batches
    begin, before = time.perf_counter(), features.seconds
    found = measure(metrics, features, cfg.level, cfg.resamples, reference=cfg.reference)
    mark, n_mark = sides.mark(metrics, features, made.n)
    real_labels = data.split(cfg.split).label if cfg.label is None else None
    classifier = extractor if name == data.name and hasattr(extractor, "head") else None
    classes = _classes(cfg, metrics, features, made.labels, real_labels, classifier)
    statistics = time.perf_counter() - begin - (features.seconds - before)
    skipped = unfit | found.skipped
    if not found.figures:
        raise UserError("none of the metrics can be taken: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    report: dict[str, Any] = {
        **{key: figure.value for key, figure in found.figures.items()},
        **found.details,
        "intervals": {key: figure.as_dict() for key, figure in found.figures.items()},
        "training_split": mark,
        "skipped": skipped,
        **({"classes": classes} if classes else {}),
        "data": data.name,
        "split": cfg.split,
        "extractor": name,
        "resize": getattr(extractor, "resize", "none"),
        "n": made.n,
        "n_reference": len(features(extractor, REAL)),
        "n_training_split": n_mark,
        "reference": cfg.reference,
        **made.origin,
        "seconds": {"sampling": made.seconds, "features": features.seconds, "statistics": statistics},
        **record.provenance(),
    }
    pictures.save(pictures.draw(first(made.batches(), 256)), grid)
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    forget(out / ".samples")
    _tell(report, metrics, found)
    log.info("%s\n%s", result, grid)
    return report


@dataclass(frozen=True)
class _Made:
    """N samples in batches [B, *shape] as data would be stored, their labels [N], their origin, and the seconds."""

    n: int
    batches: Callable[[], Iterator[Tensor]]
    labels: Tensor | None
    origin: dict[str, Any]
    seconds: float


def _check(cfg: DictConfig) -> None:
    whole(cfg, "resamples", 0)
    if not isinstance(cfg.level, float) or not 0 < cfg.level < 1:
        raise UserError(f"level must lie between 0 and 1; got level={cfg.level}")
    if cfg.reference not in ("sampled", "fixed"):
        raise UserError(f"reference must be sampled or fixed; got reference={cfg.reference}")
    if (cfg.ckpt is None) == (cfg.samples is None):
        raise UserError("give either ckpt=PATH, to sample from a checkpoint, or samples=FILE.npz")
    if not isinstance(cfg.get("metrics"), DictConfig) or not cfg.metrics:
        raise UserError("metrics must name some, such as metrics=[frechet,kernel]; see --help")
    if cfg.samples is not None:
        drawing = sorted({key.split(".")[0] for key in _given()} & {"n", "seed", "label", "sampler"})
        if drawing:
            raise UserError(f"{'=, '.join(drawing)}= is for samples that are drawn; those of a file are as they are")
    check_seeds(cfg)
    if cfg.samples is None:
        whole(cfg, "n", 2)


def _given() -> set[str]:
    """The keys that the command line sets."""
    return {override.split("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task}


def _samples(cfg: DictConfig, model: ScoreModel | None, data: DataModule, device: torch.device, parts: Path) -> _Made:
    def as_data(x: Tensor) -> Tensor:
        return measured(stored(x, data.levels), data.levels, data.units)

    origin: dict[str, Any]
    if model is None:
        file = read_samples(Path(cfg.samples), data.shape, data.units, data.levels)
        origin = {"samples": str(cfg.samples), "nfe": None, "sampler": None, "seeds": None}
        return _Made(len(file), lambda: map(as_data, file.batches()), file.labels, origin, 0.0)
    seeds = check_seeds(cfg)
    drawn = draw(cfg, model, device, parts)
    origin = {
        "nfe": drawn.nfe,
        "sampler": plain(cfg.sampler),
        "seeds": [seeds[0], seeds[-1]],
        "label": cfg.label,
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": checkpoint_digest(cfg.ckpt),
    }
    labels = class_labels(cfg, model.hparams["n_classes"])
    return _Made(drawn.n, lambda: map(as_data, drawn.batches()), labels, origin, drawn.seconds)


def _metrics(
    cfg: DictConfig, data: DataModule, extractor: nn.Module, device: torch.device, sides: Sequence[str]
) -> tuple[dict[str, KeptFeatures], dict[str, str]]:
    """The metrics, and those that the data, the extractor or the sides do not serve."""
    nodes: dict[str, Any] = plain(cfg.metrics)
    asked = any(override.startswith("metrics=") for override in HydraConfig.get().overrides.task)
    metrics: dict[str, KeptFeatures] = {}
    unfit: dict[str, str] = {}
    for name, node in nodes.items():
        try:
            metric: KeptFeatures = build(node, extractor=extractor).to(device)
        except UserError as error:
            unfit[name] = str(error)
            continue
        if not set(metric.sides) <= set(sides):
            unfit[name] = f"it looks at {TRAIN} too, beside another split: take split=test or val"
        elif metric.for_points and len(data.shape) > 1 and not asked:
            unfit[name] = f"it is meant for points; metrics=[{name},...] takes it of images too"
        else:
            metrics[name] = metric
    return metrics, unfit


def _classes(
    cfg: DictConfig,
    metrics: Mapping[str, KeptFeatures],
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


def _tell(report: dict[str, Any], metrics: Mapping[str, KeptFeatures], found: Measured) -> None:
    told = "" if report["nfe"] is None else f", {report['nfe']} network passes each"
    log.info(
        "%d samples%s, against %d of %s %s, in features of %s",
        *(report["n"], told, report["n_reference"], report["data"], report["split"], report["extractor"]),
    )
    level = next(iter(found.figures.values())).level
    log.info("%-26s%10s   %-24s%16s", "", "samples", f"{level:.0%} interval", "training split")
    arrows = {key: "+" if metric.higher_is_better else "-" for metric in metrics.values() for key in metric.names}
    for key, figure in found.figures.items():
        mark = report["training_split"].get(key)
        ends = f"[{figure.low:.4g}, {figure.high:.4g}]"
        log.info(
            "%s %-24s%10.4g   %-24s%16s", arrows[key], key, figure.value, ends, "" if mark is None else f"{mark:.4g}"
        )
    for key, value in found.details.items():
        log.info("  %-24s%10.4g", key, value)
    count = report["n_training_split"]
    beside = f"; the training split's column: what {count} of its items reach" if count else ""
    log.info("  (-: lower is better, +: higher%s)", beside)
    for metric in metrics.values():
        if metric.note and set(metric.names) <= set(found.figures):
            log.info("  (%s)", metric.note)
    if 0 < count < report["n"]:
        log.info("  (which are fewer than the samples: distances of few items are the larger for it)")
    for label, figures in report.get("classes", {}).items():
        known = [f"{key} {figures[key]['value']:.4g}" for key in found.figures if key in figures]
        share = [f"recognised {figures['recognised']:.1%}"] if "recognised" in figures else []
        log.info("  class %s (%d samples): %s", label, figures["n"], ", ".join([*share, *known]))
    for name, reason in report["skipped"].items():
        log.info("  no %s: %s", name, reason)
    log.info("seconds: %s", ", ".join(f"{part} {seconds:.1f}" for part, seconds in report["seconds"].items()))


def main() -> None:
    """Entry point of the command."""
    command("evaluate", evaluate)


if __name__ == "__main__":
    main()
