"""The data that samples are compared with: their features, and the baseline that real data reach, both cached."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sde_diffusion import __version__
from sde_diffusion.checks.hints import check
from sde_diffusion.checks.reprs import shown
from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import items_with
from sde_diffusion.commands.loading import random_order
from sde_diffusion.config import build_around, is_description
from sde_diffusion.data import DataModule, Split
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FAKE,
    REAL,
    TRAIN,
    FeatureMetric,
    Features,
    ReferenceKey,
    fingerprint,
    load_extractor,
    point_estimates,
    reference_statistics,
    untrained_name,
)
from sde_diffusion.storage.batches import in_batches
from sde_diffusion.storage.files import read_json, writing
from sde_diffusion.storage.progress import Bar

_PCA_ITEMS = 2000  # items of the training split that principal components are computed from


class DataSides:
    """The data in a comparison: the split (`REAL`), and the training split (`TRAIN`) if that is another one.

    Args:
        cfg: A configuration with split, cache and metrics.
        data: The data set.
        name: The extractor's name.
        extractor: The extractor.
        wanted: Values that the items must have; see `items_with`.

    Raises:
        UserError: If there is no such split.
    """

    def __init__(
        self, cfg: DictConfig, data: DataModule, name: str, extractor: nn.Module, wanted: Mapping[str, Tensor]
    ) -> None:
        self.cache, self.metrics, self.extractor = Path(cfg.cache), resolved(cfg.metrics), extractor
        splits = {REAL: cfg.split, **({TRAIN: "train"} if cfg.split != "train" else {})}
        self.batches = {
            side: functools.partial(_batches, data, data.split(split), wanted) for side, split in splits.items()
        }
        self._key = functools.partial(
            ReferenceKey,
            data=data.name,
            extractor=name,
            preprocessing=f"{list(data.shape)}, {data.levels or 'no'} levels, "
            f"resize {getattr(extractor, 'resize', 'none')}",
            extractor_digest=fingerprint(extractor),
        )
        self._splits = splits

    @functools.cached_property
    def keys(self) -> dict[str, ReferenceKey]:
        """The key under which the features of each side are cached."""
        return {
            side: self._key(split=self._splits[side], data_digest=fingerprint(batches()))
            for side, batches in self.batches.items()
        }

    def fill(self, features: Features, folder: Path) -> None:
        """Put the features of both sides into `features`, from the cache if possible; `folder` has partial results."""
        for side, key in self.keys.items():
            of = functools.partial(features.of, self.extractor)
            make = functools.partial(resumed_features, of, self.batches[side], folder / side, asdict(key))
            made = reference_statistics(self.cache, key, make).features
            assert made is not None
            features.put(self.extractor, side, made)

    def baseline(
        self, metrics: Mapping[str, FeatureMetric], features: Features, n: int
    ) -> tuple[dict[str, float], int]:
        """The metrics of real data: of n items of the training split (all if there are fewer) in place of samples.

        They do not depend on the samples, so they are cached.

        Args:
            metrics: Metrics of the configuration; those that use the training split themselves are left out.
            features: Features, filled by `fill`.
            n: Number of items.

        Returns:
            The values by name, and the number of items; ({}, 0) if the split is the training split itself.
        """
        if TRAIN not in self.batches:
            return {}, 0
        usable = {name: metric for name, metric in metrics.items() if TRAIN not in metric.sides}
        train = features(self.extractor, TRAIN)
        rows = random_order(len(train))[:n]
        about = {
            "keys": {side: asdict(key) for side, key in self.keys.items()},
            "n": len(rows),
            "metrics": {name: self.metrics[name] for name in usable},
            "version": __version__,  # other versions may compute metrics differently
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        path = self.cache / f"baseline-{digest[:32]}.json"
        found = _read(path)
        if found is None:

            def train_as_samples(extractor: nn.Module, side: str) -> Tensor:
                return features(extractor, TRAIN)[rows] if side == FAKE else features(extractor, side)

            found = point_estimates(usable, train_as_samples)
            with writing(path) as temporary:
                temporary.write_text(json.dumps({"of": about, "figures": found}, indent=2) + "\n")
        return found, len(rows)


def extractor_for(chosen: Any, data: DataModule, n: int) -> tuple[str, nn.Module]:
    """A feature extractor. The default is that of the data set, or else of its modality.

    Args:
        chosen: Name of the extractor, or its description {_target_: CLASS, ...}; None: the default.
        data: The data set.
        n: The smaller of the numbers of samples and data items; extractors without weights adapt their width to it.

    Returns:
        (name, extractor).

    Raises:
        UserError: If there is no such extractor, it is not one, or it takes samples of another shape.
    """
    train = data.split("train")

    def some(most: int = _PCA_ITEMS) -> Tensor:
        return data.modality.for_metrics(train.tensor(random_order(len(train))[:most]))

    if not is_description(chosen):
        name = untrained_name(chosen or data.extractor or data.modality.extractor(n), n)
        return name, load_extractor(name, data.shape, data=some)
    own = build_around(chosen, "extractor", shape=data.shape)
    check("extractor", own, nn.Module)
    own = own.eval().requires_grad_(False)
    x = some(2)
    found = own(x)
    wanted = [len(x), getattr(own, "num_features", None)]
    if not isinstance(found, Tensor) or list(found.shape) != wanted:
        raise UserError(
            f"extractor must return features [B, num_features], with an int num_features; {type(own).__name__} has "
            f"num_features={wanted[1]}, and returns {shown(getattr(found, 'shape', found))} for {len(x)} items"
        )
    arguments = ", ".join(f"{key}={value}" for key, value in chosen.items() if key != "_target_")
    return f"{chosen['_target_']}({arguments})", own


def _read(path: Path) -> dict[str, float] | None:
    """The values in a file; None if it is missing or damaged."""
    try:
        return {str(name): float(value) for name, value in read_json(path)["figures"].items()}
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _batches(data: DataModule, split: Split, wanted: Mapping[str, Tensor], size: int = 500) -> Iterator[Tensor]:
    return (data.modality.for_metrics(split.tensor(some)) for some in torch.split(items_with(split, wanted), size))


def resumed_features(
    of: Callable[[Tensor], Tensor], batches: Callable[[], Iterable[Tensor]], folder: Path, plan: Mapping[str, Any]
) -> Tensor:
    """Features of samples that come in batches; an interrupted computation resumes after its last finished batch.

    Args:
        of: Computes the features of a batch.
        batches: Returns an iterator over the batches of samples.
        folder: Where finished features are stored.
        plan: What the features depend on, apart from the samples.

    Returns:
        float32 [N, num_features].
    """
    numbered = enumerate(batches())

    def work(items: range, shown: Bar) -> dict[str, Tensor]:
        return {"features": of(next(some for number, some in numbered if number in items))}

    n, digest = sum(1 for _ in batches()), fingerprint(batches())
    done = in_batches("features, batch", n, 1, work, folder, {**plan, "samples": digest}, overwrite=True)
    return torch.cat(done.each("features"))
