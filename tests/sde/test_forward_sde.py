"""The marginals are those of the forward SDE dx = f x dt + g dw: by its moment equations and by simulating it."""

import math

import numpy as np
import pytest
import torch
from reference_paths import CASES, SIX
from scipy.integrate import solve_ivp
from scipy.stats import norm

PATHS = 40_000
STEPS = 240
# 6 paths x 2 starts x 3 times x 2 moments, all of them within bounds but once in 10,000 seeds.
Z = norm.isf(1e-4 / (6 * 2 * 3 * 2) / 2)
# Where the simulation starts, its three times, and the exponent p of its clock t^p (steps uniform in it).
SPANS = {
    "vp": (0.0, (0.2, 0.5, 1.0), 0.5),
    "subvp": (0.0, (0.2, 0.5, 1.0), 0.5),
    "cosine": (0.0, (0.3, 0.6, 0.95), 1.0),
    "ve": (0.0, (0.3, 0.7, 1.0), 1.0),
    "edm": (0.0, (1.0, 10.0, 80.0), 0.25),
    "rectified": (0.0, (0.3, 0.7, 0.95), 1.0),
}


@pytest.mark.parametrize("name", SIX)
def test_moment_equations(name):
    """m' = f m, v' = 2 f v + g^2 (Sarkka & Solin 2019, equation 6.2), by DOP853 to 1e-11."""
    sde, _, _ = CASES[name]
    start, times, _ = SPANS[name]
    one = torch.ones(1, 1, dtype=torch.float64)

    def rate(t, y):
        f = sde.drift(one, t).item()
        return [f * y[0], 2 * f * y[1] + sde.diffusion(t).item() ** 2]

    begin = [sde.alpha(start).item(), sde.sigma(start).item() ** 2]
    solution = solve_ivp(rate, (start, times[-1]), begin, "DOP853", t_eval=times, rtol=1e-11, atol=1e-14)
    t = torch.tensor(times, dtype=torch.float64)
    np.testing.assert_allclose(solution.y[0], sde.alpha(t).numpy(), rtol=1e-9)
    np.testing.assert_allclose(solution.y[1], sde.sigma(t).numpy() ** 2, rtol=1e-8)


def midpoint_steps(sde, times):
    """The implicit midpoint rule, x' = x + h f (x + x') / 2 + g sqrt(h) z with f and g at the middle of the step, as
    x' = growth x + kick z: weak order 2 (Milstein & Tretyakov 2004, section 2.2)."""
    middle = torch.from_numpy(0.5 * (times[1:] + times[:-1]))
    h = np.diff(times)
    f = sde.drift(torch.ones(len(middle), 1, dtype=torch.float64), middle)[:, 0].numpy()
    damping = 1 / (1 - 0.5 * h * f)
    return (1 + 0.5 * h * f) * damping, sde.diffusion(middle).numpy() * np.sqrt(h) * damping


def legs(name):
    """The path, its start, and the steps' times from there to each of the three times in turn."""
    sde, _, _ = CASES[name]
    begin, ends, clock = SPANS[name]
    times = []
    for s, t in zip((begin, *ends), ends, strict=False):
        times.append(np.linspace(s**clock, t**clock, STEPS // 3 + 1) ** (1 / clock))
    return sde, begin, times


@pytest.mark.parametrize("start", ["point", "two points"])
@pytest.mark.parametrize("name", SIX)
def test_simulated_paths(name, start):
    """Mean and variance of 40,000 paths; Monte Carlo errors of 0.5% of the spread and 0.7% of the variance."""
    sde, begin, times = legs(name)
    generator = np.random.default_rng(20 + SIX.index(name))
    if start == "point":
        x0, data_mean, data_variance = np.full(PATHS, 1.5), 1.5, 0.0
    else:  # -1 with probability 0.3, else 2
        x0, data_mean, data_variance = np.where(generator.random(PATHS) < 0.3, -1.0, 2.0), 1.1, 9 * 0.3 * 0.7
    x = sde.alpha(begin).item() * x0 + sde.sigma(begin).item() * generator.standard_normal(PATHS)
    for leg in times:
        for growth, kick in zip(*midpoint_steps(sde, leg), strict=True):
            x = growth * x + kick * generator.standard_normal(PATHS)
        alpha, variance = sde.alpha(leg[-1]).item(), sde.sigma(leg[-1]).item() ** 2
        square = (x - x.mean()) ** 2
        assert abs(x.mean() - alpha * data_mean) < Z * x.std() / math.sqrt(PATHS), leg[-1]
        assert abs(square.mean() - alpha**2 * data_variance - variance) < Z * square.std() / math.sqrt(PATHS), leg[-1]


@pytest.mark.parametrize("name", SIX)
def test_the_steps_of_the_simulation_are_fine_enough(name):
    """The same scheme's mean and variance without sampling: within a tenth of the Monte Carlo error above."""
    sde, begin, times = legs(name)
    mean, variance = sde.alpha(begin).item(), sde.sigma(begin).item() ** 2
    for leg in times:
        for growth, kick in zip(*midpoint_steps(sde, leg), strict=True):
            mean, variance = growth * mean, growth**2 * variance + kick**2
        alpha, sigma = sde.alpha(leg[-1]).item(), sde.sigma(leg[-1]).item()
        assert abs(mean - alpha) < 5e-4 * sigma
        assert abs(variance / sigma**2 - 1) < 7e-4
