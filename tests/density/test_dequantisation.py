"""Bits per dimension, and uniform noise in the levels' bins, on data whose probabilities are known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Categorical, MixtureSameFamily, Normal

from sde_diffusion.density import UniformDequantisation, bits_per_dim
from sde_diffusion.density.dequantisation import DEQUANTISATION_DRAWS
from sde_diffusion.density.lower_bound import ELBO_DRAWS
from sde_diffusion.density.trace import PROBE_DRAWS
from sde_diffusion.modality.levels import from_levels
from sde_diffusion.sampling import Noise


def test_the_numbers_of_the_literature():
    """The uniform density on the data's range costs log2 L bits: 8 for 256 levels, of which the range's size is 0 bits
    on [0, 1] and 1 on [-1, 1].
    """
    nothing = torch.zeros(3)
    assert bits_per_dim(nothing, 10, data_range=(0.0, 1.0)).tolist() == [8.0] * 3
    assert bits_per_dim(nothing, 10).tolist() == [7.0] * 3
    assert bits_per_dim(torch.tensor(-3072 * math.log(2)), (3, 32, 32)) == pytest.approx(8.0)
    for levels in (2, 17, 256):
        fill = UniformDequantisation(levels)
        low, high = fill.data_range
        assert high - low == pytest.approx(levels * fill.width)
        uniform = -64 * math.log(high - low) * torch.ones(1, 2)
        assert fill.bits_per_dim(uniform, (8, 8)).tolist() == pytest.approx([math.log2(levels)] * 2)


def test_bits_are_probabilities_of_levels():
    """A density that is constant on each bin, P(level) / width, in two dimensions."""
    probability = torch.tensor([0.5, 0.125, 0.25, 0.125])
    fill = UniformDequantisation(4)
    assert fill.width == pytest.approx(2 / 3)
    density = (probability / fill.width).log()
    both = density[0] + density[2]
    assert float(fill.bits_per_dim(both.reshape(1, 1), 2)) == pytest.approx(0.5 * (1 + 2))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_fills_its_bin_evenly(levels, dtype):
    """Kolmogorov and Smirnov's test at 1e-4; each level is the middle of its own bin, and the bins do not overlap."""
    fill = UniformDequantisation(levels)
    index = torch.arange(levels).repeat(20_000 // levels + 1).unsqueeze(1)
    x = from_levels(index, levels)
    moved = fill(x, Noise(range(len(x)), (1,), dtype=dtype), 0)
    assert moved.dtype == dtype
    low, high = fill.data_range
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    bin_ = (moved.double() - low) / (high - low) * levels - index
    assert bin_.min() > -rounding * levels
    assert bin_.max() < 1 + rounding * levels
    assert kstest(bin_.flatten().numpy(), "uniform").pvalue > 1e-4


def test_a_stream_of_its_own():
    """Sample i's noise is a function of its seed and the draw's number, and tells nothing of any other noise with that
    seed.
    """
    fill, n = UniformDequantisation(17), 20_000
    noise = Noise(range(n), (2,), dtype=torch.float64)
    zero = torch.zeros(n, 2)
    first, second = fill(zero, noise, 0), fill(zero, noise, 1)
    alone = fill(zero[:1], Noise([41], (2,), dtype=torch.float64), 1)
    assert torch.equal(alone[0], second[41])
    others = [noise.normal(draw) for draw in (0, 1, 2, PROBE_DRAWS, PROBE_DRAWS + 1, ELBO_DRAWS + 1, ELBO_DRAWS + 2)]
    for other in (second, *others):
        correlation = torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4.5 / (2 * n) ** 0.5
    assert DEQUANTISATION_DRAWS > 1e9


def test_more_draws_are_tighter_and_remain_bounds():
    """A density that varies much within bins, whose probabilities of levels are differences of its distribution
    function: over 20 000 seeds, the bits fall with K, towards the truth and never below it by more than 4.5 standard
    errors.
    """
    model = MixtureSameFamily(
        Categorical(torch.tensor([0.6, 0.4])), Normal(torch.tensor([-0.8, 0.5]), torch.tensor([0.15, 0.3]))
    )
    fill, n = UniformDequantisation(3), 20_000
    for level in (0, 1, 2):
        x = from_levels(torch.full((n, 1), level), 3)
        edges = torch.tensor([(level - 0.5) * fill.width - 1, (level + 0.5) * fill.width - 1])
        truth = -math.log2(float(model.cdf(edges).diff()))
        noise = Noise(range(n), (1,))
        logs = torch.stack([model.log_prob(fill(x, noise, k))[:, 0] for k in range(16)])
        gaps, error = [], 0.0
        for k in (1, 2, 4, 16):
            bits = fill.bits_per_dim(logs[:k], 1)
            error = float(bits.std()) / n**0.5
            gaps.append(float(bits.mean()) - truth)
            assert gaps[-1] > -4.5 * error
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 0.15 * gaps[0]
        assert gaps[0] > 20 * error


def test_what_is_refused():
    for levels in (1, 0, -3):
        with pytest.raises(ValueError, match=f"levels must be an integer of at least 2; got {levels}"):
            UniformDequantisation(levels)
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="give levels"):
        bits_per_dim(zero, 3, levels=None)
    for options in ({"levels": 1}, {"dims": 0}, {"dims": (3, 0)}, {"data_range": (1.0, -1.0)}, {"data_range": (0, 0)}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
            bits_per_dim(zero, **{"dims": 3, **options})


def test_integers_are_not_taken_for_densities_or_data():
    images = torch.full((2, 3), 200, dtype=torch.uint8)
    with pytest.raises(TypeError, match="log_prob must be floats"):
        bits_per_dim(images, 3)
    with pytest.raises(TypeError, match=r"x holds uint8.*from_levels"):
        UniformDequantisation(256).fill(images, torch.rand(2, 3))
    assert bits_per_dim(-6 * math.log(2), np.int64(3)).item() == pytest.approx(2 + 7)
    for dims in ((np.int64(3),), [3], torch.Size([3]), torch.tensor(3)):
        assert bits_per_dim(torch.zeros(1), dims).item() == pytest.approx(7)
