"""The measurements of `benchmarks.guidance`: samples at a scale and in an interval, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import digests, for_items
from sde_diffusion.commands.data_sides import extractor_for, resumed_features
from sde_diffusion.commands.loading import check_denoiser_space, denoiser_of, load_data, load_model, random_order
from sde_diffusion.commands.sampling_run import sample_in_batches
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import PRDC, FrechetDistance, Pixels, fingerprint, interval

MEASURES = ("frechet_distance", *PRDC.names, "share")


@dataclass(frozen=True)
class Kind:
    """A kind of guidance.

    Attributes:
        target: Its class.
        ckpt: Key of the checkpoint that it guides.
        outside: The scale that means no guidance.
        also: Keys of the configuration that are further arguments.
    """

    target: str
    ckpt: str
    outside: float
    also: tuple[str, ...] = ()


KINDS = {
    "cfg": Kind("sde_diffusion.guidance.ClassifierFreeGuidance", "ckpt", 1.0),
    "classifier": Kind("sde_diffusion.guidance.ClassifierGuidance", "unconditional", 0.0, ("classifier",)),
}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        guidance: A key of `KINDS`.
        scale: The scale.
        interval: (low, high) of sigma / alpha; None: everywhere.
    """

    guidance: str
    scale: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        return f"{self.guidance}, scale {self.scale:g}, {where(self.interval)}"


def where(ends: tuple[float, float] | None) -> str:
    """An interval in words."""
    return "everywhere" if ends is None else f"in [{ends[0]:g}, {ends[1]:g}]"


def points_of(cfg: DictConfig) -> list[Point]:
    """All measurements of a configuration: in intervals, only the scales above that of no guidance.

    Raises:
        UserError: If only one of classifier and unconditional is given, or one setting twice.
    """
    if (cfg.classifier is None) != (cfg.unconditional is None):
        raise UserError("classifier= and unconditional= go together: the classifier guides the unconditional model")
    intervals = [None if ends is None else (float(ends[0]), float(ends[1])) for ends in cfg.intervals]
    if len(set(cfg.scales)) < len(cfg.scales) or len(set(intervals)) < len(intervals):
        raise UserError(f"each scale and interval once: scales={resolved(cfg.scales)} intervals={intervals}")
    scales = sorted(map(float, cfg.scales))
    kinds = ["cfg"] if cfg.classifier is None else list(KINDS)
    every = [Point(kind, scale, ends) for kind in kinds for ends in intervals for scale in scales]
    return [one for one in every if one.interval is None or one.scale > KINDS[one.guidance].outside]


