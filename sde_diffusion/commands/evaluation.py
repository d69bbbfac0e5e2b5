"""The comparison of samples with a split of the data that `sde_diffusion.evaluate` makes."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from sde_diffusion.commands import comparison
from sde_diffusion.commands.app import overrides, resolved
from sde_diffusion.commands.conditions import items_with, matching, requested_conditions
from sde_diffusion.commands.data_sides import DataSides, extractor_for, resumed_features
from sde_diffusion.commands.drawing import first
from sde_diffusion.commands.loading import device_of, load_data, load_model
from sde_diffusion.commands.reconstructions import reconstructed_source
from sde_diffusion.commands.sample_sources import SampleSet, Source, drawn_source, is_checkpoint, stored_source
from sde_diffusion.config import build
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FAKE,
    REAL,
    TRAIN,
    FeatureMetric,
    Features,
    IntervalSettings,
    Measured,
    Probabilities,
    measure,
    point_estimates,
)
from sde_diffusion.storage import record
from sde_diffusion.storage.memory import check_fits

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

UNFINISHED = (".samples", ".against", ".features")
"""Folders of partial results, removed when the command has finished."""


class Evaluation:
    """Samples, the data that they are compared with, and the metrics. Nothing that takes long is done at first.

    Args:
        cfg: The configuration.
        out: Folder of the results.

    Attributes:
        metrics: The metrics by name.

    Raises:
        UserError: If the samples, those of `against`, or the data do not fit the configuration or each other.
    """

    def __init__(self, cfg: DictConfig, out: Path) -> None:
        self.cfg, self.out = cfg, out
        model, self.device = (None, device_of(cfg)) if cfg.ckpt is None else load_model(cfg)
        self.data = data = load_data(cfg, model)
        self.wanted: Mapping[str, Tensor] = {}
        if model is None:
            self.source = stored_source(cfg, str(cfg.samples), data)
        else:
            self.wanted = matching(model.conditions, requested_conditions(cfg, model))
        n = cfg.n if model is not None else self.source.n
        items = len(items_with(data.split(cfg.split), self.wanted))
        self.extractor_name, extractor = extractor_for(resolved(cfg.extractor), data, min(n, items))
        width: Any = extractor.num_features
        check_fits(f"{n} samples as {width} features", 8 * n * width, "take fewer")
        if model is not None:
            self.source = _made(cfg, model, data, self.device, out / ".samples")
        self.other = None if cfg.against is None else _other_source(cfg, data, out)
        self.extractor = extractor.to(self.device)
        self.sides = DataSides(cfg, data, self.extractor_name, extractor, self.wanted)
        self.metrics, self.unsuitable = self._metrics()
        self.features = Features(self.sides.batches, self.device, cfg.batch_size)

    def _metrics(self) -> tuple[dict[str, FeatureMetric], dict[str, str]]:
        return _metrics(self.cfg, self.data, self.extractor, self.device, [*self.sides.batches, FAKE])

    def compute_features(self) -> None:
        """Compute the features of the data, of the samples, and of those of `against`; the samples are drawn."""
        features, folder = self.features, self.out / ".features"
        self.sides.fill(features, folder)
        self.samples = self.source.samples()
        features.sides[FAKE] = self.samples.batches
        features.put(self.extractor, FAKE, self._features_of("samples", self.samples))
        self.about = {side: key.data_digest + key.extractor_digest for side, key in self.sides.keys.items()}
        self.others = self._other_samples()

    def _features_of(self, name: str, samples: SampleSet) -> Tensor:
        """The features of samples, computed in batches that are stored as they are finished."""
        of = functools.partial(self.features.of, self.extractor)
        plan = {"extractor": self.sides.keys[REAL].extractor_digest}
        return resumed_features(of, samples.batches, self.out / ".features" / name, plan)

    def _other_samples(self) -> comparison.OtherSamples | None:
        """The samples to compare with: those of `against`, or in a multirun those of its first run."""
        if self.other is None:
            first_run = self.out.parent / "0"
            found = _is_multirun() and self.out != first_run
            return comparison.stored_features(first_run, self.about) if found else None
        samples = self.other.samples()
        return comparison.OtherSamples(self.other.name, self._features_of("against", samples), samples.origin["seeds"])

    def report(self) -> dict[str, Any]:
        """The contents of `metrics.json`: the metrics, and how they were computed.

        Raises:
            UserError: If none of the metrics can be computed.
        """
        cfg, features, samples, metrics = self.cfg, self.features, self.samples, self.metrics
        settings = IntervalSettings(confidence=cfg.confidence, resamples=cfg.resamples, reference=cfg.reference)
        begin, before = time.perf_counter(), features.seconds
        self.found = found = measure(metrics, features, **settings)
        skipped = self.unsuitable | found.skipped
        if not found.figures:
            raise UserError(
                "none of the metrics can be computed: " + "; ".join(f"{k}: {v}" for k, v in skipped.items())
            )
        baseline, n_baseline = self.sides.baseline(metrics, features, samples.n)
        more: dict[str, Any] = {} if samples.rows is None else {"originals": self._originals(samples.rows)}
        if classes := {} if self.wanted else self._classes(settings):
            more["classes"] = classes
        if self.others is not None:
            more["against"] = comparison.compare(
                lambda: self._metrics()[0], features, self.extractor, self.others, samples.origin["seeds"], **settings
            )
        statistics = time.perf_counter() - begin - (features.seconds - before)
        return {
            **_values(found),
            "training_split": baseline,
            "skipped": skipped,
            **more,
            "data": self.data.name,
            "split": cfg.split,
            "extractor": self.extractor_name,
            "features": self.extractor.num_features,
            "resize": getattr(self.extractor, "resize", "none"),
            "n": samples.n,
            "n_reference": len(features(self.extractor, REAL)),
            "n_training_split": n_baseline,
            "reference": cfg.reference,
            **samples.origin,
            "seconds": {"sampling": samples.seconds, "features": features.seconds, "statistics": statistics},
            "settings": list(HydraConfig.get().overrides.task),
            **record.provenance(),
        }

    def _originals(self, rows: Tensor) -> dict[str, float]:
        """The metrics of the items that reconstructions were made from, in their place: what perfect ones reach."""

        def own(extractor: nn.Module, side: str) -> Tensor:
            return self.features(extractor, REAL)[rows] if side == FAKE else self.features(extractor, side)

        return point_estimates(self.metrics, own)

    def _classes(self, settings: IntervalSettings) -> dict[str, dict[str, Any]]:
        """For each condition that is a class, the metrics of each class against the data of that class.

        If the extractor is a classifier of a condition, also the share of a class's samples that it recognises.
        """
        features, samples, data = self.features, self.samples, self.data
        usable = {name: metric for name, metric in self.metrics.items() if TRAIN not in metric.sides}
        recognised = getattr(self.extractor, "recognises", None) if self.extractor_name == data.extractor else None
        found: dict[str, dict[str, Any]] = {}
        for name, kind in data.conditions.items():
            drawn, real = samples.conditions.get(name), data.split(self.cfg.split).conditions.get(name)
            if drawn is None or real is None or kind.in_turn(1) is None:
                continue
            guess = features(Probabilities(self.extractor), FAKE).argmax(1) if name == recognised else None
            found[name] = {}
            for value in torch.unique(drawn[~kind.is_null(drawn)]):
                rows = {FAKE: drawn == value, REAL: real == value}

                def own(extractor: nn.Module, side: str, rows: dict[str, Tensor] = rows) -> Tensor:
                    return features(extractor, side)[rows[side]]

                one: dict[str, Any] = {"n": int(rows[FAKE].sum()), "n_reference": int(rows[REAL].sum())}
                figures = measure(usable, own, **settings).figures
                one |= {key: figure.as_dict() for key, figure in figures.items()}
                if guess is not None:
                    one["recognised"] = float((guess[rows[FAKE]] == value).double().mean())
                found[name][kind.words(value)] = one
        return found

    def picture(self) -> Image.Image:
        """Samples beside data; reconstructions beside the items that they were made from."""
        modality, rows = self.data.modality, self.samples.rows
        x = modality.from_metrics(first(self.samples.batches(), modality.most_drawn))
        if rows is not None:
            originals = self.data.split(self.cfg.split).tensor(rows[: len(x)])
            return modality.beside(x, modality.as_data(originals), names=("reconstructions", "data"))
        return modality.beside(x, modality.from_metrics(first(self.sides.batches[REAL](), modality.most_drawn)))

    def keep_features(self) -> None:
        """In a multirun, store the features of the samples where the other runs find them."""
        if _is_multirun():
            found = self.features(self.extractor, FAKE)
            comparison.store_features(self.out, self.about, found, self.samples.origin["seeds"])


def _made(cfg: DictConfig, model: GenerativeModel, data: DataModule, device: torch.device, parts: Path) -> Source:
    return (drawn_source if cfg.of == "samples" else reconstructed_source)(cfg, model, data, device, parts)


def _other_source(cfg: DictConfig, data: DataModule, out: Path) -> Source:
    """The samples of `against`."""
    source = str(cfg.against)
    if not is_checkpoint(source):
        return stored_source(cfg, source, data)
    own = cfg.copy()
    own.ckpt = source
    try:
        model, device = load_model(own)
        return _made(own, model, data, device, out / ".against")
    except UserError as error:
        raise UserError(f"against={source}: {error}") from error


def _is_multirun() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _values(found: Measured) -> dict[str, Any]:
    values = {key: figure.value for key, figure in found.figures.items()}
    return {**values, **found.details, "intervals": {key: figure.as_dict() for key, figure in found.figures.items()}}


def _metrics(
    cfg: DictConfig, data: DataModule, extractor: nn.Module, device: torch.device, sides: Collection[str]
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
        elif TRAIN in metric.sides and cfg.of == "reconstructions":
            unsuitable[name] = "it is for samples; reconstructions are near the items that they were made from"
        elif metric.for_points and not data.modality.few_dimensions and not chosen:
            unsuitable[name] = f"it is meant for points; metrics=[{name},...] computes it for {data.modality.unit} too"
        else:
            metrics[name] = metric
    return metrics, unsuitable
