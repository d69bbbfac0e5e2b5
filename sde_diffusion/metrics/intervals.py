r"""Confidence intervals of statistics of two sets of features, and of differences of two models' statistics.

The ordinary bootstrap fails here: it draws points twice, and a repeated point is a near neighbour at distance 0, an
exact copy of the training data, a covariance of lower rank, a diagonal term in an unbiased estimate. So nothing is
drawn with replacement. Two methods are used (tests/metrics measures their coverage):

*Influences*, for smooth statistics (Fréchet, kernel, energy and Wasserstein distances, inception score). To first
order the statistic moves by the mean of psi(x_i) over real samples plus the mean of psi(y_j) over generated ones, the
infinitesimal jackknife (Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6), with

    V_1 = var(psi(x)) / n + var(psi(y)) / m

Where samples are nearly as good as data, the first order vanishes and the second decides, which V_1 counts twice and
the spread of random halves without replacement, V_h, three times (each Hoeffding component of order k is counted k and
2^k - 1 times). The difference of the two is one second-order variance V_2, held within [0, V_1 / 2]. Half of it is
taken off: V = V_1 - V_2 / 2. All of it would be right on average, but is estimated with an error of its own, which
makes intervals near a perfect score too short; with none of it they are too wide. (Coverages: benchmarks/README.md.)

Squared distances S (all but the inception score) are estimated with an error that grows with them: V_1 = kappa S for
S, like a sum of squares, with the diagonal terms that make it positive. The plain interval S +- z V^(1/2) is too short
where S came out small by chance, as it may near a perfect score. So the interval holds all
targets T that would not be surprised by S,

    (S - T)^2 <= z^2 (kappa T - V_2 / 2),    kappa = V_1 / S

as Wilson's interval does for shares (Wilson 1927, "Probable Inference, the Law of Succession, and Statistical
Inference"), and is shifted back for an estimate without the diagonal.

*Groups*, for statistics without an influence function, such as those of nearest neighbours (precision, recall,
density, coverage), whose components of every order matter. Both sets are split at random into disjoint groups, which
are independent, so that the statistic's variance among groups has no bias; where variance falls as 1/n, V is that over
the number of groups, averaged over many splits. It does not where groups are too small to see what the whole sees: in
many dimensions the balls of few points are larger, and hold everything. So V is at least the spread of random halves
without replacement, and for shares that of independent trials. In few dimensions that covers at its nominal rate, and
in many where the model is good; for poor models in many features the intervals can cover far less: there these figures
rank and do not test. Differences against a fixed reference are somewhat too short as well.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from scipy.stats import t as student
from torch import Tensor

from sde_diffusion.checks import as_number, check_choice, check_count
from sde_diffusion.errors import UserError

Reference = Literal["sampled", "fixed"]
GROUPS = 5
LEAST = 25  # samples a side for an interval: with fewer, intervals are too short
MANY_PAIRS = 5_000_000  # of real and generated samples: beyond, statistics of neighbours are taken of fewer subsets


class TooFewError(UserError):
    """Samples are too few for an interval, though perhaps not for the figure."""


@dataclass(frozen=True)
class Interval:
    """A statistic with its uncertainty; low, high and std_error are NaN where samples are too few for them.

    Args:
        value: The statistic.
        low: Lower end of the interval.
        high: Upper end.
        std_error: Standard error of `value`.
        level: Nominal coverage.
    """

    value: float
    low: float
    high: float
    std_error: float
    level: float

    def as_dict(self) -> dict[str, float | None]:
        """Plain numbers for a JSON file, None for NaN."""
        return {name: None if math.isnan(number) else number for name, number in asdict(self).items()}

    @property
    def ends(self) -> str:
        """The interval in words."""
        return "too few samples" if math.isnan(self.low) else f"[{self.low:.4g}, {self.high:.4g}]"

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.ends}"


@dataclass(frozen=True)
class Spread:
    """How a statistic moves with its samples, before that is made a variance; linear in the statistic.

    Two models' spreads on the same reference and the same seeds can be subtracted: the difference is the spread of the
    difference of their statistics.

    Args:
        psi: Influences of the samples of each side that varies, [S, n_i] each.
        halves: Statistic on random halves, [R, S], R >= 0.
        groups: Statistic on disjoint groups, [rounds, groups, S], rounds >= 0.
    """

    psi: tuple[Tensor, ...]
    halves: Tensor
    groups: Tensor

    def minus(self, other: Spread, scale: Tensor, other_scale: Tensor) -> Spread:
        """scale * self - other_scale * other, [S] each."""
        return Spread(
            tuple(scale[:, None] * a - other_scale[:, None] * b for a, b in zip(self.psi, other.psi, strict=True)),
            scale * self.halves - other_scale * other.halves,
            scale * self.groups - other_scale * other.groups,
        )

    def variances(self) -> tuple[Tensor, Tensor]:
        """Variance by the method, and the part that is taken off, [S] each; see the module."""
        if len(self.groups):
            total = self.groups.var(1).mean(0) / self.groups.shape[1]
            if len(self.halves) > 1:
                total = torch.maximum(total, self.halves.var(0))
            return total, torch.zeros_like(total)
        first = torch.stack([psi.var(1) / psi.shape[1] for psi in self.psi]).sum(0)
        if len(self.halves) < 2:
            return first, torch.zeros_like(first)
        return first, 0.5 * torch.minimum((self.halves.var(0) - first).clamp(min=0), first / 2)


class WithIntervals:
    """Gives a metric intervals: a mixin for metrics that keep features.

    A metric states its `names`, S of them, and its `statistic`; with an `influence` its intervals come from that, and
    without one from groups; see the module.
    """

    names: tuple[str, ...] = ()
    proportions: tuple[str, ...] = ()
    least: int = 2

    @property
    def least_for_intervals(self) -> int:
        """Samples of each side that an interval needs; fewer would make it too short."""
        return LEAST

    def _quantile(self, level: float, *counts: int) -> float:
        """Student's for the smaller side of n samples, by which intervals of few are longer, with n / 4 degrees.

        A variance of n values of kurtosis k has 2n / (k - 1); influences are close to squares, where k is 9 or more.

        Raises:
            TooFewError: If there are too few samples for an interval.
        """
        few = min(count for count in counts if count)  # a side that is not looked at has none
        if few < self.least_for_intervals:
            raise TooFewError(
                f"{type(self).__name__}: an interval needs at least {self.least_for_intervals} samples of each side; "
                f"got {few}"
            )
        return float(student.ppf((1 + level) / 2, few / 4))

    def _sets(self) -> tuple[Tensor, Tensor]:
        """Real and generated features, [N, D] and [M, D] float64, checked."""
        raise NotImplementedError

    def joined(self) -> AbstractContextManager[None]:
        """A context in which the sets are those of all processes."""
        return nullcontext()

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor | float:
        """The figures of two sets of features, on the scale where they are smooth; see `FeatureMetric`."""
        raise NotImplementedError(f"{type(self).__name__} must have a method statistic(real, fake)")

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """How each sample moves each figure; see `FeatureMetric`."""
        raise NotImplementedError

    def present(self, values: Tensor) -> Tensor:
        """Monotone map of the figures, [S], to the reported scale; see `FeatureMetric`."""
        return values

    def _values(self, real: Tensor, fake: Tensor) -> Tensor:
        """The statistic as float64 [S]."""
        values = torch.as_tensor(self.statistic(real, fake), dtype=torch.float64, device=real.device).reshape(-1)
        if len(values) != len(self.names):
            raise ValueError(
                f"{type(self).__name__}.statistic must return a figure for each of names={self.names}; got "
                f"{len(values)}"
            )
        return values

    def _halves(self, real: Tensor, fake: Tensor, real_rows: Tensor, fake_rows: Tensor) -> Tensor:
        """The statistics on subsets given by index, [R, n] and [R, m] -> [R, S]."""
        pairs = zip(real_rows, fake_rows, strict=True)
        return torch.stack([self._values(real[a], fake[b]) for a, b in pairs])

    def _spread(self, real: Tensor, fake: Tensor, resamples: int, seed: int, reference: Reference) -> Spread:
        generator = torch.Generator().manual_seed(seed)
        fixed = reference == "fixed" or not len(real)  # a metric may look at the generated side alone
        no_halves, no_groups = real.new_empty(0, len(self.names)), real.new_empty(0, 0, len(self.names))

        def split(n: int, parts: int) -> Tensor:
            """`parts` disjoint random subsets of n // parts indices each."""
            return torch.randperm(n, generator=generator)[: n // parts * parts].view(parts, n // parts).to(real.device)

        if type(self).influence is WithIntervals.influence:
            share = min(1.0, MANY_PAIRS / max(1, len(real) * len(fake)))
            most = resamples // GROUPS
            rounds = []
            for _ in range(max(1, min(most, 5), round(most * share))):
                a, b = split(len(real), GROUPS), split(len(fake), GROUPS)
                # A fixed reference stands in each round as one of its groups: the ratio of the sizes stays.
                pairs = [(a[0 if fixed else i], b[i]) for i in range(GROUPS)]
                rounds.append(torch.stack([self._values(real[i], fake[j]) for i, j in pairs]))
            count = max(min(resamples, 6), round(resamples * share))  # a half costs as much as a round of groups
            subsets = [(split(len(real), 2)[0], split(len(fake), 2)[0]) for _ in range(count)]
            some = [self._values(real if fixed else real[a], fake[b]) for a, b in subsets]
            return Spread((), torch.stack(some) if some else no_halves, torch.stack(rounds))
        resamples = resamples if (len(fake) if fixed else min(len(real), len(fake))) >= 4 else 0
        b = torch.stack([split(len(fake), 2)[0] for _ in range(resamples)]) if resamples else torch.empty(0, 0)
        whole = torch.arange(len(real), device=real.device).expand(resamples, -1)
        a = whole if fixed or not resamples else torch.stack([split(len(real), 2)[0] for _ in range(resamples)])
        halves = self._halves(real, fake, a, b) if resamples else no_halves
        shapes = zip(self.influence(real, fake), (real, fake), strict=True)
        psi_real, psi_fake = (psi.reshape(len(self.names), len(x)) for psi, x in shapes)
        return Spread((psi_fake,) if fixed else (psi_real, psi_fake), halves, no_groups)

    def lift(self, real: Tensor, fake: Tensor) -> Tensor | None:
        """What to add to a squared distance, [S], so that it is a sum of squares; None if it is no squared distance."""
        return None

    def _trials(self, real: Tensor, fake: Tensor, reference: Reference) -> Tensor:
        """Of shares, how many independent trials each can at most be the mean of, [S]."""
        return real.new_tensor(float(len(fake))).expand(len(self.names))

    def _ends(
        self, values: Tensor, lift: Tensor | None, variances: tuple[Tensor, Tensor], most: Tensor, z: float
    ) -> tuple[Tensor, Tensor]:
        """Ends of the interval on the inner scale, [S] each; `most` is what `_trials` returns."""
        first, second = variances
        if lift is not None:
            squares = (values + lift).clamp(min=torch.finfo(values.dtype).tiny)
            kappa = first / squares
            middle = squares + 0.5 * z * z * kappa
            half = z * (first + (0.5 * z * kappa).square() - second).sqrt()
            # A square that is nothing beside its own error is rounding: the sets are the same, or all points are.
            plain = first >= 1e6 * squares.square()
            middle, half = torch.where(plain, values + lift, middle), torch.where(plain, z * first.sqrt(), half)
            return middle - half - lift, middle + half - lift
        # For shares, Wilson's interval at the number of independent trials that would have this variance: it keeps
        # within [0, 1], and has a width also where all samples agree.
        variance = first - second
        share = torch.tensor([name in self.proportions for name in self.names], device=values.device)
        spread = values * (1 - values)
        trials = torch.where((variance > 0) & (spread > 0), spread / variance, most).clamp(min=1).minimum(most)
        shrink = torch.where(share, 1 + z * z / trials, 1.0)
        centre = torch.where(share, values + z * z / (2 * trials), values) / shrink
        squared = torch.where(share, spread / trials + (z / (2 * trials)).square(), variance)
        width = z * squared.sqrt() / shrink
        return centre - width, centre + width

    def interval(
        self, level: float = 0.95, resamples: int = 200, seed: int = 0, reference: Reference = "sampled"
    ) -> dict[str, Interval]:
        """The metric's figures with confidence intervals.

        An interval is for the figure's expected value at these numbers of samples: distances and manifolds depend on
        them, which is why only figures at equal N compare. The unbiased ones (kernel and energy distance, Fréchet
        distance at infinity) have the same expected value at every N, that of the distributions.

        Args:
            level: Coverage, between 0 and 1.
            resamples: Halves that are evaluated, and for nearest neighbours also groups times rounds; of these fewer,
                down to 6 halves and 5 rounds, where there are more than `MANY_PAIRS` pairs. 0 leaves the second-order
                correction out, so that intervals near a perfect score are up to 1.2 times wider; those of nearest
                neighbours then rest on a single round of groups, and are rough.
            seed: Of the halves and groups.
            reference: `sampled`: the real side is a sample too, and the interval holds its chance; `fixed`: the real
                side is the definition of the target, as where everybody compares with the same 50,000 images.

        Returns:
            An `Interval` for each of `names`.

        Raises:
            UserError: If there are too few samples.
            ValueError: If an argument is out of its range.
        """
        return self.report(level, resamples, seed, reference)[0]

    def point_estimates(self) -> dict[str, float]:
        """The metric's figures alone, of samples that would do for intervals; over all processes.

        Raises:
            UserError: If there are too few samples.
        """
        with self.joined():
            figures = self.present(self._values(*self._sets()))
        return dict(zip(self.names, figures.tolist(), strict=True))

    def report(
        self, level: float = 0.95, resamples: int = 200, seed: int = 0, reference: Reference = "sampled"
    ) -> tuple[dict[str, Interval], dict[str, float]]:
        """The metric's figures, and what it tells beside them, by name; over all processes.

        Args:
            level: See `interval`; so the others.
            resamples: Likewise.
            seed: Likewise.
            reference: Likewise.

        Returns:
            What `interval` returns, and numbers that have no interval, such as the tests' z of `Memorisation`.

        Raises:
            UserError: If there are too few samples.
            ValueError: If an argument is out of its range.
        """
        check_settings(level, resamples, reference)
        with self.joined():
            real, fake = self._sets()
            z = self._quantile(level, len(real), len(fake))
            # Halves first: what they need holds for some metrics what the values need.
            variances = self._spread(real, fake, resamples, seed, reference).variances()
            values = self._values(real, fake)
            ends = self._ends(values, self.lift(real, fake), variances, self._trials(real, fake, reference), z)
            error = (variances[0] - variances[1]).sqrt() * self._scale(values)
            figures = named(self.names, level, *(self.present(x) for x in (values, *ends)), error)
            return figures, self.details(real, fake)

    def details(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """See `FeatureMetric`."""
        return {}

    def _scale(self, values: Tensor) -> Tensor:
        """Derivative of `present`, [S]."""
        with torch.inference_mode(False), torch.enable_grad():
            inner = values.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.present(inner).sum(), inner)
        return slope


def named(names: tuple[str, ...], level: float, *columns: Tensor) -> dict[str, Interval]:
    """Intervals by name, from their values, ends and standard errors, [S] each."""
    value, low, high, error = (column.tolist() for column in columns)
    return {name: Interval(value[i], low[i], high[i], error[i], level) for i, name in enumerate(names)}


def check_settings(level: float, resamples: int, reference: str) -> None:
    """See that an interval's settings are allowed.

    Raises:
        ValueError: If one is not.
    """
    if not 0 < as_number("level", level) < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level!r}")
    check_count("resamples", resamples, least=0)
    check_choice("reference", reference, ("sampled", "fixed"))
