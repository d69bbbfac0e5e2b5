import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from sde_diffusion.metrics import Pixels, SlicedWasserstein, interval
from sde_diffusion.metrics.wasserstein import _coupling, directions


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def of(real, fake, **kwargs):
    metric = SlicedWasserstein(Pixels(real.shape[1:]), **kwargs)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def test_quantiles_of_gaussians_have_the_closed_form():
    # At the quantiles themselves the distance of N(0, 1) and N(m, s^2) is exactly (m^2 + (s - 1)^2 v)^(1/2).
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).unsqueeze(1)
    found = of(z.float().double(), 0.8 + 1.7 * z).compute().item()
    assert found == pytest.approx(math.sqrt(0.64 + 0.49 * float(z.square().mean())), rel=1e-6)
    assert found == pytest.approx(math.sqrt(0.64 + 0.49), rel=1e-3)


def test_samples_of_gaussians_come_to_the_closed_form():
    found = interval(of(normal(20000, 1, 0), normal(15000, 1, 1, 0.8, 1.7)))["sliced_wasserstein"]
    assert (
        abs(found.value - math.sqrt(0.64 + 0.49)) < 4 * found.std_error
    )  # false alarm 6e-5; the bias is a tenth of it


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 5), (6, 9), (1, 4)])
def test_unequal_numbers_equal_repeated_points(n, m):
    x, y = normal(n, 2, 2), normal(m, 2, 3)
    repeated = of(x.repeat_interleave(m, 0), y.repeat_interleave(n, 0)).compute() if n > 1 else None
    i, j, mass = _coupling(n, m, torch.device("cpu"))
    assert mass.sum().item() == pytest.approx(1)
    assert torch.zeros(n, dtype=torch.float64).scatter_add_(0, i, mass).tolist() == pytest.approx([1 / n] * n)
    assert torch.zeros(m, dtype=torch.float64).scatter_add_(0, j, mass).tolist() == pytest.approx([1 / m] * m)
    if repeated is not None:
        assert of(x, y).compute().item() == pytest.approx(repeated.item(), rel=1e-6)
    # The same coupling gives SciPy's distance of order 1.
    a, b = x[:, 0].double().sort().values, y[:, 0].double().sort().values
    assert float(mass @ (a[i] - b[j]).abs()) == pytest.approx(wasserstein_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("d", [2, 5])
def test_a_shift_is_seen_from_all_sides(d):
    x = normal(500, d, 4)
    shift = torch.arange(1.0, d + 1)
    expected = (directions(d, 64) @ shift.double()).square().mean().sqrt().item()
    assert of(x, x + shift).compute().item() == pytest.approx(expected, rel=1e-5)
    if d == 2:  # evenly spaced angles integrate the square exactly
        assert expected == pytest.approx(math.sqrt(5 / 2), rel=1e-12)
    assert expected == pytest.approx(shift.norm().item() / math.sqrt(d), rel=0.3)


def test_arguments():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        SlicedWasserstein(Pixels((2,)), projections=0)
