r"""How a statistic of two sets of features varies with the samples: the variances behind confidence intervals.

The ordinary bootstrap fails here. It draws points twice, and a repeated point is a near neighbour at distance 0, an
exact copy of the training data, a covariance of lower rank, a diagonal term in an unbiased estimate. So nothing is
drawn with replacement. One of two methods is used:

*Influences*, for smooth statistics (Fréchet, kernel, energy and Wasserstein distances, inception score). To first
order the statistic changes by the mean of psi(x_i) over real samples plus the mean of psi(y_j) over generated ones, the
infinitesimal jackknife (Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6), with

    V_1 = var(psi(x)) / n + var(psi(y)) / m

Where samples are nearly as good as data, the first order vanishes and the second dominates. V_1 counts it twice, and
the variance V_h over random halves without replacement three times (each Hoeffding component of order k is counted k
and 2^k - 1 times). Their difference estimates the second-order variance V_2, clamped to [0, V_1 / 2], and the variance
is V = V_1 - V_2 / 2. Subtracting V_2 would be right on average, but it is estimated with an error of its own, which
makes intervals near a perfect score too short; subtracting nothing makes them too wide.

*Groups*, for statistics without an influence function, such as those of nearest neighbours (precision, recall,
density, coverage), in which components of every order matter. Both sets are split at random into disjoint groups. The
groups are independent, so the variance of the statistic among them is unbiased; if it falls as 1/n, V is that variance
over the number of groups, averaged over many splits. It does not if the groups are too small to resolve what the full
sets resolve: in many dimensions the balls about few points are larger, and contain everything. So V is at least the
variance over random halves without replacement, and for proportions at least that of independent trials.

Coverages of the resulting intervals, measured: benchmarks/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.metrics.base import FeatureMetric

GROUPS = 5
MANY_PAIRS = 5_000_000
"""With more pairs of a real and a generated sample, groups and halves are fewer."""


@dataclass(frozen=True)
class Spread:
    """How a statistic varies with its samples, before that becomes a variance; linear in the statistic.

    The spreads of two models' statistics on the same reference and the same seeds can be subtracted: the result is the
    spread of the difference of the statistics.

    Args:
        psi: Influences of the samples of each side that varies, [S, n_i] each; empty for the method of groups.
        halves: The statistic on random halves, [R, S], R >= 0.
        groups: The statistic on disjoint groups, [rounds, groups, S], rounds >= 0.
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
        """The variance V_1 (or that of groups), and V_2 / 2, which is to be subtracted, [S] each; see the module."""
        if len(self.groups):
            total = self.groups.var(1).mean(0) / self.groups.shape[1]
            if len(self.halves) > 1:
                total = torch.maximum(total, self.halves.var(0))
            return total, torch.zeros_like(total)
        first = torch.stack([psi.var(1) / psi.shape[1] for psi in self.psi]).sum(0)
        if len(self.halves) < 2:
            return first, torch.zeros_like(first)
        return first, 0.5 * torch.minimum((self.halves.var(0) - first).clamp(min=0), first / 2)


def spread(metric: FeatureMetric, real: Tensor, fake: Tensor, resamples: int, seed: int, fixed: bool) -> Spread:
    """The spread of a metric's statistic.

    Args:
        metric: The metric.
        real: [N, D] float64.
        fake: [M, D] float64.
        resamples: Number of halves, or of groups times rounds; see `intervals.interval`.
        seed: Of the halves and groups.
        fixed: Whether the real side is fixed, rather than a sample too.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed = fixed or not len(real)  # a metric may use the generated side alone
    if metric.has_influence:
        return _by_influence(metric, real, fake, resamples, generator, fixed)
    return _by_groups(metric, real, fake, resamples, generator, fixed)


def _split(x: Tensor, parts: int, generator: torch.Generator) -> Tensor:
    """Indices of `parts` disjoint random subsets of x [n, D], [parts, n // parts]."""
    n = len(x)
    return torch.randperm(n, generator=generator)[: n // parts * parts].view(parts, n // parts).to(x.device)


def _by_groups(
    metric: FeatureMetric, real: Tensor, fake: Tensor, resamples: int, generator: torch.Generator, fixed: bool
) -> Spread:
    share = min(1.0, MANY_PAIRS / max(1, len(real) * len(fake)))
    most = resamples // GROUPS
    rounds = []
    for _ in range(max(1, min(most, 5), round(most * share))):
        a, b = _split(real, GROUPS, generator), _split(fake, GROUPS, generator)
        # A fixed reference is represented in each round by one of its groups: the ratio of the sizes stays the same.
        pairs = [(a[0 if fixed else i], b[i]) for i in range(GROUPS)]
        rounds.append(torch.stack([metric.values(real[i], fake[j]) for i, j in pairs]))
    count = max(min(resamples, 6), round(resamples * share))  # a half costs as much as a round of groups
    subsets = [(_split(real, 2, generator)[0], _split(fake, 2, generator)[0]) for _ in range(count)]
    some = [metric.values(real if fixed else real[a], fake[b]) for a, b in subsets]
    halves = torch.stack(some) if some else real.new_empty(0, len(metric.names))
    return Spread((), halves, torch.stack(rounds))


def _by_influence(
    metric: FeatureMetric, real: Tensor, fake: Tensor, resamples: int, generator: torch.Generator, fixed: bool
) -> Spread:
    enough = (len(fake) if fixed else min(len(real), len(fake))) >= 4
    halves = real.new_empty(0, len(metric.names))
    if resamples and enough and metric.second_order:
        b = torch.stack([_split(fake, 2, generator)[0] for _ in range(resamples)])
        if fixed:
            a = torch.arange(len(real), device=real.device).expand(resamples, -1)
        else:
            a = torch.stack([_split(real, 2, generator)[0] for _ in range(resamples)])
        # Before the influences: what halves need holds for some metrics what influences need.
        halves = metric.halves(real, fake, a, b)
    return Spread(metric.influences(real, fake, fixed), halves, real.new_empty(0, 0, len(metric.names)))
