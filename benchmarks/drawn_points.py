"""What `benchmarks.nfe_fid` measures: samples of models and samplers at numbers of passes, kept as features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.commands.data_sides import extractor_for
from sde_diffusion.commands.drawing import class_labels, measured
from sde_diffusion.commands.loading import denoiser_of, load_data, load_model
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser, EmpiricalDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import FrechetDistance, Pixels, fingerprint
from sde_diffusion.sampling import Sampler
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.storage.parts import Parts


def named(cfg: DictConfig) -> dict[str, str]:
    """The checkpoints by the names of their runs: the parts of their paths in which they differ.

    Raises:
        UserError: If ckpt is no path and no list of different ones.
    """
    paths = [str(path) for path in cfg.ckpt] if isinstance(cfg.ckpt, ListConfig) else [str(cfg.ckpt)]
    if not paths or len(set(paths)) < len(paths):
        raise UserError(f"ckpt must be a path or a list of different ones; got ckpt={plain(cfg.ckpt)}")
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    common = list(zip(*(own[::-1] for own in parts), strict=False))
    depth = next((i for i, p in enumerate(common) if len(set(p)) > 1), len(common))
    names = [own[-1 - depth] if depth < len(own) else own[-1] for own in parts]
    if len(set(names)) < len(names):  # they differ in several places
        names = [f"{index}-{name}" for index, name in enumerate(names)]
    return dict(zip(names, paths, strict=True))


@dataclass(frozen=True)
class Point:
    """One measurement to make: a model's sampler, as rows name it, at a number of passes from a set of seeds."""

    name: str
    nfe: int
    seed: int


@dataclass
class Drawn:
    """A point's samples, as features [n, F], the passes they took and the seconds; or why there are none."""

    features: Tensor
    nfe: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Model:
    """A checkpoint's denoiser, or the closed form in its place, and what identifies it."""

    denoiser: Denoiser
    n_classes: int
    digest: str


class Bench:
    """Draws and keeps the points of a configuration."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.models = {}
        for name, ckpt in named(cfg).items():
            model, self.device = load_model(OmegaConf.merge(cfg, {"ckpt": ckpt}))
            data = load_data(cfg, model)
            if not self.models:
                self.data = data
            elif data.shape != self.data.shape or not torch.equal(data.tensor(cfg.split), self.data.tensor(cfg.split)):
                raise UserError(
                    f"{ckpt} is of {data.name} {list(data.shape)} and the first checkpoint of {self.data.name} "
                    f"{list(self.data.shape)}, with another {cfg.split} split: compare models of one data set"
                )
            denoiser = denoiser_of(cfg, model)
            if cfg.exact:
                denoiser = EmpiricalDenoiser(denoiser.sde, self.data.tensor("train")).to(self.device)
            self.models[name] = Model(denoiser, model.hparams["n_classes"], model.digest)
            labels = class_labels(cfg, model.hparams["n_classes"])
            if cfg.exact and labels is not None:
                raise UserError("exact=true knows no classes: take the checkpoint of a model without")
        n = min(cfg.n * len(cfg.seeds), len(self.data.split(cfg.split)))
        self.extractor_name, extractor = extractor_for(cfg.extractor, self.data, n)
        self.extractor = extractor.to(self.device)
        self.extractor_digest = fingerprint(extractor)
        self.real = self.features(self.data.tensor(cfg.split))
        wanted = f"n={cfg.n} samples as {self.real.shape[1]} features"
        check_fits(wanted, 8 * cfg.n * self.real.shape[1], "take fewer")
        least = 2 * self.real.shape[1] + 2
        if min(len(self.real), cfg.n * len(cfg.seeds)) < least:
            raise UserError(
                f"intervals of the Fréchet distance in {self.real.shape[1]} features ({self.extractor_name}) need at "
                f"least {least} samples and data; got n={cfg.n * len(cfg.seeds)} and {len(self.real)} of the "
                f"{cfg.split} split: draw more, or take an extractor with fewer features"
            )

    @property
    def rows(self) -> dict[str, tuple[str, str]]:
        """The rows of the table, by name: a model and a sampler."""
        several = len(self.models) > 1
        pairs = [(model, sampler) for model in self.models for sampler in self.cfg.samplers]
        return {f"{model}/{sampler}" if several else sampler: (model, sampler) for model, sampler in pairs}

    def features(self, x: Tensor) -> Tensor:
        """Features of samples [N, *shape], as they would be stored."""
        parts = torch.split(measured(x, self.data), self.cfg.batch_size)
        with torch.no_grad():
            return torch.cat([self.extractor(part.to(self.device)).cpu() for part in parts])

    def sampler(self, point: Point) -> tuple[dict[str, Any], Sampler]:
        """A point's sampler and its configuration."""
        entry = plain(self.cfg.samplers[self.rows[point.name][1]])
        calls = point.nfe // self.models[self.rows[point.name][0]].denoiser.passes
        steps = (calls - entry["extra"]) // entry["each"]
        config = {**entry["sampler"], "steps": steps}
        return config, build(config)

    def measure(self, point: Point) -> Drawn:
        """A point's samples, drawn now or by an earlier run."""
        try:
            config, sampler = self.sampler(point)
        except (UserError, ValueError) as error:
            return Drawn(torch.empty(0), 0, 0.0, str(error))
        model = self.models[self.rows[point.name][0]]
        labels = class_labels(self.cfg, model.n_classes)
        plan = {
            "checkpoint": model.digest,
            "exact": self.cfg.exact,
            "sampler": config,
            "guidance": plain(self.cfg.guidance),
            "n": self.cfg.n,
            "seed": point.seed,
            "label": self.cfg.label,
            "extractor": self.extractor_digest,
        }
        kept = Parts(self.folder / f"{point.name.replace('/', '-')}-{point.nfe}-{point.seed}", plan, self.cfg.overwrite)
        parts = list(kept.load())
        seeds = range(point.seed, point.seed + self.cfg.n)
        for start in range(kept.done, len(seeds), self.cfg.batch_size):
            some = seeds[start : start + self.cfg.batch_size]
            conditions = {} if labels is None else {"label": labels[start : start + len(some)].to(self.device)}
            begin = time.perf_counter()
            try:
                drawn = sampler(
                    model.denoiser, (len(some), *self.data.shape), seeds=some, device=self.device, **conditions
                )
            except (UserError, ValueError) as error:
                return Drawn(torch.empty(0), 0, 0.0, str(error))
            x = drawn.x.cpu()  # waits for the device
            seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
            part = {"features": self.features(x), "nfe": torch.tensor(drawn.nfe), "seconds": seconds}
            kept.add(len(x), part)
            parts.append(part)
        features = torch.cat([part["features"] for part in parts])
        return Drawn(features, max(int(part["nfe"]) for part in parts), sum(float(part["seconds"]) for part in parts))

    def metric(self, measured: list[Drawn]) -> FrechetDistance:
        """The Fréchet distance of some points' samples together."""
        metric = FrechetDistance(Pixels(self.real.shape[1:]), keep_features=True)
        metric.update(self.real, real=True)
        for one in measured:
            metric.update(one.features, real=False)
        return metric
