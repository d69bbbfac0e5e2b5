"""Several metrics of the same samples, each of which passes through each extractor once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Unpack, cast

import torch
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.checks import check_samples
from sde_diffusion.metrics.intervals import CONFIDENCE, Interval, IntervalSettings, TooFewError, difference, report

CACHED = 2**17  # largest number of values that pass through an extractor at once on a CPU


class DerivedExtractor(Protocol):
    """An extractor whose features are computed from those of another, its `base`."""

    base: nn.Module

    def derive(self, features: Tensor) -> Tensor:
        """Features [B, num_features] from the `base`'s [B, D] of the same samples."""
        ...


class Features:
    """Features of the sets of samples, by extractor, computed when first needed.

    Those of a `DerivedExtractor` are computed from its base's, so that no sample passes through a network twice.

    Args:
        sides: For each of `FeatureMetric.sides` its samples [N, ...], or a function that returns them in batches.
        device: The device of the extractors.
        batch_size: Number of samples that pass through an extractor at once.
    """

    def __init__(
        self,
        sides: Mapping[str, Tensor | Callable[[], Iterable[Tensor]]],
        device: torch.device,
        batch_size: int = 500,
    ) -> None:
        self.sides, self.device, self.batch_size = dict(sides), device, batch_size
        self.seconds = 0.0
        self._made: dict[tuple[nn.Module, str], Tensor] = {}  # modules are compared by identity

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
        """Set features that are known already, such as those of a reference from a file."""
        self._made[extractor, side] = features

    def make(self, extractor: nn.Module, side: str) -> Tensor:
        """Compute the features of a set; see `__call__`."""
        samples = self.sides[side]
        batches = torch.split(samples, self.batch_size) if isinstance(samples, Tensor) else samples()
        return torch.cat([self.of(extractor, some) for some in batches])

    @torch.no_grad()
    def of(self, extractor: nn.Module, samples: Tensor) -> Tensor:
        """Features [B, num_features] float32 of samples [B, ...], on the CPU; raises as `__call__` does."""
        begin = time.perf_counter()
        check_samples(samples)
        size = self.batch_size
        if self.device.type == "cpu" and len(samples):
            # More than twice as fast if the images fit into the CPU's caches.
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
    """The result of `measure`.

    Attributes:
        figures: Each value with its interval.
        details: Further values, such as the z of `Memorisation`.
        skipped: Metrics that could not be computed, with the reason.
    """

    figures: dict[str, Interval] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def measure(
    metrics: Mapping[str, FeatureMetric],
    features: Callable[[nn.Module, str], Tensor],
    **settings: Unpack[IntervalSettings],
) -> Measured:
    """Compute metrics of the same samples, with confidence intervals; one that fails does not stop the others.

    Args:
        metrics: The metrics; they are cleared before and afterwards.
        features: Function from an extractor and a set to features, such as `Features`.
        **settings: See `IntervalSettings`.

    Returns:
        The values with their intervals (NaN if there are too few samples for them), details, and what was skipped.
    """
    found = Measured()

    def take(metric: FeatureMetric) -> None:
        try:
            figures, details = report(metric, **settings)
        except TooFewError:
            values, details = metric.point_estimates(), {}
            unknown = (math.nan, math.nan, math.nan, settings.get("confidence", CONFIDENCE))
            figures = {name: Interval(value, *unknown) for name, value in values.items()}
        found.figures.update(figures)
        found.details.update(details)

    found.skipped = _each(metrics, features, take)
    return found


def point_estimates(
    metrics: Mapping[str, FeatureMetric], features: Callable[[nn.Module, str], Tensor]
) -> dict[str, float]:
    """As `measure`, the values alone; metrics that cannot be computed are left out."""
    found: dict[str, float] = {}

    def take(metric: FeatureMetric) -> None:
        found.update(metric.point_estimates())

    _each(metrics, features, take)
    return found


def measure_differences(
    pairs: Mapping[str, tuple[FeatureMetric, FeatureMetric]],
    features: Callable[[nn.Module, str], Tensor],
    others: Callable[[nn.Module, str], Tensor],
    **settings: Unpack[IntervalSettings],
) -> Measured:
    """Metrics of one set of samples minus those of another of the same size, against the same data; see `difference`.

    Args:
        pairs: Two instances of each metric, for the two sets; cleared afterwards.
        features: As for `measure`, for the first set.
        others: As for `measure`, for the second set.
        **settings: See `IntervalSettings`.

    Returns:
        The differences as `figures`, and what was skipped.
    """
    found = Measured()
    for name, (one, other) in pairs.items():
        try:
            _fill(one, features)
            _fill(other, others)
            found.figures.update(difference(one, other, **settings))
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
    """Fill, compute and clear each metric; returns those that cannot be computed, with the reason."""
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
