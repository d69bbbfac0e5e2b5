"""The denoiser of a finite data set: brute force at 50 digits, tiny noise, chunks, and the mixture it is a limit of."""

import mpmath as mp
import pytest
import torch
from reference_paths import PATHS, scales

from sde_diffusion.denoiser import EmpiricalDenoiser, GaussianMixtureDenoiser
from sde_diffusion.sde import EDMSDE, VPSDE


def data(n=7, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(13), dtype=torch.float64)


def brute_force(points, x, alpha, sigma):
    """Softmax-weighted mean by Bayes' rule over the points, in mpmath."""
    mass, total = mp.mpf(0), [mp.mpf(0)] * points.shape[1]
    for point in points.tolist():
        distance = sum((mp.mpf(a) - alpha * mp.mpf(b)) ** 2 for a, b in zip(x.tolist(), point, strict=True))
        weight = mp.exp(-distance / (2 * sigma**2))
        mass += weight
        total = [a + weight * mp.mpf(b) for a, b in zip(total, point, strict=True)]
    return [float(a / mass) for a in total]


@pytest.mark.parametrize("name", PATHS)
def test_against_brute_force(name):
    sde, alpha, sigma, times = PATHS[name]
    points, s = data(), scales(name)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = s["alpha"] * points[:4] + s["sigma"] * noise
    found = EmpiricalDenoiser(sde, points)(x, s["t"]).x0
    for i, t in enumerate(times):
        expected = brute_force(points, x[i], alpha(mp.mpf(t)), sigma(mp.mpf(t)))
        assert found[i].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("sigma", [1e-8, 1e-6, 1e-4, 1e-2])
def test_tiny_noise_finds_the_nearest_point(sigma):
    """Also from far away, where every weight underflows: exp(-1e16 / 2) is zero in any floating point."""
    points = data(50, 4)
    x = torch.cat([points[[3, 41]], points[[3, 41]] + 0.01, torch.full((2, 4), 100.0, dtype=torch.float64)])
    x[5] = -100.0
    x0 = EmpiricalDenoiser(EDMSDE(1e-9, 80.0), points)(x, sigma).x0
    nearest = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert x0.isfinite().all()
    for i in range(6):
        expected = brute_force(points, x[i], mp.mpf(1), mp.mpf(sigma))
        assert x0[i].tolist() == pytest.approx(expected, rel=1e-9)
        if sigma < 1e-3:
            assert x0[i].tolist() == points[nearest[i]].tolist()


def test_halfway_between_two_points_at_small_noise():
    """A logit is a difference of squared distances over sigma^2: at sigma = 1e-4 an error of 1e-16 in it is 1e-8."""
    points = torch.tensor([[0.3, -0.7], [0.9, 0.2]], dtype=torch.float64)
    x = points.mean(0, keepdim=True) + torch.tensor([[2e-9, 1e-9]], dtype=torch.float64)
    found = EmpiricalDenoiser(EDMSDE(1e-5, 80.0), points)(x, 1e-4).x0[0]
    assert found.tolist() == pytest.approx(brute_force(points, x[0], mp.mpf(1), mp.mpf(1e-4)), abs=1e-7)


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 100])
def test_chunks_change_nothing(chunk):
    sde, points = VPSDE(), data()
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.linspace(1e-5, 1, 9, dtype=torch.float64)
    complete = EmpiricalDenoiser(sde, points)(x, t).x0
    torch.testing.assert_close(EmpiricalDenoiser(sde, points, chunk)(x, t).x0, complete, rtol=1e-13, atol=1e-14)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(EmpiricalDenoiser(sde, points[order], chunk)(x, t).x0, complete, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_a_mixture_of_points_is_the_same_belief(name):
    """GaussianMixtureDenoiser with std 0 and, in the limit, with std 1e-7; images rather than vectors."""
    sde, points = PATHS[name][0], data(6, 12).reshape(6, 3, 2, 2)
    s = scales(name)
    t = s["t"][1:]
    x = sde.perturb(points[:3], t, data(3, 12).reshape(3, 3, 2, 2))
    found = EmpiricalDenoiser(sde, points)(x, t)
    exact = GaussianMixtureDenoiser(sde, points, 0.0)(x, t)
    torch.testing.assert_close(found.x0, exact.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.score, exact.score, rtol=1e-6, atol=1e-6)
    limit = GaussianMixtureDenoiser(sde, points, 1e-7)(x, t)
    torch.testing.assert_close(found.x0, limit.x0, rtol=1e-5, atol=1e-5)


def test_float32_data_and_states():
    """The belief has the state's type and float64's accuracy behind it."""
    points = torch.tensor([[[0.0, 255.0]], [[128.0, 3.0]], [[17.0, 64.0]]])
    x = torch.tensor([[[20.0, 60.0]]])
    found = EmpiricalDenoiser(EDMSDE(0.01, 500.0), points)(x, 30.0).x0
    expected = brute_force(points.flatten(1), x.flatten(), mp.mpf(1), mp.mpf(30))
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-6)
