r"""Confidence intervals of metrics, and of differences between two models; `spread` has the variances.

Squared distances S (all metrics with a `lift`) are estimated with an error that grows with them: V_1 = kappa S for
S, like a sum of squares, including the diagonal terms that make it positive. The simple interval S +- z V^(1/2) is too
short where S came out small by chance, as it may near a perfect score. So the interval contains all targets T that
satisfy

    (S - T)^2 <= z^2 (kappa T - V_2 / 2),    kappa = V_1 / S

as Wilson's interval does for proportions (Wilson 1927, "Probable Inference, the Law of Succession, and Statistical
Inference"), and is shifted back for an estimate without the diagonal.

In few dimensions the intervals of nearest-neighbour metrics cover at their nominal rate, and in many if the model is
good. For poor models in many features they can cover far less: use these values to rank models there, not for tests.
Intervals of their differences against a fixed reference are somewhat too short as well.
"""

from __future__ import annotations

import math
import typing
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict, Unpack

import torch
from scipy.stats import t as student
from torch import Tensor

from sde_diffusion.checks import as_fraction, check_choice, check_count
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.spread import Spread, spread

Reference = Literal["sampled", "fixed"]
CONFIDENCE = 0.95


class TooFewError(UserError):
    """There are too few samples for an interval, though perhaps not for the value."""


@dataclass(frozen=True)
class Interval:
    """A value with its uncertainty; low, high and std_error are NaN if there are too few samples for them.

    Args:
        value: The value.
        low: Lower end of the interval.
        high: Upper end.
        std_error: Standard error of `value`.
        confidence: Nominal coverage, in (0, 1).
    """

    value: float
    low: float
    high: float
    std_error: float
    confidence: float

    def as_dict(self) -> dict[str, float | None]:
        """Numbers for a JSON file, None for NaN."""
        return {name: None if math.isnan(number) else number for name, number in asdict(self).items()}

    @property
    def ends(self) -> str:
        """The interval as text."""
        return "too few samples" if math.isnan(self.low) else f"[{self.low:.4g}, {self.high:.4g}]"

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.ends}"


class IntervalSettings(TypedDict, total=False):
    """How intervals are computed.

    Keys:
        confidence: Nominal coverage, in (0, 1); 0.95 by default.
        resamples: Number of halves that are evaluated, 200 by default; for nearest neighbours also of groups times
            rounds, of which fewer, down to 6 halves and 5 rounds, are used if there are more than `spread.MANY_PAIRS`
            pairs. 0 omits the second-order correction, so that intervals near a perfect score are up to 1.2 times
            wider; those of nearest neighbours then rest on a single round of groups, and are rough.
        seed: Of the halves and groups; 0 by default.
        reference: `sampled`, the default: the real side is a sample too, and the interval includes its randomness;
            `fixed`: the real side defines the target, as when everybody compares with the same 50,000 images.
    """

    confidence: float
    resamples: int
    seed: int
    reference: Reference


@dataclass(frozen=True)
class _Settings:
    """Checked `IntervalSettings`."""

    confidence: float = CONFIDENCE
    resamples: int = 200
    seed: int = 0
    reference: Reference = "sampled"

    def __post_init__(self) -> None:
        as_fraction("confidence", self.confidence, inside=True)
        check_count("resamples", self.resamples, least=0)
        check_choice("reference", self.reference, typing.get_args(Reference))

    def spread(self, metric: FeatureMetric, real: Tensor, fake: Tensor) -> Spread:
        return spread(metric, real, fake, self.resamples, self.seed, self.reference == "fixed")


def interval(metric: FeatureMetric, **settings: Unpack[IntervalSettings]) -> dict[str, Interval]:
    """A metric's values with confidence intervals, over all processes.

    An interval is for the expected value at these numbers of samples: distances and manifolds depend on them, so only
    values at equal N can be compared. The unbiased ones (kernel and energy distance, Fréchet distance at infinity)
    have the same expected value at every N, that of the distributions.

    Args:
        metric: The metric.
        **settings: See `IntervalSettings`.

    Returns:
        An `Interval` for each of the metric's `names`.

    Raises:
        UserError: If there are too few samples.
        ValueError: If an argument is out of its range.
    """
    return report(metric, **settings)[0]


def report(metric: FeatureMetric, **settings: Unpack[IntervalSettings]) -> tuple[dict[str, Interval], dict[str, float]]:
    """A metric's values with intervals, and its `details`, such as the z of `Memorisation`; over all processes.

    Args:
        metric: The metric.
        **settings: See `IntervalSettings`.

    Returns:
        What `interval` returns, and numbers that have no interval, by name.

    Raises:
        UserError: If there are too few samples.
        ValueError: If an argument is out of its range.
    """
    wanted = _Settings(**settings)
    with metric.synchronised():
        real, fake = metric.sets()
        z = _quantile(metric, wanted.confidence, len(real), len(fake))
        # The spread first: what halves need holds for some metrics what the values need.
        variances = wanted.spread(metric, real, fake).variances()
        values = metric.values(real, fake)
        ends = _ends(
            metric,
            values,
            metric.lift(real, fake),
            variances,
            metric.trials(real, fake, wanted.reference == "fixed"),
            z,
        )
        error = (variances[0] - variances[1]).sqrt() * _slope(metric, values)
        found = _named(metric.names, wanted.confidence, *(metric.present(x) for x in (values, *ends)), error)
        return found, metric.details(real, fake)


