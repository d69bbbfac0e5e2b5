"""Noise: the same bits for a seed wherever it is drawn, and numbers that no test tells from independent normals.

The seeds are fixed, so that a run cannot fail by chance. The bounds are set so that a perfect generator, given other
seeds, would fail one of these tests with a probability of about 1e-4 in all.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sde_diffusion.sampling import Noise

DTYPES = [torch.float32, torch.float64]


def two_sided(p: float) -> float:
    return 2 * min(p, 1 - p)


def uniforms(n_seeds: int, pairs: int, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The 32-bit integers that the normals were made of, by undoing Box and Muller's map: two of [n_seeds, pairs]."""
    x, y = Noise(range(n_seeds), (2 * pairs,), dtype=torch.float64).normal(draw).chunk(2, dim=1)
    u = torch.exp(-(x.square() + y.square()) / 2) * 2.0**32 - 0.5
    angle = (torch.atan2(y, x) / (2 * math.pi)).remainder(1.0) * 2.0**32
    assert (u - u.round()).abs().max() < 1e-4
    assert (angle - angle.round()).abs().max() < 1e-4
    return u.round().long(), angle.round().long() % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(1,), (2,), (7,), (3, 5, 5), (1, 28, 28), (3, 32, 32)])
def test_a_seed_gives_the_same_bits_in_any_batch(dims, dtype):
    seeds = [*range(60), -3, 2**40, -(2**62), 2**63 - 1]
    together = Noise(seeds, dims, dtype=dtype)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    for draw in (0, 1, 999):
        want = together.normal(draw)
        assert want.shape == (64, *dims)
        assert want.dtype == dtype
        for size in (1, 7, 64):
            parts = [Noise(seeds[i : i + size], dims, dtype=dtype).normal(draw) for i in range(0, 64, size)]
            assert torch.equal(torch.cat(parts), want), size
        shuffled = Noise([seeds[i] for i in order], dims, dtype=dtype).normal(draw)
        assert torch.equal(shuffled, want[order])
        assert torch.equal(Noise([5, 5, 9], dims, dtype=dtype).normal(draw), want[[5, 5, 9]])


def test_a_draw_is_a_function_of_its_number_alone():
    noise = Noise([3, 4], (11,))
    first = noise.normal(2)
    kept = first.clone()
    noise.normal(0)
    noise.normal(7).zero_()
    first.zero_()  # what a caller does to a draw in place must not come back
    assert torch.equal(noise.normal(2), kept)
    assert not torch.equal(noise.normal(3), kept)


def test_float32_is_float64_rounded():
    low, high = (Noise(range(100), (1001,), dtype=dtype).normal(5) for dtype in DTYPES)
    # u and the angle are rounded to 24 bits: 2e-6 on the normals, and sqrt(2^-23) where u rounds near 1 (radius ~ 0).
    error = (low.double() - high).abs()
    assert error.max() < 4e-4
    assert error.mean() < 1e-6


def test_normality():
    """Kolmogorov-Smirnov and moments of a million numbers, each dtype; false alarms 1e-6 and 4 x 6e-7 each."""
    for dtype in DTYPES:
        x = Noise(range(1000), (1000,), dtype=dtype).normal(0).flatten().double().numpy()
        assert scipy.stats.kstest(x, "norm").pvalue > 1e-6
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            z = (np.mean(x**power) - mean) / math.sqrt(variance / x.size)
            assert abs(z) < 5, (dtype, power, z)


def test_tails():
    """Of 10^7 numbers as many lie beyond 4 and 5 as should: 633 and 5.7 expected; false alarms 2e-6."""
    x = Noise(range(10), (1_000_000,)).normal(0).abs()
    for bound in (4.0, 5.0):
        expected = 1e7 * 2 * scipy.stats.norm.sf(bound)
        count = int((x > bound).sum())
        assert two_sided(scipy.stats.poisson.cdf(count, expected)) > 1e-6, (bound, count, expected)


def check_uncorrelated(rows: torch.Tensor) -> None:
    """Correlations of all pairs of rows [R, N]: the largest, and the sum of squares; false alarms 1e-5 and 1e-5."""
    r, n = rows.shape
    rows = rows.double() - rows.double().mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    z = (rows @ rows.T * math.sqrt(n))[*torch.triu_indices(r, r, 1)]
    pairs = len(z)
    assert z.abs().max() < scipy.stats.norm.isf(0.5e-5 / pairs)
    assert two_sided(scipy.stats.chi2.cdf(float(z.square().sum()), pairs)) > 1e-5
    neighbours = (rows[1:] * rows[:-1]).sum(1) * math.sqrt(n)  # consecutive seeds, draws or elements
    assert abs(neighbours.sum()) < 5 * math.sqrt(r)


@pytest.mark.parametrize("power", [1, 2])
def test_seeds_draws_and_elements_are_independent(power):
    """Correlations of the numbers and of their squares, over consecutive seeds, consecutive draws, and elements."""
    seeds = Noise(range(400), (10_000,)).normal(0)
    noise = Noise([12345], (10_000,))
    draws = torch.cat([noise.normal(k) for k in range(400)])
    elements = Noise(range(10_000), (401,)).normal(0).T  # odd, so that the last pair is cut
    for rows in (seeds, draws, elements):
        check_uncorrelated(rows**power)


def test_seed_and_draw_are_not_interchangeable():
    """Draw k + 1 of seed s is no relative of draw k of seed s + 1, nor of seed s + any constant the hash adds."""
    table = [Noise(range(40), (5000,)).normal(k) for k in range(10)]
    check_uncorrelated(torch.cat(table))


def test_no_hashed_value_repeats():
    """3000 seeds x 10 draws x 100 counters: 64-bit values coincide by chance with a probability of 2.4e-7."""
    values = torch.cat([(u << 32 | angle).flatten() for u, angle in (uniforms(3000, 100, k) for k in range(10))])
    assert len(values.unique()) == 3_000_000
    u, angle = uniforms(1, 1_000_000)  # one long stream
    assert len((u << 32 | angle).unique()) == 1_000_000


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_bits_are_uniform(shift):
    """Chi-squared of each byte of both 32-bit integers over a million values; false alarms 2 x 1e-6 a byte."""
    for values in uniforms(1000, 1000, draw=3):
        counts = ((values >> shift) & 255).flatten().bincount(minlength=256)
        statistic = float((counts - values.numel() / 256).square().sum() / (values.numel() / 256))
        assert two_sided(scipy.stats.chi2.cdf(statistic, 255)) > 1e-6


def test_seeds_of_any_sign_and_size():
    seeds = [5, -5, 2**63 + 5, 2**64 - 6, -(2**63), 2**63 - 1, np.int64(77), np.uint64(2**64 - 78)]
    rows = Noise(seeds, (20_000,)).normal(0)
    check_uncorrelated(rows)
    assert torch.equal(Noise([2**64 + 5, 2**64 - 5], (9,)).normal(1), Noise([5, -5], (9,)).normal(1))  # modulo 2^64
    assert torch.equal(Noise(torch.tensor([5, -5]), (9,)).normal(1), Noise([5, -5], (9,)).normal(1))


@pytest.mark.parametrize("seeds", [[], [0.5], [1, 2.25], [float("nan")], ["a"]])
def test_what_is_no_seed(seeds):
    with pytest.raises(ValueError, match="seed"):
        Noise(seeds, (3,))
