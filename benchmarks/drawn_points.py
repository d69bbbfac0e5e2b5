"""The measurements of `benchmarks.nfe_fid`: features of samples, for each model, sampler and number of passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import digests, for_items, items_with, matching, requested_conditions
from sde_diffusion.commands.data_sides import extractor_for, resumed_features
from sde_diffusion.commands.loading import check_denoiser_space, denoiser_of, load_data, load_model
from sde_diffusion.commands.sampling_run import sample_in_batches
from sde_diffusion.commands.tuned_grids import with_grid
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser, EmpiricalDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import FrechetDistance, Pixels, fingerprint
from sde_diffusion.sampling import Sampler, Samples
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.training.generative import GenerativeModel


def named(cfg: DictConfig) -> dict[str, str]:
    """The checkpoints by name: the parts of their paths in which they differ.

    Raises:
        UserError: If ckpt is neither a path nor a list of different paths.
    """
    paths = [str(path) for path in cfg.ckpt] if isinstance(cfg.ckpt, ListConfig) else [str(cfg.ckpt)]
    if not paths or len(set(paths)) < len(paths):
        raise UserError(f"ckpt must be a path or a list of different ones; got ckpt={resolved(cfg.ckpt)}")
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    common = list(zip(*(own[::-1] for own in parts), strict=False))
    depth = next((i for i, p in enumerate(common) if len(set(p)) > 1), len(common))
    names = [own[-1 - depth] if depth < len(own) else own[-1] for own in parts]
    if len(set(names)) < len(names):  # they differ in several places
        names = [f"{index}-{name}" for index, name in enumerate(names)]
    return dict(zip(names, paths, strict=True))


@dataclass(frozen=True)
class Point:
    """One measurement: a row (a model and a sampler), a number of passes, and the first of a set of seeds."""

    name: str
    nfe: int
    seed: int


@dataclass
class Drawn:
    """The result of a measurement: features [n, F], passes of the walk, seconds, batch sizes; or why there is none."""

    features: Tensor
    nfe: int
    seconds: float
    reason: str = ""
    batch_sizes: Sequence[int] = ()


@dataclass(frozen=True)
class Model:
    """A checkpoint's model; its denoiser, or the closed form in its place; the conditions of the samples.

    Attributes:
        ckpt: Path of the checkpoint.
        model: The model, guided if guidance is asked for.
        denoiser: The denoiser that is measured.
        requested: The conditions that were asked for, by name.
        conditions: Those of the samples, [n, *] each.
    """

    ckpt: str
    model: GenerativeModel
    denoiser: Denoiser
    requested: Mapping[str, Any]
    conditions: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return self.model.digest


class UnableError(Exception):
    """A sampler cannot make this walk; the reason is in the table."""


class Bench:
    """Makes and stores the measurements of a configuration."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.models = {}
        for name, ckpt in named(cfg).items():
            model, self.device = load_model(OmegaConf.merge(cfg, {"ckpt": ckpt}))
            check_denoiser_space("exact=true" if cfg.exact else "nfe_fid", ckpt, model, on_data=cfg.exact)
            data = load_data(cfg, model)
            if not self.models:
                self.data = data
            elif data.shape != self.data.shape or not torch.equal(data.tensor(cfg.split), self.data.tensor(cfg.split)):
                raise UserError(
                    f"{ckpt} is of {data.name} {list(data.shape)} and the first checkpoint of {self.data.name} "
                    f"{list(self.data.shape)}, with another {cfg.split} split: compare models of one data set"
                )
            denoiser = denoiser_of(model)
            if cfg.exact:
                denoiser = EmpiricalDenoiser(denoiser.sde, self.data.tensor("train")).to(self.device)
            requested = requested_conditions(cfg, model)
            conditions = for_items(model, requested, self.data.split(cfg.split), cfg.n)
            rows = items_with(self.data.split(cfg.split), matching(model.conditions, requested))
            self.models[name] = Model(ckpt, model, denoiser, requested, conditions)
            if cfg.exact and conditions:
                raise UserError("exact=true ignores classes: use a checkpoint of a model without them")
        n = min(cfg.n * len(cfg.seeds), len(rows))
        self.extractor_name, extractor = extractor_for(resolved(cfg.extractor), self.data, n)
        self.extractor = extractor.to(self.device)
        self.extractor_digest = fingerprint(extractor)
        real, width = self.data.split(cfg.split).tensor(rows), int(self.extractor.num_features)
        check_fits(f"n={cfg.n} samples as {width} features", 8 * cfg.n * width, "take fewer")
        least = 2 * width + 2
        if min(len(real), cfg.n * len(cfg.seeds)) < least:
            raise UserError(
                f"intervals of the Fréchet distance in {width} features ({self.extractor_name}) need at least {least} "
                f"samples and data; got n={cfg.n * len(cfg.seeds)} and {len(real)} of the {cfg.split} split: draw "
                "more, or take an extractor with fewer features"
            )
        parts, plan = torch.split(real, cfg.batch_size), {"extractor": self.extractor_digest}
        self.real = resumed_features(self.features, lambda: parts, folder / "reference", plan)

    @property
    def rows(self) -> dict[str, tuple[str, str]]:
        """The rows of the table, by name: a model and a sampler."""
        several = len(self.models) > 1
        pairs = [(model, sampler) for model in self.models for sampler in self.cfg.samplers]
        return {f"{model}/{sampler}" if several else sampler: (model, sampler) for model, sampler in pairs}

    def features(self, x: Tensor) -> Tensor:
        """Features of samples [N, *shape], rounded and clamped as when stored."""
        parts = torch.split(self.data.modality.for_metrics(x), self.cfg.batch_size)
        with torch.no_grad():
            return torch.cat([self.extractor(part.to(self.device)).cpu() for part in parts])

    def sampler(self, point: Point) -> tuple[dict[str, Any], Sampler]:
        """A point's sampler and its configuration."""
        name, sampler = self.rows[point.name]
        model = self.models[name]
        config = self.with_steps(resolved(self.cfg.samplers[sampler]), model, point.nfe)
        config = with_grid(config, model.ckpt, model.digest, resolved(self.cfg.guidance))
        return config, build(config)

    def with_steps(self, entry: Mapping[str, Any], model: Model, nfe: int) -> dict[str, Any]:
        """The settings of a sampler, with as many steps as a number of network passes allows."""
        calls = nfe // model.denoiser.passes
        return {**entry["sampler"], "steps": (calls - entry["extra"]) // entry["each"]}

    def measure(self, point: Point) -> Drawn:
        """A point's samples, drawn now or by an earlier run."""
        try:
            config, sampler = self.sampler(point)
        except (UserError, ValueError) as error:
            return Drawn(torch.empty(0), 0, 0.0, str(error))
        model = self.models[self.rows[point.name][0]]
        plan = {
            "checkpoint": model.digest,
            "exact": self.cfg.exact,
            "sampler": config,
            "guidance": resolved(self.cfg.guidance),
            "n": self.cfg.n,
            "seed": point.seed,
            "conditions": digests(model.conditions),
            "extractor": self.extractor_digest,
        }
        folder = self.folder / f"{point.name.replace('/', '-')}-{point.nfe}-{point.seed}"
        conditions = {name: values.to(self.device) for name, values in model.conditions.items()}

        def walk(*arguments: Any, **options: Any) -> Samples:
            try:
                found = model.model.draw_samples(sampler, *arguments, **options)
                assert found is not None  # the model has a denoiser
                return found
            except (UserError, ValueError) as error:
                raise UnableError(str(error)) from error

        try:
            drawn = sample_in_batches(
                walk,
                model.denoiser,
                self.data.shape,
                range(point.seed, point.seed + self.cfg.n),
                self.cfg.batch_size,
                conditions,
                store=lambda drawn: {"features": self.features(drawn.x)},
                in_memory=["features"],
                folder=folder,
                plan=plan,
                overwrite=self.cfg.overwrite,
                device=self.device,
            )
        except UnableError as error:
            return Drawn(torch.empty(0), 0, 0.0, str(error))
        done = drawn.finished
        return Drawn(torch.cat(done.each("features")), drawn.nfe, drawn.seconds, batch_sizes=done.sizes)

    def metric(self, measured: list[Drawn]) -> FrechetDistance:
        """The Fréchet distance of some points' samples together."""
        metric = FrechetDistance(Pixels(self.real.shape[1:]), keep_features=True)
        metric.update(self.real, real=True)
        for one in measured:
            metric.update(one.features, real=False)
        return metric
