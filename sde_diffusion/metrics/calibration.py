"""Are draws from a posterior calibrated? Ranks of the truth among them, and coverage of their intervals.

If a truth and n draws given its measurement follow the same distribution, the rank of the truth among the draws is
uniform on 0 ... n, for any number that is computed from an item and its measurement (Talts et al. 2018, "Validating
Bayesian Inference Algorithms with Simulation-Based Calibration"). Coordinates alone do not notice draws that ignore the
measurement, or whose errors cancel: several numbers are needed, such as the residual and a density (Modrak et al. 2023,
"Simulation-Based Calibration Checking for Bayesian Computation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from sde_diffusion.checks import as_fraction, check_batch

_FEWEST = 5  # ranks that are expected in a group
_REPEATS, _LEAST_REPEATS = 10, 2000  # choices beyond the threshold of a permutation test, and choices in all
_AT_ONCE = 1 << 22  # numbers of the choices that are computed at once


@dataclass(frozen=True)
class RankHistogram:
    """How often the truth has each rank among n draws.

    Attributes:
        counts: How often it has 0, 1, ... n draws below it, [n + 1].
        std_errors: Standard deviation of each count if all ranks are equally likely, [n + 1].
        chi_squared: Distance of the counts from equal ones; None if there are too few items for a test.
        dof: Its degrees of freedom, with one number for each item for ranks in groups of at least five expected items.
        p_value: Probability of a larger distance if all ranks are equally likely.
        threshold: The distance that is exceeded with probability `false_alarms`.
        false_alarms: That probability.
    """

    counts: list[int]
    std_errors: list[float]
    chi_squared: float | None
    dof: int
    p_value: float | None
    threshold: float | None
    false_alarms: float

    @property
    def is_uniform(self) -> bool:
        """Whether the distance is below the threshold; True without a test."""
        return self.p_value is None or self.p_value >= self.false_alarms


@dataclass(frozen=True)
class Coverage:
    """How often the truth lies in central intervals of the draws.

    Attributes:
        level: The nominal coverage, such as 0.8.
        found: The share that was found; None if there are fewer draws than 2 / (1 - level) - 1, the fewest that have
            draws beyond both ends of the interval.
        std_error: Its standard error over the items; None also for a single item.
    """

    level: float
    found: float | None
    std_error: float | None


def rank_histogram(draws: Tensor, truth: Tensor, false_alarms: float = 0.01, seed: int = 0) -> RankHistogram:
    """The ranks of the truth among draws, and a test of whether they are uniform.

    With one number for each item the test is Pearson's chi-squared test. With several, such as all pixels, ranks of one
    item depend on each other. Then chi_squared = N d^T S^-1 d for the mean d over the N items of counts minus expected
    counts, and S their second moments over items and rows. If the draws are calibrated, the n + 1 rows of an item, the
    truth and its draws, are exchangeable: the distribution is that over random choices of the row that counts as the
    truth, independent for each item, which makes the test exact (a permutation test).

    Args:
        draws: [N, n, *].
        truth: [N, *].
        false_alarms: Probability that draws which are calibrated fail the test, in (0, 1).
        seed: For ties, which are broken at random. Numbers in which the truth and all draws agree are left out.

    Raises:
        TypeError: If draws or truth are not tensors of floats.
        ValueError: If the shapes do not fit together, a number is NaN or infinite, or false_alarms is out of range.
    """
    false_alarms = as_fraction("false_alarms", false_alarms, inside=True)
    counts = _counts(draws, truth, seed)
    n, generator = draws.shape[1], torch.Generator().manual_seed(seed)
    total, size = counts.sum(0), counts.sum(1, keepdim=True)
    off = counts - size / (n + 1)
    single = draws[0, 0].numel() == 1
    variance = size.sum() * (1 / (n + 1)) * (1 - 1 / (n + 1)) if single else off.square().sum(0)
    std_errors = variance.sqrt().expand(n + 1).tolist()
    items = int((size > 0).sum())
    groups = min(n + 1, items // _FEWEST)
    if groups < 2:
        return RankHistogram(total.long().tolist(), std_errors, None, 0, None, None, false_alarms)
    if not single:
        test = _permutation_test(_counts_of_rows(draws, truth, generator), false_alarms, generator)
        return RankHistogram(total.long().tolist(), std_errors, *test, false_alarms)
    parts = torch.tensor_split(torch.arange(n + 1), groups)
    observed = torch.stack([counts[:, part].sum(1) for part in parts], 1)
    expected = size * torch.tensor([len(part) / (n + 1) for part in parts], dtype=torch.float64)
    distance = float(((observed.sum(0) - expected.sum(0)).square() / expected.sum(0)).sum())
    law = stats.chi2(groups - 1)
    test = (distance, groups - 1, float(law.sf(distance)), float(law.isf(false_alarms)))
    return RankHistogram(total.long().tolist(), std_errors, *test, false_alarms)


def _permutation_test(
    counts: Tensor, false_alarms: float, generator: torch.Generator
) -> tuple[float, int, float, float]:
    """chi_squared, its rank, p value and threshold; see `rank_histogram`.

    Args:
        counts: What `_counts_of_rows` returns, [N, n + 1, n + 1].
        false_alarms: See `rank_histogram`.
        generator: Of the choices.
    """
    d = counts - counts.sum(2, keepdim=True) / counts.shape[2]
    items, rows = d.shape[:2]
    values, vectors = torch.linalg.eigh(torch.einsum("ija,ijb->ab", d, d) / (items * rows))
    kept = values > 1e-9 * values.amax()
    white = d @ (vectors[:, kept] / values[kept].sqrt())  # of unit variance in each direction
    repeats = max(_LEAST_REPEATS, math.ceil(_REPEATS / false_alarms))
    found = []
    for some in torch.split(torch.arange(repeats), max(1, _AT_ONCE // white[:, 0].numel())):
        chosen = torch.randint(rows, (len(some), items), generator=generator)
        found.append(white[torch.arange(items), chosen].mean(1).square().sum(1) * items)
    law, distance = torch.cat(found), float(white[:, 0].mean(0).square().sum() * items)
    p_value = (1 + int((law >= distance).sum())) / (1 + repeats)
    return distance, int(kept.sum()), p_value, float(law.quantile(1 - false_alarms))


def coverage(draws: Tensor, truth: Tensor, levels: Sequence[float] = (0.5, 0.8, 0.95), seed: int = 0) -> list[Coverage]:
    """How often the truth lies in the central intervals of draws, whose ends are quantiles of the draws.

    The n draws divide the line into n + 1 cells, each of which contains the truth with probability 1 / (n + 1) if the
    draws are calibrated. An interval with its ends within cells counts a share of each, so that its coverage is exactly
    the level for any n.

    Args:
        draws: [N, n, *].
        truth: [N, *].
        levels: The nominal coverages, in (0, 1).
        seed: See `rank_histogram`.

    Raises:
        TypeError: If draws or truth are not tensors of floats.
        ValueError: If the shapes do not fit together, a number is NaN or infinite, or a level is out of range.
    """
    counts, n = _counts(draws, truth, seed), draws.shape[1]
    size = counts.sum(1)
    cells = torch.arange(n + 1, dtype=torch.float64)
    found = []
    for level in (as_fraction("levels", one, inside=True) for one in levels):
        low = (n + 1) * (1 - level) / 2
        if low < 1 - 1e-9 or not bool(size.any()):
            found.append(Coverage(level, None, None))
            continue
        inside = ((cells + 1).clamp(max=n + 1 - low) - cells.clamp(min=low)).clamp(min=0)
        hits = counts @ inside
        share = hits.sum() / size.sum()
        items = len(hits)
        error = (hits - share * size).square().sum().sqrt() / size.sum() * math.sqrt(items / max(1, items - 1))
        found.append(Coverage(level, float(share), float(error) if items > 1 else None))
    return found


def ranks_of(draws: Tensor, truth: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Number of draws below the truth, ties broken at random, and whether not all agree; [N, numbers] each.

    Args:
        draws: [N, n, *].
        truth: [N, *].
        seed: Of the ties.

    Raises:
        TypeError, ValueError: See `rank_histogram`.
    """
    for name, values in (("draws", draws), ("truth", truth)):
        check_batch(name, values.unsqueeze(-1) if values.ndim == 1 else values)
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != truth.shape:
        raise ValueError(f"draws must be [N, n, *], and the truth [N, *]; got {list(draws.shape)}, {list(truth.shape)}")
    x, own = draws.flatten(2) if draws.ndim > 2 else draws.unsqueeze(2), truth.reshape(len(truth), 1, -1)
    below, equal = (x < own).sum(1), (x == own).sum(1)
    chance = torch.rand(equal.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return below + (chance * (equal + 1)).floor().long(), equal < x.shape[1]


def _counts_of_rows(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """What `_counts` is for the truth, for each row of [truth, draws] in its place, [N, n + 1, n + 1], float64."""
    x = torch.cat([truth.unsqueeze(1), draws], 1).flatten(2)
    order = torch.rand(x.shape, generator=generator).argsort(1)  # ties are broken at random
    ranks = order.gather(1, x.gather(1, order).argsort(dim=1, stable=True)).argsort(1)
    counted = (x != x[:, :1]).any(1, keepdim=True)
    return torch.stack([((ranks == rank) & counted).sum(2) for rank in range(x.shape[1])], 2).double()


def _counts(draws: Tensor, truth: Tensor, seed: int) -> Tensor:
    """How many numbers of each item have 0, 1, ... n draws below the truth, [N, n + 1], float64."""
    ranks, counted = ranks_of(draws, truth, seed)
    return torch.stack([((ranks == rank) & counted).sum(1) for rank in range(draws.shape[1] + 1)], 1).double()
