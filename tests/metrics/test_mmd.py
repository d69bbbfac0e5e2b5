import math
from itertools import product

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import EnergyDistance, KernelDistance, Pixels, pairwise


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def of(kind, real, fake):
    metric = kind(Pixels(real.shape[1:]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def by_hand(x: np.ndarray, y: np.ndarray, kernel) -> float:
    """The unbiased estimate, pair by pair."""
    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a, b in product(x, y)) / (n * m)


KERNELS = {
    KernelDistance: lambda a, b: (a @ b / len(a) + 1) ** 3,
    EnergyDistance: lambda a, b: -float(np.linalg.norm(a - b)),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_equals_the_sum_over_pairs(kind):
    x, y = normal(23, 3, 0), normal(31, 3, 1, mean=0.5)
    expected = by_hand(x.double().numpy(), y.double().numpy(), KERNELS[kind])
    assert of(kind, x, y).compute().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KERNELS)
def test_tiles_change_nothing(kind, monkeypatch):
    x, y = normal(57, 4, 0), normal(40, 4, 1)
    whole = of(kind, x, y).compute().item()
    monkeypatch.setattr(pairwise, "TILE", 9)
    assert of(kind, x, y).compute().item() == pytest.approx(whole, rel=1e-10)


def test_equals_torchmetrics_on_the_same_features():
    x, y = normal(300, 16, 2).double(), normal(300, 16, 3, mean=0.3).double()
    expected = poly_mmd(x.float().double(), y.float().double(), 3, None, 1.0)
    assert of(KernelDistance, x, y).compute().item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_subset_protocol_of_everything_is_the_estimate_itself():
    x, y = normal(200, 5, 4), normal(200, 5, 5, mean=0.4)
    metric = of(KernelDistance, x, y)
    mean, spread = metric.subset_protocol(subsets=3, size=200)
    assert mean == pytest.approx(metric.compute().item(), rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-12)
    mean, spread = metric.subset_protocol(subsets=400, size=100)
    # Subsets without replacement average to the whole: four standard errors, false alarm 6e-5.
    assert abs(mean - metric.compute().item()) < 4 * spread / math.sqrt(400)
    assert metric.subset_protocol(20, 50, seed=1) == metric.subset_protocol(20, 50, seed=1)
    with pytest.raises(UserError, match=r"subsets of 1000 need.*200 real and 200 generated"):
        metric.subset_protocol()


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("sizes", [(40, 40), (20, 60)], ids=["equal", "unequal"])
def test_is_unbiased_where_the_distributions_are_the_same(kind, sizes):
    found = torch.stack(
        [of(kind, normal(sizes[0], 6, 2 * i), normal(sizes[1], 6, 2 * i + 1)).compute() for i in range(400)]
    )
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 4 * error  # false alarm 6e-5
    # The estimate with the diagonal would be many errors too high.
    diagonal = float(
        of(kind, normal(sizes[0], 6, 0), normal(sizes[1], 6, 1)).lift(
            normal(sizes[0], 6, 0).double(), normal(sizes[1], 6, 1).double()
        )
    )
    assert diagonal > 8 * error


def test_the_kernel_distance_of_gaussians():
    """E (x.y / D + 1)^3 for x ~ N(0, I), y ~ N(a 1, s^2 I), from moments; D = 4."""
    d, a, s = 4, 0.5, 1.3

    def third(mean1, var1, mean2, var2):
        # The product of two independent coordinates has these first three moments; coordinates are independent.
        m = [mean1 * mean2, (mean1**2 + var1) * (mean2**2 + var2)]
        m.append((mean1**3 + 3 * mean1 * var1) * (mean2**3 + 3 * mean2 * var2))
        one, variance = d * m[0], d * (m[1] - m[0] ** 2)
        skew = d * (m[2] - 3 * m[1] * m[0] + 2 * m[0] ** 3)
        two, three = variance + one**2, skew + 3 * variance * one + one**3
        return three / d**3 + 3 * two / d**2 + 3 * one / d + 1

    exact = third(0, 1, 0, 1) + third(a, s**2, a, s**2) - 2 * third(0, 1, a, s**2)
    found = torch.stack(
        [of(KernelDistance, normal(150, d, 2 * i), normal(150, d, 2 * i + 1, a, s)).compute() for i in range(200)]
    )
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(200)  # false alarm 6e-5


def test_the_energy_distance_of_gaussians_in_one_dimension():
    """E|z| of z ~ N(m, v) is sqrt(2 v / pi) exp(-m^2 / 2v) + m erf(m / sqrt(2v))."""

    def size(m, v):
        return math.sqrt(2 * v / math.pi) * math.exp(-(m**2) / (2 * v)) + m * math.erf(m / math.sqrt(2 * v))

    exact = 2 * size(0.7, 1 + 2.25) - size(0, 2) - size(0, 4.5)
    found = torch.stack(
        [of(EnergyDistance, normal(200, 1, 2 * i), normal(200, 1, 2 * i + 1, 0.7, 1.5)).compute() for i in range(200)]
    )
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(200)  # false alarm 6e-5


def test_energy_does_not_see_where_the_origin_is():
    x, y = normal(50, 2, 0).double(), normal(60, 2, 1).double()
    x, y = (v.mul(2**10).round() / 2**10 for v in (x, y))
    assert of(EnergyDistance, x + 256, y + 256).compute().item() == pytest.approx(
        of(EnergyDistance, x, y).compute().item(), rel=1e-9
    )
