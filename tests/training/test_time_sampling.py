"""Distribution of training times against the density that defines each, by Kolmogorov-Smirnov and chi-squared tests.

Each test of a distribution raises a false alarm with probability 1e-4 (before the seeds were fixed).
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference_paths import PATHS, column
from scipy import stats

from sde_diffusion.sde import SDE, VESDE, VPSDE, BetaTable, GeometricLevels
from sde_diffusion.training import DiscreteTimes, ImportanceTimes, LogNormalTimes, TimeSampling, UniformTimes

Array = NDArray[np.float64]
Density = Callable[[Array], Array]
FALSE_ALARM = 1e-4


def _decay(t: Array) -> Array:
    return np.exp(-(0.1 * t + 9.95 * t**2))  # e^-B


# g^2 / sigma^2 from the papers' SDEs: beta dt; beta (1 - e^-2B); d sigma^2/dt; and 2 / (t (1 - t)) for the flow.
DENSITIES: dict[str, Density] = {
    "vp": lambda t: (0.1 + 19.9 * t) / (1 - _decay(t)),
    "subvp": lambda t: (0.1 + 19.9 * t) * (1 - _decay(t) ** 2) / (1 - _decay(t)) ** 2,
    "ve": lambda t: np.full_like(t, 2 * np.log(5000)),
    "edm": lambda t: 2 / t,
    "rectified": lambda t: 2 / t + 2 / (1 - t),
}


def cdf(density: Density, low: float, high: float) -> Density:
    """The distribution function of an unnormalised density on [low, high], by the trapezium rule on a dense grid."""
    start = max(low, 1e-6)
    grid = np.unique(np.concatenate([np.geomspace(start, high, 40_001), np.linspace(start, high, 40_001)]))
    mass = np.concatenate([[0], np.cumsum(np.diff(grid) * (density(grid)[1:] + density(grid)[:-1]) / 2)])
    return lambda t: np.interp(t, grid, mass / mass[-1])


def draw(times: TimeSampling, sde: SDE, n: int = 20_000) -> Array:
    torch.manual_seed(4)
    return times(sde, n).numpy()


@pytest.mark.parametrize("path", PATHS)
def test_uniform_times(path: str) -> None:
    sde = PATHS[path][0]
    t = draw(UniformTimes(), sde)
    assert stats.kstest(t, stats.uniform(sde.t_min, sde.t_max - sde.t_min).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("path", DENSITIES)
def test_importance_times_follow_g2_over_sigma2(path: str) -> None:
    sde = PATHS[path][0]
    assert stats.kstest(draw(ImportanceTimes(), sde), cdf(DENSITIES[path], sde.t_min, sde.t_max)).pvalue > FALSE_ALARM


def test_importance_times_follow_g2_over_sigma2_on_the_cosine_path() -> None:
    """alpha = cos, sigma = sin of an angle linear in t: g^2 / sigma^2 is 1 / (sin cos) up to a constant."""
    low = np.arctan(np.exp(-7.5))
    high = np.pi / 2 - low
    angle = low + (high - low) * draw(ImportanceTimes(), PATHS["cosine"][0])
    exact = cdf(lambda a: 1 / (np.sin(a) * np.cos(a)), low, high)
    assert stats.kstest(angle, exact).pvalue > FALSE_ALARM


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 3.0)])
def test_log_normal_noise_levels(path: str, mean: float, std: float) -> None:
    """log(sigma / alpha) is normal, truncated to the path's range: with VE and a wide std, both ends matter."""
    sde, alpha, sigma, _ = PATHS[path]
    t = torch.from_numpy(draw(LogNormalTimes(mean, std), sde, 3000))
    log_s = (column(sigma, t.tolist()) / column(alpha, t.tolist())).log()[:, 0].numpy()
    ends = [np.log(float(sigma(end) / alpha(end))) for end in (sde.t_min, sde.t_max)]
    low, high = ((end - mean) / std for end in ends)
    assert stats.kstest(log_s, stats.truncnorm(low, high, loc=mean, scale=std).cdf).pvalue > FALSE_ALARM


def test_discrete_times_are_the_levels_each_as_likely() -> None:
    t = draw(DiscreteTimes(GeometricLevels(10, 0.01, 50.0)), VESDE())
    level = t * 9  # geometric levels on a geometric path: i / 9
    np.testing.assert_allclose(level, np.round(level), atol=1e-9)
    counts = np.bincount(np.round(level).astype(int), minlength=10)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_stratified_discrete_times_take_each_ddpm_step_once() -> None:
    sde, table = VPSDE(t_max=1.004), BetaTable()
    t = draw(DiscreteTimes(table, stratified=True), sde, 1000)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(np.sort(_decay(t)), np.sort(alpha_bar), rtol=1e-9)


@pytest.mark.parametrize("n", [1, 7, 128])
def test_stratified_draws_have_one_in_each_stratum(n: int) -> None:
    sde = PATHS["vp"][0]
    exact = cdf(DENSITIES["vp"], sde.t_min, sde.t_max)
    for seed in range(20):
        torch.manual_seed(seed)
        uniform = UniformTimes(stratified=True)(sde, n).numpy()
        importance = ImportanceTimes(stratified=True)(sde, n).numpy()
        for u in ((uniform - sde.t_min) / (sde.t_max - sde.t_min), exact(importance)):
            assert sorted(np.floor(u * n * (1 - 1e-6)).astype(int)) == list(range(n))


def test_each_stratified_draw_is_uniform_by_itself() -> None:
    sde = PATHS["vp"][0]
    torch.manual_seed(5)
    draws = torch.stack([UniformTimes(stratified=True)(sde, 8) for _ in range(3000)]).numpy()
    for i in range(8):
        assert stats.kstest(draws[:, i], stats.uniform(sde.t_min, sde.t_max - sde.t_min).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("path", PATHS)
def test_importance_keeps_the_average_over_uniform_time(path: str) -> None:
    """The midpoint rule in u of importance(t) h(t), against the integral of h in closed form."""
    sde = PATHS[path][0]
    times = ImportanceTimes()
    t = times.strata(sde, 50_000)
    weight = times.importance(sde, t)
    span = sde.t_max - sde.t_min
    for k in (0, 1, 3):
        mean = ((t - sde.t_min) / span).pow(k).mul(weight).mean().item()
        assert mean == pytest.approx(1 / (k + 1), rel=1e-5)
        # Times that are part of the objective, in contrast, are not weighted back.
    assert bool((LogNormalTimes().importance(sde, t) == 1).all())


def test_strata_are_fixed_midpoints() -> None:
    sde = PATHS["edm"][0]
    times = LogNormalTimes(stratified=True)
    torch.manual_seed(0)
    first = times.strata(sde, 16)
    torch.manual_seed(1)
    second = times.strata(sde, 16)
    assert torch.equal(first, second)
    low, high = ((np.log(s) + 1.2) / 1.2 for s in (0.002, 80.0))
    u = stats.truncnorm(low, high, loc=-1.2, scale=1.2).cdf(first.log().numpy())
    np.testing.assert_allclose(u, (np.arange(16) + 0.5) / 16, atol=1e-9)


def test_importance_sampling_says_where_log_snr_is_infinite() -> None:
    with pytest.raises(ValueError, match="give the path t_min > 0"):
        ImportanceTimes()(VPSDE(t_min=0.0), 4)


def test_log_normal_refuses_a_zero_std() -> None:
    with pytest.raises(ValueError, match="std"):
        LogNormalTimes(std=0.0)
