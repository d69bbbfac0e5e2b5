import math

import pytest
import torch

from sde_diffusion.data import Digits
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import Memorisation, Pixels, load_extractor, report


def normal(n: int, seed: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def of(train, test, fake, extractor=None):
    metric = Memorisation(extractor or Pixels(train.shape[1:]))
    metric.update(train, real=True, train=True)
    metric.update(test, real=True)
    metric.update(fake, real=False)
    return metric


def test_copies_are_flagged_and_fresh_samples_are_not():
    train, test = normal(800, 0), normal(200, 1)
    copies = train[:300] + 0.01 * normal(300, 2)
    found = of(train, test, copies).compute()
    assert found["memorisation_share"] > 0.99
    assert found["memorisation_z"] > 6
    found = of(train, test, normal(300, 3)).compute()
    assert abs(found["memorisation_z"]) < 3
    assert found["memorisation_share"] == pytest.approx(0.5, abs=0.15)


def test_half_of_the_samples_copied_is_enough():
    train, test = normal(800, 0), normal(200, 1)
    mixed = torch.cat([train[:250], normal(250, 4)])
    found = of(train, test, mixed).compute()
    assert found["memorisation_z"] > 3


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.7])
def test_false_alarms(scale):
    """Of 400 fresh sets of models that are as the data, too wide and too narrow; |z| > 1.96 in 5% and z > 3 in 0.1% of
    them. The counts' own tails: 1e-4 each.
    """
    found = [
        of(normal(150, 3 * i), normal(60, 3 * i + 1), scale * normal(100, 3 * i + 2)).compute() for i in range(400)
    ]
    z = torch.stack([one["memorisation_z"] for one in found])
    assert z.mean().abs() < 4 * z.std() / 20
    assert 5 <= int((z.abs() > 1.96).sum()) <= 38
    assert int((z > 3).sum()) <= 4
    assert z.std().item() == pytest.approx(1, abs=0.14)  # four standard errors of a standard deviation


@pytest.mark.parametrize("swapped", [False, True])
def test_a_narrow_model_is_no_copyist(swapped):
    """It has seen neither split, whichever is called the training split; each assertion's false-alarm rate is 6e-5."""
    splits = normal(1000, 0, 16), normal(500, 1, 16)
    metric = of(*(reversed(splits) if swapped else splits), 0.9 * normal(1000, 2, 16))
    assert set(metric.compute()) == {"memorisation_share", "memorisation_z"}
    assert set(report(metric)[1]) == {"memorisation_z"}
    assert abs(metric.compute()["memorisation_z"]) < 4


def test_z_is_exact_over_relabellings():
    pooled, fake = normal(30, 5, 2), normal(50, 6, 2)
    generator, shares = torch.Generator().manual_seed(0), []
    nearest = torch.cdist(fake.double(), pooled.double()).argmin(1)
    for _ in range(20000):
        label = torch.zeros(30)
        label[torch.randperm(30, generator=generator)[:20]] = 1
        shares.append(label[nearest].mean())
    shares = torch.stack(shares)
    metric = of(pooled[:20], pooled[20:], fake)
    real, features = metric.sets()
    p = metric.values(real, features)[0]
    spread = float((p - 2 / 3) / metric._z(real, features))
    assert p == pytest.approx(float((nearest < 20).double().mean()))
    assert spread == pytest.approx(shares.std().item(), rel=4 / math.sqrt(2 * 20000))  # false alarm 6e-5
    assert shares.mean().item() == pytest.approx(2 / 3, abs=4 * spread / math.sqrt(20000))


def test_training_digits_are_flagged_in_the_features_of_the_classifier():
    data = Digits()
    train, test = data.tensor("train"), data.tensor("test")
    extractor = load_extractor("digits")
    assert of(train, test, train[:200], extractor).compute()["memorisation_z"] > 3
    held_out = data.tensor("val")
    assert of(train, test, held_out, extractor).compute()["memorisation_z"] < 3


def test_the_splits_stay_when_the_samples_go():
    train, test, fake = normal(60, 0), normal(30, 1), normal(50, 2)
    metric = Memorisation(Pixels((6,)), reset_real_features=False)
    metric.update(train, real=True, train=True)
    metric.update(test, real=True)
    metric.update(normal(9, 3), real=False)
    metric.reset()
    metric.update(fake, real=False)
    assert metric.compute() == of(train, test, fake).compute()


def test_bad_calls():
    x = normal(20, 0)
    metric = Memorisation(Pixels((6,)))
    with pytest.raises(ValueError, match="generated samples are of no split"):
        metric.update(x, real=False, train=True)
    metric.update(x, real=True)
    metric.update(x, real=False)
    with pytest.raises(UserError, match="0 training samples seen"):
        metric.compute()


@pytest.mark.parametrize("atoms", [16, 400])
def test_data_with_exact_ties_are_no_copies(atoms):
    """Fresh samples of a distribution on few points, all of which are in both splits. Of ten z at most one above 3."""
    z = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(atoms, 3, generator=torch.Generator().manual_seed(0))
        train, test, fake = (points[torch.randint(atoms, (500,), generator=generator)] for _ in range(3))
        found = of(train, test, fake).compute()
        assert found["memorisation_share"] == pytest.approx(0.5, abs=0.49)
        z.append(float(found["memorisation_z"]))
    assert sum(value > 3 for value in z) <= 1
    assert -1.5 < sum(z) / 10 < 1.5


@pytest.mark.parametrize("copies", [1, 3])
def test_splits_of_the_same_items_show_nothing(copies):
    """Whatever the model: each sample's neighbours are the two copies of one item, so z is 0, also where the training
    split has some items several times as often as the test split.
    """
    items = normal(300, 0)
    for fake in (items[:100] + 0.01 * normal(100, 1), normal(200, 2), 0.1 * normal(200, 3), items):
        found = of(items.repeat(copies, 1), items, fake).compute()
        assert found["memorisation_z"] == pytest.approx(0, abs=1e-9)
        assert found["memorisation_share"] == pytest.approx(0.5)


def test_neighbours_at_equal_distances_are_shared():
    """Samples halfway between one of 21 training and one of 20 test items: half of each, so (1/21) / (1/21 + 1/20)."""
    line = torch.arange(41.0).unsqueeze(1)
    found = of(line[::2], line[1::2], line[:40] + 0.5).compute()
    assert found["memorisation_share"] == pytest.approx(20 / 41)


def test_copies_off_the_data_are_found_however_dense_the_data():
    """Points on a line, samples beside it: the nearest differ from the next by less than float32 resolves."""
    line = 2 * torch.rand(40_000, generator=torch.Generator().manual_seed(0)) - 1
    train, test = (torch.stack([half, 0 * half], 1) for half in line.split(20_000))
    copies = train[:200] + torch.tensor([0.0, 0.1])
    found = of(train, test, copies).compute()
    assert found["memorisation_share"] == 1
    assert found["memorisation_z"] > 10
