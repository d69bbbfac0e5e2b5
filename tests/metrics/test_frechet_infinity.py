import math

import interval_cases as cases
import pytest
import torch

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import FrechetInfinity, Pixels, interval


def of(real, fake):
    return cases.fed(lambda: FrechetInfinity(Pixels(real.shape[1:])), real, fake)


@pytest.mark.parametrize("model", [pytest.param(m, marks=() if m == "bad" else pytest.mark.slow) for m in cases.MODELS])
def test_the_bias_of_finite_numbers_is_gone(model):
    mean, scale = cases.MODELS[model]
    exact = mean**2 + (scale - 1) ** 2
    plain, infinite = [], []
    for i in range(100):
        real, fake = cases.draw(200, 8, 2 * i), cases.draw(200, 8, 2 * i + 1, mean, scale)
        metric = of(real, fake)
        infinite.append(metric.compute())
        plain.append(metric.lift(*metric.sets())[0] + infinite[-1])
    plain, infinite = torch.stack(plain), torch.stack(infinite)
    error = infinite.std() / math.sqrt(100)
    assert abs(infinite.mean() - exact) < 4 * error  # false alarm 6e-5
    assert plain.mean() - exact > 8 * error


@pytest.mark.slow
def test_the_slope_is_the_bias_times_n():
    # Two samples of N(0, 1) in one dimension: E (mean - mean)^2 = 2 / N, E (std - std)^2 = 1 / N to first order.
    found = [of(cases.draw(500, 1, 2 * i), cases.draw(500, 1, 2 * i + 1)).line() for i in range(300)]
    intercepts, slopes = (torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True))
    assert abs(slopes.mean() - 3) < 4 * slopes.std() / math.sqrt(300)  # false alarm 6e-5
    assert abs(intercepts.mean()) < 4 * intercepts.std() / math.sqrt(300)


def test_one_set_twice_has_a_slope_and_a_distance_below_zero():
    x = cases.draw(300, 4, 0)
    intercept, slope = of(x, x).line()
    assert intercept < 0 < slope
    assert of(x, x).compute().item() == intercept


@pytest.mark.parametrize("swapped", [False, True])
def test_few_data_against_many_samples(swapped):
    """Three data a feature and five times the samples: off by less than half a standard deviation of one estimate.

    With groups of unequal size the mean is four standard deviations too low. Of ten estimates of one distribution;
    three standard errors of their mean beside: a false alarm in 300.
    """
    found = []
    for i in range(10):
        few, many = cases.draw(200, 64, 2 * i), cases.draw(1000, 64, 2 * i + 1)
        metric = of(many, few) if swapped else of(few, many)
        metric.splits = 2
        found.append(metric.compute())
    found = torch.stack(found)
    assert abs(found.mean()) < (0.5 + 3 / math.sqrt(10)) * found.std()


def test_few_samples_have_a_figure_and_no_interval():
    metric = of(cases.draw(149, 5, 0), cases.draw(200, 5, 1))
    assert metric.compute().isfinite()
    with pytest.raises(UserError, match=r"FrechetInfinity: an interval needs at least 150 samples.*got 149"):
        interval(metric)
    metric = of(cases.draw(210, 60, 0), cases.draw(300, 60, 1))
    with pytest.raises(UserError, match=r"at least 244 samples.*got 210"):
        interval(metric)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("m", [260, 2000])
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("model", ["equal", "near", "far"])
def test_the_interval_covers_at_the_least_numbers(model, slope, m):
    """260 data in 64 features; 95% of 100 within four standard errors below: false alarm 2e-4."""
    std = torch.arange(1, 65) ** -slope
    mean, scale = {"equal": (0.0, 1.0), "near": (0.3, 1.1), "far": (0.5, 0.5)}[model]
    exact = float((mean * std if model == "far" else torch.tensor([mean])).square().sum())
    exact += float(((scale - 1) * std).square().sum())
    hits = 0
    for i in range(100):
        fake = scale * std * cases.draw(m, 64, 2 * i + 1)
        fake = fake + (mean * std if model == "far" else mean * torch.eye(64)[0])
        metric = of(std * cases.draw(260, 64, 2 * i), fake)
        metric.splits = 2
        found = interval(metric)["frechet_infinity"]
        hits += found.low <= exact <= found.high
    assert hits / 100 >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 100)
