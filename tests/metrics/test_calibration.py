"""Ranks and coverages: against scipy's test, known laws, and draws that are calibrated or not."""

import numpy as np
import pytest
import torch
from scipy import stats

from sde_diffusion.metrics import coverage, rank_histogram


def items(n_items, n, numbers, spread=1.0, seed=0):
    """Correlated numbers of items: draws [N, n, numbers], whose spread is wrong by a factor, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, numbers, generator=generator)
    centre = torch.randn(n_items, 1, 3, generator=generator) @ mix
    x = centre + torch.randn(n_items, n + 1, 3, generator=generator) @ mix
    x = x + 0.3 * torch.randn(n_items, n + 1, numbers, generator=generator)
    return centre + spread * (x[:, 1:] - centre), x[:, 0]


def test_one_number_is_pearsons_test():
    draws, truth = items(200, 4, 1)
    found = rank_histogram(draws[..., 0], truth[:, 0], false_alarms=0.05)
    counts = torch.bincount((draws[..., 0] < truth[:, :1]).sum(1), minlength=5).tolist()
    assert found.counts == counts
    expected = stats.chisquare(counts)
    assert (found.chi_squared, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.threshold == pytest.approx(stats.chi2(4).isf(0.05))
    assert found.dof == 4
    assert found.std_errors == pytest.approx([(200 * 0.2 * 0.8) ** 0.5] * 5)


@pytest.mark.parametrize("numbers", [1, 40])
def test_false_alarms_and_misses(numbers):
    """Of 300 calibrated sets of 60 items 5% fail: between 1.5% and 10% (false alarms 2e-4). Of narrow ones, all."""
    p = [rank_histogram(*items(60, 4, numbers, seed=seed)).p_value for seed in range(300)]
    assert 0.015 < sum(one < 0.05 for one in p) / 300 < 0.1
    assert all(not rank_histogram(*items(60, 4, 40, spread=0.5, seed=seed)).is_uniform for seed in range(20))


def test_coverage():
    """Where the ends of the intervals are draws, as for n = 39, their coverage is that of NumPy's quantiles."""
    generator = torch.Generator().manual_seed(0)
    draws, truth = torch.randn(5000, 39, generator=generator), torch.randn(5000, generator=generator)
    for scale in (1.0, 0.5):
        found = coverage(scale * draws, truth, (0.5, 0.8, 0.95))
        for one in found:
            tail = (1 - one.level) / 2
            low, high = np.quantile(scale * draws.numpy(), [tail, 1 - tail], axis=1, method="weibull")
            share = ((truth.numpy() > low) & (truth.numpy() <= high)).mean()
            assert one.found == pytest.approx(share, abs=5e-4)  # rounding of quantiles
            assert one.std_error == pytest.approx((share * (1 - share) / 5000) ** 0.5, rel=0.01)
    few = coverage(draws[:, :9], truth)
    assert few[1].found == pytest.approx(0.8, abs=4 * (0.16 / 5000) ** 0.5)  # false alarms 6e-5
    assert few[0].found == pytest.approx(0.5, abs=4 * (0.25 / 5000) ** 0.5)  # its ends lie between draws
    assert few[2].found is None  # 39 draws are the fewest


def test_ties_and_few_items():
    draws = torch.sign(torch.randn(500, 4, 30, generator=torch.Generator().manual_seed(1)))
    truth = torch.sign(torch.randn(500, 30, generator=torch.Generator().manual_seed(2)))
    draws[..., 0], truth[:, 0] = 1, 1  # all agree: not counted
    found = rank_histogram(draws, truth)
    assert found.is_uniform
    assert sum(found.counts) == pytest.approx(500 * 29 * 15 / 16, rel=0.02)
    assert rank_histogram(draws[:8], truth[:8]).chi_squared is None
    assert rank_histogram(draws[:8], truth[:8]).is_uniform
    always_below = rank_histogram(torch.zeros(100, 4, 30), torch.ones(100, 30))
    assert not always_below.is_uniform
    assert always_below.counts == [0, 0, 0, 0, 3000]


def test_mistakes():
    for draws, truth, message in (
        (torch.zeros(3, 4, 2), torch.zeros(3, 4), r"draws must be \[N, n, \*\]"),
        (torch.zeros(3), torch.zeros(3), r"draws must be \[N, n, \*\]"),
        (torch.full((3, 4), torch.nan), torch.zeros(3), "draws is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_histogram(draws, truth)
    with pytest.raises(ValueError, match="levels must lie between 0 and 1"):
        coverage(torch.zeros(3, 4), torch.zeros(3), (1.0,))


@pytest.mark.parametrize(("n", "draws", "correlation"), [(50, 20, 1.0), (100, 9, 0.95), (60, 4, 0.0)])
def test_false_alarms_of_several_numbers_that_depend_on_each_other(n, draws, correlation):
    """Of 100 calibrated sets at 10%, from 2 to 20 fail: in 1% of runs more or fewer do."""
    generator, failed = torch.Generator().manual_seed(0), 0
    for seed in range(100):
        common, own = (torch.randn(n, draws + 1, k, generator=generator, dtype=torch.float64) for k in (1, 2))
        rows = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
        failed += not rank_histogram(rows[:, 1:], rows[:, 0], 0.1, seed=seed).is_uniform
    assert 2 <= failed <= 20
