"""Several metrics of one set of samples: each sample passes through each extractor once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.checks import check_samples
from sde_diffusion.metrics.intervals import Interval, Reference, TooFewError, difference, report

CACHED = 2**17  # numbers of samples that pass through an extractor at once on a CPU


class DerivedExtractor(Protocol):
    """An extractor whose features are made of those of another, its `base`."""

    base: nn.Module

    def derive(self, features: Tensor) -> Tensor:
        """Features [B, num_features] from the `base`'s [B, D] of the same samples."""
        ...


class Features:
    """Features of a metric's sides, by extractor, made when they are first asked for.

    Those of a `DerivedExtractor` are made of its base's: no sample passes twice.

    Args:
        sides: For each side of `FeatureMetric.sides` its samples [N, ...], or a function that gives them in batches.
        device: Where the extractors are.
        batch_size: Samples of a tensor that pass through an extractor at once.
    """

    def __init__(
        self,
        sides: Mapping[str, Tensor | Callable[[], Iterable[Tensor]]],
        device: torch.device,
        batch_size: int = 500,
    ) -> None:
        self.sides, self.device, self.batch_size = dict(sides), device, batch_size
        self.seconds = 0.0
        self._made: dict[tuple[nn.Module, str], Tensor] = {}  # modules are told apart by identity

    def __call__(self, extractor: nn.Module, side: str) -> Tensor:
        """Features [N, num_features] float32 of a side, on the CPU.

        Raises:
            UserError: If the samples are not finite, or images out of range.
            ValueError: If they are of another shape than the extractor's.
        """
        key = (extractor, side)
        if key not in self._made:
            made = self._derive(extractor, side) if hasattr(extractor, "derive") else self.make(extractor, side)
            self.put(extractor, side, made)
        return self._made[key]

    def put(self, extractor: nn.Module, side: str, features: Tensor) -> None:
        """Features that are known already, such as a reference's from a file."""
        self._made[extractor, side] = features

    def make(self, extractor: nn.Module, side: str) -> Tensor:
        """Pass a side through an extractor; see `__call__`."""
        given = self.sides[side]
        batches = torch.split(given, self.batch_size) if isinstance(given, Tensor) else given()
        return torch.cat([self.of(extractor, some) for some in batches])

    @torch.no_grad()
    def of(self, extractor: nn.Module, samples: Tensor) -> Tensor:
        """Features [B, num_features] float32 of samples [B, ...], on the CPU; raises as `__call__` does."""
        begin = time.perf_counter()
        check_samples(samples)
        size = self.batch_size
        if self.device.type == "cpu" and len(samples):
            # A CPU's caches hold few images; it is more than twice as fast with those at a time.
            size = max(8, CACHED // samples[0].numel())
        made = torch.cat([extractor(piece.to(self.device)).float().cpu() for piece in torch.split(samples, size)])
        self.seconds += time.perf_counter() - begin
        return made

    @torch.no_grad()
    def _derive(self, extractor: nn.Module, side: str) -> Tensor:
        derived_from = cast(DerivedExtractor, extractor)
        features = self(derived_from.base, side)
        begin = time.perf_counter()
        derived = derived_from.derive(features.to(self.device)).cpu()
        self.seconds += time.perf_counter() - begin
        return derived


@dataclass
class Measured:
    """What `measure` returns.

    Attributes:
        figures: Each figure with its interval.
        details: What metrics tell beside, such as the tests' z of `Memorisation`.
        skipped: Metrics that could not be taken, with the reason.
    """

    figures: dict[str, Interval] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def measure(
    metrics: Mapping[str, FeatureMetric],
    features: Callable[[nn.Module, str], Tensor],
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    reference: Reference = "sampled",
) -> Measured:
    """Take metrics of the same samples, with confidence intervals; one that cannot be taken does not stop the others.

    Args:
        metrics: The metrics; what they held is forgotten, and they are left empty.
        features: Gives an extractor's features of a side, such as `Features`.
        level: Coverage of the intervals.
        resamples: As for `interval`.
        seed: Likewise.
        reference: Likewise.

    Returns:
        Figures, those of too few samples without their intervals, details, and what was skipped.
    """
    found = Measured()

    def take(metric: FeatureMetric) -> None:
        try:
            figures, details = report(metric, level, resamples, seed, reference)
        except TooFewError:
            values, details = metric.point_estimates(), {}
            figures = {name: Interval(value, math.nan, math.nan, math.nan, level) for name, value in values.items()}
        found.figures.update(figures)
        found.details.update(details)

    found.skipped = _each(metrics, features, take)
    return found


def point_estimates(
    metrics: Mapping[str, FeatureMetric], features: Callable[[nn.Module, str], Tensor]
) -> dict[str, float]:
    """As `measure`, the figures alone; metrics that cannot be taken are left out."""
    found: dict[str, float] = {}

    def take(metric: FeatureMetric) -> None:
        found.update(metric.point_estimates())

    _each(metrics, features, take)
    return found


def measure_differences(
    pairs: Mapping[str, tuple[FeatureMetric, FeatureMetric]],
    features: Callable[[nn.Module, str], Tensor],
    others: Callable[[nn.Module, str], Tensor],
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    reference: Reference = "sampled",
) -> Measured:
    """Metrics of one set of samples minus those of another, as many against the same data; see `difference`.

    Args:
        pairs: For each metric two of it, for the one set and the other; left empty.
        features: As in `measure`, of the one set.
        others: Likewise, of the other.
        level: As in `measure`; so the others.
        resamples: Likewise.
        seed: Likewise.
        reference: Likewise.

    Returns:
        The differences as figures, and what was skipped.
    """
    found = Measured()
    for name, (one, other) in pairs.items():
        try:
            _fill(one, features)
            _fill(other, others)
            found.figures.update(difference(one, other, level, resamples, seed, reference))
        except UserError as error:
            found.skipped[name] = str(error)
        finally:
            one.clear()
            other.clear()
    return found


def _each(
    metrics: Mapping[str, FeatureMetric],
    features: Callable[[nn.Module, str], Tensor],
    take: Callable[[FeatureMetric], None],
) -> dict[str, str]:
    """Fill each metric, take it and empty it of all sides; returns those that cannot be taken, with the reason."""
    skipped = {}
    for name, metric in metrics.items():
        try:
            _fill(metric, features)
            take(metric)
        except UserError as error:
            skipped[name] = str(error)
        finally:
            metric.clear()
    return skipped


def _fill(metric: FeatureMetric, features: Callable[[nn.Module, str], Tensor]) -> None:
    metric.clear()
    for side in metric.sides:
        metric.add(features(metric.extractor, side), side)
