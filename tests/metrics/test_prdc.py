import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import PRDC, Pixels, interval, pairwise


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def of(real, fake, **kwargs):
    metric = PRDC(Pixels(real.shape[1:]), **kwargs)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def figures(real, fake, **kwargs) -> dict[str, float]:
    return {name: value.item() for name, value in of(real, fake, **kwargs).compute().items()}


def by_hand(real: torch.Tensor, fake: torch.Tensor, k: int) -> dict[str, float]:
    """The papers' formulas on whole matrices of SciPy's distances."""
    x, y = real.double().numpy(), fake.double().numpy()
    radius_x, radius_y = (np.sort(cdist(z, z), 1)[:, k] for z in (x, y))
    across = cdist(x, y)
    return {
        "precision": (across <= radius_x[:, None]).any(0).mean(),
        "recall": (across <= radius_y).any(1).mean(),
        "density": (across <= radius_x[:, None]).sum(0).mean() / k,
        "coverage": (across.min(1) <= radius_x).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("mean", [0.0, 1.5])
def test_equal_the_formulas_on_whole_matrices(k, mean, monkeypatch):
    real, fake = normal(130, 3, 0, mean=100), normal(170, 3, 1, mean=100 + mean)
    expected = by_hand(real, fake, k)
    assert figures(real, fake, k=k, k_density=k) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(pairwise, "TILE", 4)  # fewer than the neighbours
    assert figures(real, fake, k=k, k_density=k) == pytest.approx(expected, rel=1e-12)


def test_each_pair_of_figures_has_its_own_k():
    real, fake = normal(130, 3, 0), normal(170, 3, 1, mean=0.5)
    few, many = by_hand(real, fake, 2), by_hand(real, fake, 7)
    expected = {name: (few if name in ("precision", "recall") else many)[name] for name in few}
    assert figures(real, fake, k=2, k_density=7) == pytest.approx(expected)
    expected = {name: (many if name in ("precision", "recall") else few)[name] for name in few}
    assert figures(real, fake, k=7, k_density=2) == pytest.approx(expected)


@pytest.mark.parametrize("side", ["both", "real", "fake"])
def test_clusters_finer_than_float32_resolves(side):
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)

    def clusters(seed: int, radius: float) -> torch.Tensor:
        return (centres.repeat(100, 1) + radius * normal(400, 2, seed).double()).float()

    real = clusters(0, 1e-4 if side in ("both", "real") else 0.3)
    fake = clusters(1, 1e-4 if side in ("both", "fake") else 0.3)
    assert figures(real, fake, k=3, k_density=3) == pytest.approx(by_hand(real, fake, 3), abs=1e-12)


def test_points_on_the_surface_of_a_ball_count():
    """Of points on a lattice, whose distances tie; by SciPy in exact numbers."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(-9, 10, (n, 3), generator=generator).float() / 8 for n in (150, 200))
    expected = by_hand((real * 8).round(), (fake * 8).round(), 3)
    assert figures(real, fake, k=3, k_density=3) == pytest.approx(expected)


def test_the_same_set_is_perfect():
    x = normal(200, 4, 2)
    found = figures(x, x)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_samples_as_the_data_have_the_papers_values():
    # Naeem et al., lemmas 1 and 2: E density = 1, E coverage = 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)), N of each.
    n, k = 400, 5
    found = [of(normal(n, 6, 2 * i), normal(n, 6, 2 * i + 1)).compute() for i in range(40)]
    density, coverage = (torch.stack([f[name] for f in found]) for name in ("density", "coverage"))
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    for values, exact in ((density, 1.0), (coverage, expected)):
        assert abs(values.mean() - exact) < 4 * values.std() / 40**0.5  # false alarm 6e-5


def test_precision_and_recall_separate_fidelity_from_variety():
    # Kynkäänniemi et al., section 3.1: a generator of a part of the data keeps precision and loses recall; one that
    # spreads beyond the data the other way round.
    real = normal(1000, 2, 3)
    narrow, wide, far = (
        figures(real, fake) for fake in (normal(1000, 2, 4, 0, 0.2), normal(1000, 2, 5, 0, 3), normal(1000, 2, 6, 20))
    )
    assert narrow["precision"] > 0.98
    assert narrow["recall"] < 0.5
    assert wide["recall"] > 0.85
    assert wide["precision"] < 0.7
    assert list(far.values()) == [0, 0, 0, 0]
    assert narrow["density"] > 1.05 > 0.5 > wide["density"]
    assert narrow["coverage"] < 0.5


def test_figures_fall_as_gaussians_part():
    shifts = [0.0, 0.5, 1.0, 2.0, 4.0]
    real = normal(800, 8, 7)
    found = [
        figures(real, torch.cat([normal(800, 8, 8)[:, :1] + shift, normal(800, 8, 8)[:, 1:]], 1)) for shift in shifts
    ]
    for name in found[0]:
        values = [f[name] for f in found]
        assert values == sorted(values, reverse=True), name


def test_one_outlier_moves_precision_and_hardly_density():
    # Naeem et al., section 3: an outlier of the data has a large ball, which takes in bad samples.
    real, fake = normal(500, 2, 9), normal(500, 2, 10, mean=8)
    outlier = torch.cat([real[1:], torch.full((1, 2), 8.0)])
    before, after = figures(real, fake), figures(outlier, fake)
    assert before["precision"] == 0
    assert after["precision"] > 0.9
    assert after["density"] < 0.25


def test_too_few_samples():
    x = normal(29, 2, 0)
    with pytest.raises(UserError, match=r"k_density = 5: a k-th neighbour needs more than 5 s.* 29 real and 5 gen"):
        of(x, x[:5]).compute()
    with pytest.raises(UserError, match=r"PRDC: an interval needs at least 30 samples of each side; got 29"):
        interval(of(x, x))
    with pytest.raises(ValueError, match="k must be an integer of at least 1; got 0"):
        PRDC(Pixels((2,)), k=0)
    with pytest.raises(ValueError, match="k_density must be an integer of at least 1; got -1"):
        PRDC(Pixels((2,)), k_density=-1)


@pytest.mark.parametrize("side", ["real", "fake"])
@pytest.mark.parametrize("far", [1e5, 1e8])
def test_one_point_far_away_takes_no_digits_from_the_others(side, far):
    real, fake = normal(300, 2, 0), 0.5 * normal(300, 2, 1) + torch.tensor([3.0, 0.0])
    (real if side == "real" else fake)[0] = far
    assert figures(real, fake, k=3, k_density=3) == pytest.approx(by_hand(real, fake, 3), abs=1e-12)


def test_distances_that_are_nearly_a_radius():
    """Generated points just outside all balls, whose surfaces hold all the other real points."""
    corners = torch.eye(200)
    real, fake = corners[:100], corners[100:] * 1.00015
    fake[0] *= 20
    assert figures(real, fake, k=3, k_density=3) == pytest.approx(by_hand(real, fake, 3), abs=1e-12)
    assert figures(real, fake)["precision"] == 0


def test_an_interval_is_as_narrow_as_the_side_that_a_share_is_of():
    real, fake = normal(100, 3, 0), normal(2000, 3, 1, scale=1.3)
    few, many = (interval(of(real, x), reference="fixed", resamples=20)["precision"] for x in (fake[:100], fake))
    assert (many.high - many.low) < 0.6 * (few.high - few.low)
