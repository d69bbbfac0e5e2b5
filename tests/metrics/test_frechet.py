import math
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import _compute_fid

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import FrechetDistance, Pixels, frechet_distance


def rotation(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def points(n: int, d: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    """Correlated, skewed points in float64."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return mean + (z + 0.3 * z**2) @ torch.randn(d, d, generator=generator, dtype=torch.float64)


def by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance of two sets of points [N, D], by NumPy's covariance and SciPy's matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real))


def of(real: torch.Tensor, fake: torch.Tensor) -> FrechetDistance:
    metric = FrechetDistance(Pixels(real.shape[1:]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def test_commuting_gaussians_have_a_closed_form():
    q = rotation(12, 0)
    a, b = torch.logspace(-3, 2, 12, dtype=torch.float64), torch.linspace(5, 0.1, 12, dtype=torch.float64)
    mean = torch.arange(12.0, dtype=torch.float64)
    exact = (a.sqrt() - b.sqrt()).square().sum() + 12 * 0.25
    found = frechet_distance(mean, q @ a.diag() @ q.T, mean + 0.5, q @ b.diag() @ q.T)
    assert found == pytest.approx(exact.item(), rel=1e-10)


def test_two_dimensional_gaussians_that_do_not_commute():
    # The square root of a 2x2 matrix M with positive eigenvalues has trace sqrt(tr M + 2 sqrt(det M)).
    c1 = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    c2 = torch.tensor([[0.5, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    m = c1 @ c2
    exact = 5 + 1 + 3 + 3.5 - 2 * (m.trace() + 2 * torch.linalg.det(m).sqrt()).sqrt()
    mean1, mean2 = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])
    assert frechet_distance(mean1, c1, mean2, c2) == pytest.approx(exact.item() - 1, rel=1e-10)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.5707963267948966])
def test_rank_one_covariances(angle):
    # C1 = u uᵀ, C2 = v vᵀ: tr (C1 C2)^{1/2} = |u·v|. All but one direction is singular.
    q = rotation(30, 1)
    u, v = 2 * q[:, 0], 3 * (np.cos(angle) * q[:, 0] + np.sin(angle) * q[:, 1])
    zero = torch.zeros(30)
    exact = 4 + 9 - 2 * 6 * np.cos(angle)
    assert frechet_distance(zero, u.outer(u), zero, v.outer(v)) == pytest.approx(exact, rel=1e-10)


def test_singular_covariances_on_one_subspace_lose_no_digits():
    q = rotation(100, 2)[:, :10]
    a, b = torch.linspace(1, 2, 10, dtype=torch.float64), torch.linspace(1.1, 2.05, 10, dtype=torch.float64)
    zero = torch.zeros(100)
    exact = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(zero, (q * a) @ q.T, zero, (q * b) @ q.T) == pytest.approx(exact, abs=1e-12)


def test_a_point_mass_is_its_mean_apart():
    cov = points(500, 5, 0).T.cov()
    one, zero = torch.ones(5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    assert frechet_distance(one, zero, 0 * one, cov) == pytest.approx(5 + cov.trace().item(), rel=1e-12)
    assert frechet_distance(one, zero, 3 * one, zero) == pytest.approx(20, rel=1e-12)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3,\), \(3, 3\), \(2,\), \(2, 2\)"):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize("d", [2, 40])
def test_equals_scipy_and_torchmetrics_on_the_same_features(d):
    a, b = points(700, d, 3).float(), points(450, d, 4, mean=0.4).float()
    found = of(a, b).compute()
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(by_scipy(a, b), rel=1e-6)
    x, y = a.double(), b.double()
    assert found.item() == pytest.approx(_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item(), rel=1e-6)


def test_is_symmetric_and_unbothered_by_a_common_offset():
    a, b = points(600, 8, 5).float(), points(600, 8, 6, mean=0.2).float()
    plain = of(a, b).compute().item()
    assert of(b, a).compute().item() == pytest.approx(plain, rel=1e-10)
    # Values rounded to 2^-12 and 2^10 add without rounding in float32: only the covariance's cancellation is left.
    a, b = ((x * 2**12).round() / 2**12 for x in (a, b))
    assert of(a + 1024, b + 1024).compute().item() == pytest.approx(of(a, b).compute().item(), rel=1e-8)


def test_uneven_batches_equal_one():
    a, b = points(500, 6, 7).float(), points(301, 6, 8).float()
    metric = FrechetDistance(Pixels((6,)))
    for part in a.split([1, 0, 199, 300]):
        metric.update(part, real=True)
    for part in b.split([300, 1]):
        metric.update(part, real=False)
    assert metric.compute().item() == pytest.approx(by_scipy(a, b), rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_merged_metrics_equal_one():
    a, b = points(500, 6, 7).float(), points(300, 6, 8).float()
    one, two = of(a[:123], b[:7]), of(a[123:], b[7:])
    never_updated = FrechetDistance(Pixels((6,)))
    for other in (one, two):
        never_updated.merge_state(other)
    assert never_updated.compute().item() == pytest.approx(by_scipy(a, b), rel=1e-9)


def _rank(rank: int, folder: str) -> None:
    """The second process sees no batch at all; both must come to the same distance."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = FrechetDistance(Pixels((6,)))
    if rank == 0:
        metric.update(points(500, 6, 7).float(), real=True)
        metric.update(points(300, 6, 8).float(), real=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # compute before update
        torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # two processes that import torch anew
def test_a_process_without_a_batch_agrees_with_the_others(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    expected = by_scipy(points(500, 6, 7).float(), points(300, 6, 8).float())
    assert [torch.load(tmp_path / f"{rank}.pt").item() for rank in (0, 1)] == pytest.approx([expected] * 2, rel=1e-9)


def test_reset_can_keep_the_reference():
    a, b, c = (points(300, 4, seed).float() for seed in (9, 10, 11))
    metric = FrechetDistance(Pixels((4,)), reset_real_features=False)
    metric.update(a, real=True)
    metric.update(b, real=False)
    metric.compute()
    metric.reset()
    metric.update(c, real=False)
    assert metric.compute().item() == pytest.approx(by_scipy(a, c), rel=1e-9)


def test_too_few_samples():
    a = points(50, 4, 12).float()
    with pytest.raises(UserError, match="1 generated samples seen; at least 2"):
        of(a, a[:1]).compute()
    with pytest.raises(UserError, match="0 real data seen"):
        of(a[:0], a).compute()
    message = r"4 generated to 50 real samples in 4 .*singular.*extractor with fewer.*kernel distance"
    with pytest.warns(UserWarning, match=message):
        of(a, a[:4]).compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(a, a[:5]).compute()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite(bad):
    a = points(50, 4, 12).float()
    b = a.clone()
    b[17, 2] = bad
    with pytest.raises(UserError, match=r"1 of 50 samples have NaN or infinite"):
        of(a, b)

    class Broken(Pixels):
        def forward(self, x):
            return bad * x

    metric = FrechetDistance(Broken((4,)))
    metric.update(a, real=True)
    metric.update(a, real=False)
    with pytest.raises(UserError, match=r"some of 50 real data have NaN or infinite features"):
        metric.compute()


def test_an_extractor_must_state_its_number_of_features():
    with pytest.raises(ValueError, match="got Flatten with None"):
        FrechetDistance(nn.Flatten())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(bad):
    """max(0, nan) is 0: the perfect score."""
    good = (torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(2))
    for place in range(4):
        broken = [x.clone() for x in good]
        broken[place].view(-1)[0] = bad
        with pytest.raises(ValueError, match="finite"):
            frechet_distance(*broken)


def test_what_is_not_kept_and_what_does_not_fit_is_reported():
    metric = FrechetDistance(Pixels((3,)))
    metric.update(torch.zeros(5, 3), real=True)
    with pytest.raises(UserError, match="keep_features=True"):
        metric.features(real=True)
    with pytest.raises(ValueError, match=r"takes features \[B, 3\] of real_features, fake_features; got \(5, 4\)"):
        metric.add(torch.zeros(5, 4), "real_features")
    with pytest.raises(ValueError, match="of train_features"):
        metric.add(torch.zeros(5, 3), "train_features")