class GuidedBench:
    """Makes and stores the measurements of a configuration.

    Attributes:
        digests: SHA-256 of the checkpoints.
        real: Features of the split's items, [N, F].

    Raises:
        UserError: If a checkpoint cannot be used, or n is too small.
    """

    def __init__(self, cfg: DictConfig, folder: Path, points: list[Point]) -> None:
        self.cfg, self.folder, self.digests = cfg, folder, dict[str, str]()
        model, self.device = self._model(points[0])
        self.data = load_data(cfg, model)
        for point in {one.guidance: one for one in points}.values():  # so that mistakes are found before hours of work
            other, _ = self._model(point)
            if list(other.data["shape"]) != list(self.data.shape):
                raise UserError(f"{KINDS[point.guidance].ckpt} is a model of other data than ckpt")
        split = self.data.split(cfg.split)
        n = min(cfg.n, len(split))
        self.extractor_name, extractor = extractor_for(resolved(cfg.extractor), self.data, n)
        self.extractor = extractor.to(self.device)
        self.plan = {"extractor": fingerprint(extractor)}
        least = 2 * int(self.extractor.num_features) + 2
        if n < least:
            raise UserError(
                f"intervals of the Fréchet distance in {self.extractor.num_features} features ({self.extractor_name}) "
                f"need at least {least} samples and data; got n={cfg.n} and {len(split)} items of the {cfg.split} split"
            )
        parts = torch.split(split.tensor(torch.arange(len(split))), cfg.batch_size)
        self.real = resumed_features(self.features, lambda: parts, folder / "reference", self.plan)

    def _model(self, point: Point) -> tuple[Any, torch.device]:
        """The guided model of a point, and its device."""
        kind, settings = KINDS[point.guidance], {"scale": point.scale, "interval": point.interval}
        settings |= {key: self.cfg[key] for key in kind.also}
        ckpt, guidance = self.cfg[kind.ckpt], {"_target_": kind.target, **settings}
        model, device = load_model(OmegaConf.create({"ckpt": ckpt, "device": self.cfg.device, "guidance": guidance}))
        check_denoiser_space("guidance", ckpt, model)
        if "label" not in model.conditions:
            raise UserError(f"{kind.ckpt}={ckpt} is a model without classes: train one with conditional=true")
        self.digests |= {str(ckpt): model.digest, **model.guides}
        return model, device

    def features(self, x: Tensor) -> Tensor:
        """Features of samples [N, *shape], rounded and clamped as when stored."""
        parts = torch.split(self.data.modality.for_metrics(x), self.cfg.batch_size)
        with torch.no_grad():
            return torch.cat([self.extractor(part.to(self.device)).cpu() for part in parts])

    def measure(self, point: Point) -> dict[str, Any]:
        """The row of a point: from samples drawn now, or by an earlier run."""
        model, _ = self._model(point)
        conditions = for_items(model, {}, self.data.split(self.cfg.split), self.cfg.n)
        sampler = resolved(self.cfg.sampler)
        plan = {
            "checkpoints": sorted([model.digest, *model.guides.values()]),
            "point": [point.guidance, point.scale, point.interval and list(point.interval)],
            "sampler": sampler,
            "n": self.cfg.n,
            "seed": self.cfg.seed,
            "conditions": digests(conditions),
            **self.plan,
        }
        drawn = sample_in_batches(
            partial(model.draw_samples, build(sampler, "sampler")),
            denoiser_of(model),
            self.data.shape,
            range(self.cfg.seed, self.cfg.seed + self.cfg.n),
            self.cfg.batch_size,
            {name: values.to(self.device) for name, values in conditions.items()},
            store=lambda drawn: {"features": self.features(drawn.x)},
            in_memory=["features"],
            folder=self.folder / "-".join(map(str, plan["point"])).replace(" ", ""),
            plan=plan,
            overwrite=self.cfg.overwrite,
            device=self.device,
        )
        low, high = point.interval or (0.0, math.inf)
        about = {"guidance": point.guidance, "scale": point.scale, "low": low, "high": high}
        found = self.quality(torch.cat(drawn.finished.each("features")), conditions["label"])
        return {**about, "passes": drawn.nfe, "seconds": drawn.seconds, **found}

    def baseline(self) -> dict[str, Any]:
        """The row of n items of the training split in place of samples."""
        train = self.data.split("train")
        rows = random_order(len(train))[: self.cfg.n]
        about = {"guidance": "training data", "scale": math.nan, "low": math.nan, "high": math.nan}
        found = self.quality(self.features(train.tensor(rows)), train.conditions["label"][rows])
        return {**about, "passes": 0, "seconds": 0.0, **found}

    def quality(self, features: Tensor, asked: Tensor) -> dict[str, float]:
        """Each of `MEASURES`, and its interval, of samples with features [n, F] for asked classes [n].

        The Fréchet distance is to all items of the split, and the nearest neighbours are those among n of them.
        """
        found: dict[str, float] = {}
        some = self.real[random_order(len(self.real))[: len(features)]]
        shape = self.real.shape[1:]
        pairs = ((FrechetDistance(Pixels(shape), keep_features=True), self.real), (PRDC(Pixels(shape)), some))
        for metric, real in pairs:
            metric.update(real, real=True)
            metric.update(features, real=False)
            for name, one in interval(metric, confidence=self.cfg.confidence, resamples=50).items():
                found |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        return found | self._share(features, asked)

    def _share(self, features: Tensor, asked: Tensor) -> Mapping[str, float]:
        """The share of samples of the asked class, with Wilson's interval; NaN if the extractor is no classifier."""
        if getattr(self.extractor, "recognises", None) != "label":
            return dict.fromkeys(("share", "share_low", "share_high"), math.nan)
        with torch.no_grad():
            classes = self.extractor.head(features.to(self.device)).argmax(1).cpu()
        share, n = float((classes == asked.cpu()).double().mean()), len(asked)
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(self.cfg.confidence, dtype=torch.float64)))
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
        return {"share": share, "share_low": middle - half, "share_high": middle + half}