def difference(a: FeatureMetric, b: FeatureMetric, **settings: Unpack[IntervalSettings]) -> dict[str, Interval]:
    """Values of `a` minus those of `b`, with confidence intervals: is one model or sampler better than the other?

    Sample i of one is paired with sample i of the other, so that what both share through the same seed or the same
    reference cancels. With several processes both must be divided among them in the same way.

    Args:
        a: Metric of the first model's samples.
        b: Metric of the same class of the second's, in the same order of seeds, against the same real data.
        **settings: See `IntervalSettings`.

    Returns:
        An `Interval` for each of the metric's `names`; a difference is significant if its interval excludes 0.

    Raises:
        ValueError: If the metrics are of different classes, or have different real data or numbers of samples.
        UserError: If there are too few samples.
    """
    wanted = _Settings(**settings)
    if type(a) is not type(b):
        raise ValueError(f"a difference takes two metrics of one class; got {type(a).__name__}, {type(b).__name__}")
    with a.synchronised(), b.synchronised():
        sets = a.sets(), b.sets()
    shapes = [tuple(part.shape) for pair in sets for part in pair]
    if shapes[:2] != shapes[2:] or not torch.equal(sets[0][0], sets[1][0]):
        raise ValueError(
            f"a difference takes the same real data and equal numbers of samples; got real and generated features of "
            f"shapes {shapes[:2]} and {shapes[2:]}, {'the same' if shapes[0] == shapes[2] else 'other'} numbers of real"
        )
    z = _quantile(a, wanted.confidence, *(shape[0] for shape in shapes[:2]))
    spreads = [wanted.spread(metric, *pair) for metric, pair in zip((a, b), sets, strict=True)]
    values = [metric.values(*pair) for metric, pair in zip((a, b), sets, strict=True)]
    first, second = spreads[0].minus(spreads[1], _slope(a, values[0]), _slope(b, values[1])).variances()
    gap = a.present(values[0]) - b.present(values[1])
    # Of proportions at least that of two samples that change sides: what has not been seen in n samples has a
    # proportion of up to 3 / n, with 95% confidence.
    least = torch.tensor([2.0 * (name in a.proportions) for name in a.names], device=gap.device) / shapes[1][0] ** 2
    error = torch.maximum(first - second, least).sqrt()
    margin = z * error
    return _named(a.names, wanted.confidence, gap, gap - margin, gap + margin, error)


def _quantile(metric: FeatureMetric, confidence: float, *counts: int) -> float:
    """Student's quantile with n / 4 degrees of freedom for n samples of the smaller side.

    A variance of n values of kurtosis k has 2n / (k - 1); influences are close to squares, where k is 9 or more.
    """
    few = min(count for count in counts if count)  # a side that is not used has none
    if few < metric.least_for_intervals:
        raise TooFewError(
            f"{type(metric).__name__}: an interval needs at least {metric.least_for_intervals} samples of each side; "
            f"got {few}"
        )
    return float(student.ppf((1 + confidence) / 2, few / 4))


def _ends(
    metric: FeatureMetric,
    values: Tensor,
    lift: Tensor | None,
    variances: tuple[Tensor, Tensor],
    most: Tensor,
    z: float,
) -> tuple[Tensor, Tensor]:
    """Ends of the interval, [S] each, before `present`; `most` is what `FeatureMetric.trials` returns."""
    first, second = variances
    if lift is not None:
        squares = (values + lift).clamp(min=torch.finfo(values.dtype).tiny)
        kappa = first / squares
        middle = squares + 0.5 * z * z * kappa
        half = z * (first + (0.5 * z * kappa).square() - second).sqrt()
        # A square far below its own error is rounding: the two sets are equal, or all points are.
        rounding = first >= 1e6 * squares.square()
        middle, half = torch.where(rounding, values + lift, middle), torch.where(rounding, z * first.sqrt(), half)
        return middle - half - lift, middle + half - lift
    # For proportions, Wilson's interval at the number of independent trials that would have this variance: it stays
    # within [0, 1], and has a width even if all samples agree.
    variance = first - second
    proportion = torch.tensor([name in metric.proportions for name in metric.names], device=values.device)
    binomial = values * (1 - values)
    trials = torch.where((variance > 0) & (binomial > 0), binomial / variance, most).clamp(min=1).minimum(most)
    shrink = torch.where(proportion, 1 + z * z / trials, 1.0)
    centre = torch.where(proportion, values + z * z / (2 * trials), values) / shrink
    squared = torch.where(proportion, binomial / trials + (z / (2 * trials)).square(), variance)
    width = z * squared.sqrt() / shrink
    return centre - width, centre + width


def _slope(metric: FeatureMetric, values: Tensor) -> Tensor:
    """Derivative of `present`, [S]."""
    with torch.inference_mode(False), torch.enable_grad():
        inner = values.clone().requires_grad_()
        (slope,) = torch.autograd.grad(metric.present(inner).sum(), inner)
    return slope


def _named(names: tuple[str, ...], confidence: float, *columns: Tensor) -> dict[str, Interval]:
    """Intervals by name, from their values, ends and standard errors, [S] each."""
    value, low, high, error = (column.tolist() for column in columns)
    return {name: Interval(value[i], low[i], high[i], error[i], confidence) for i, name in enumerate(names)}
