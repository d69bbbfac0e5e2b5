import math

import interval_cases as cases
import pytest
import torch

from sde_diffusion.metrics import FrechetInfinity, Pixels


def of(real, fake):
    return cases.fed(lambda: FrechetInfinity(Pixels(real.shape[1:])), real, fake)


@pytest.mark.parametrize("model", cases.MODELS)
def test_the_bias_of_finite_numbers_is_gone(model):
    mean, scale = cases.MODELS[model]
    exact = mean**2 + (scale - 1) ** 2
    plain, infinite = [], []
    for i in range(100):
        real, fake = cases.draw(200, 8, 2 * i), cases.draw(200, 8, 2 * i + 1, mean, scale)
        metric = of(real, fake)
        infinite.append(metric.compute())
        plain.append(metric.lift(*metric._sets())[0] + infinite[-1])
    plain, infinite = torch.stack(plain), torch.stack(infinite)
    error = infinite.std() / math.sqrt(100)
    assert abs(infinite.mean() - exact) < 4 * error  # false alarm 6e-5
    assert plain.mean() - exact > 8 * error


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
