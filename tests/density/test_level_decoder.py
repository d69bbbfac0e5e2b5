"""Decoders against brute force over all levels, and against the true probabilities of data on few levels."""

import itertools
import math

import pytest
import torch
from density_cases import PATHS
from scipy.special import logsumexp
from torch.distributions import Normal

from sde_diffusion.denoiser import EmpiricalDenoiser
from sde_diffusion.density import GaussianDecoder, LevelDecoder, elbo
from sde_diffusion.modality.levels import from_levels
from sde_diffusion.sde import RectifiedFlow


def log_softmax(sde, t: float, levels: int, index, noise, weights=None):
    """By numpy, over all levels: log of q(z | x) w(x) over the sum of q(z | level) w(level)."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    grid = torch.arange(levels, dtype=torch.float64) * 2 / (levels - 1) - 1
    z = alpha * grid[index] + sigma * noise
    logs = -0.5 * ((z.unsqueeze(-1) - alpha * grid) / sigma) ** 2 + (0 if weights is None else weights.log())
    own = logs.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return (own - torch.from_numpy(logsumexp(logs.numpy(), axis=-1))).flatten(1).sum(1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("ratio", [1e-3, 0.02, 0.1, 0.6, 5.0, 150.0])
def test_brute_force(levels, ratio, weighted):
    """From noise that never hides a level to noise that hides them all; the ends' levels among them."""
    sde = PATHS["vp"]
    t = float(sde.time(-2 * math.log(ratio)))
    generator = torch.Generator().manual_seed(levels)
    index = torch.randint(levels, (50, 2, 3), generator=generator)
    index[:2], index[2:4] = 0, levels - 1
    noise = torch.randn(index.shape, generator=generator, dtype=torch.float64)
    weights = None
    if weighted:
        weights = torch.rand(2, 3, levels, generator=generator, dtype=torch.float64).pow(6) + 1e-4
    got = LevelDecoder(levels, weights).expected(sde, t, from_levels(index, levels).double(), noise)
    torch.testing.assert_close(got, log_softmax(sde, t, levels, index, noise, weights), rtol=1e-6, atol=1e-6)
    assert got.max() <= 0


@pytest.mark.parametrize(("levels", "ratio"), [(2, 0.7), (5, 0.3), (17, 0.2)])
def test_probabilities_of_all_levels_add_up(levels, ratio):
    """With noise chosen for each level so that z is the same for all, the decoder's probabilities sum to one."""
    sde = PATHS["ve"]
    t = float(sde.time(-2 * math.log(ratio)))
    x = from_levels(torch.arange(levels), levels).double().unsqueeze(1)
    for z in (-1.4, -0.3, 0.9):
        log_prob = LevelDecoder(levels).expected(sde, t, x, (z - x) / ratio)
        assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_where_it_stands():
    """Noise an eighth of the levels' distance, whatever the path: levels are still told apart."""
    for sde in PATHS.values():
        for levels in (2, 17):
            t = LevelDecoder(levels).default_t_end(sde)
            assert float(sde.sigma(t) / sde.alpha(t)) == pytest.approx(2 / (levels - 1) / 8, rel=1e-9)
            for place in LevelDecoder(levels).candidate_t_ends(sde):
                assert sde.t_min <= place < sde.t_max
        assert GaussianDecoder().default_t_end(sde) == sde.t_min
    assert LevelDecoder(256).default_t_end(RectifiedFlow(t_min=0.1)) == 0.1
    index = torch.randint(17, (200, 8), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)).double()
    sde = PATHS["cosine"]
    lost = LevelDecoder(17).expected(sde, LevelDecoder(17).default_t_end(sde), from_levels(index, 17).double(), noise)
    assert 0 <= -float(lost.mean()) / (8 * math.log(2)) < 1e-3


def test_frequencies_are_counted_with_one_added():
    x = from_levels(torch.tensor([[0, 2], [0, 1], [2, 2]]), 3)
    decoder = LevelDecoder.frequencies(3, x)
    assert decoder.log_weights.exp().tolist() == [pytest.approx([3.0, 1.0, 2.0]), pytest.approx([1.0, 2.0, 3.0])]


@pytest.mark.parametrize("name", PATHS)
def test_gaussian_decoder(name):
    """The mean of log N(x; z / alpha, sigma / alpha) over draws, within 4.5 standard errors."""
    sde, n = PATHS[name], 100_000
    t = 0.02 * sde.t_max
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    noise = torch.randn(n, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0.2, -1.0], [0.5, 0.0]], dtype=torch.float64)
    simulated = Normal((alpha * x + sigma * noise) / alpha, sigma / alpha).log_prob(x).flatten(1).sum(1)
    expected = GaussianDecoder().expected(sde, t, x.unsqueeze(0), noise[:1])
    assert abs(float(simulated.mean() - expected)) < 4.5 * float(simulated.std()) / n**0.5


# Points of two dimensions on three levels, and how often each is in the data.
TOY = {(0, 0): 5, (0, 2): 2, (1, 1): 1, (2, 1): 8}


@pytest.mark.parametrize("steps", [None, 200])
@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_below_the_true_probability_and_near_it(name, steps):
    """The exact denoiser of sixteen points, equal ones among them: for each, the bound's mean over 1000 seeds is at
    most the logarithm of its share and 4.5 standard errors, and less than 0.05 nats below (200 steps: 0.15); points
    that are no data are nearly impossible. The standard prior is within 1e-3 nats on these paths.
    """
    sde = PATHS[name]
    data = from_levels(torch.tensor([point for point, count in TOY.items() for _ in range(count)]), 3)
    denoiser = EmpiricalDenoiser(sde, data)
    for point in itertools.product(range(3), range(3)):
        x = from_levels(torch.tensor([point]), 3).repeat(1000, 1)
        result = elbo(denoiser, x, steps, 64, decoder=LevelDecoder(3))
        mean, error = float(result.log_prob.mean()), float(result.log_prob.std()) / 1000**0.5
        if point in TOY:
            truth = math.log(TOY[point] / 16)
            assert mean < truth + 4.5 * error, point
            assert mean > truth - (0.05 if steps is None else 0.15) - 4.5 * error, point
            assert error < 0.05
        else:
            assert mean < -20, point


def test_what_is_refused():
    for levels in (1, 0):
        with pytest.raises(ValueError, match=f"levels must be an integer of at least 2; got {levels}"):
            LevelDecoder(levels)
    for weights in (torch.ones(2, 4), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, math.nan, 1.0])):
        with pytest.raises(ValueError, match="weights must be positive and of shape"):
            LevelDecoder(3, weights)
    sde, noise = PATHS["vp"], torch.zeros(1, 2).double()
    for x in ([[0.1, 1.0]], [[0.0, 2.0]], [[-3.0, 0.0]]):
        with pytest.raises(ValueError, match="x must lie on the 3 levels"):
            LevelDecoder(3).expected(sde, 0.1, torch.tensor(x).double(), noise)
