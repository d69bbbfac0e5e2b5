"""What all metrics of features have in common."""

import warnings

import interval_cases as cases
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    PRDC,
    FrechetDistance,
    KernelDistance,
    Memorisation,
    Pixels,
    interval,
    load_extractor,
)

KINDS = [*cases.ALL, "memorisation"]


def make(name: str):
    return Memorisation(Pixels((4,))) if name == "memorisation" else cases.ALL[name][1]()


def feed(metric, name: str, real: torch.Tensor, fake: torch.Tensor) -> None:
    if name == "memorisation" and len(real):
        metric.update(real[::3], real=True, train=True)
    metric.update(real, real=True)
    metric.update(fake, real=False)


def numbers(metric) -> list[float]:
    found = metric.compute()
    return [x.item() for x in (found.values() if isinstance(found, dict) else [found])]


def sets(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    d = 4 if name == "memorisation" else cases.ALL[name][0]
    return cases.draw(180, d, 0), cases.draw(161, d, 1, 0.5)


@pytest.mark.parametrize("name", KINDS)
def test_batches_of_any_size_give_the_same_number(name):
    real, fake = sets(name)
    whole = make(name)
    feed(whole, name, real, fake)
    parts = make(name)
    # Empty batches and batches of one among them.
    for a, b in zip(real.split([0, 60, 120, 0]), fake.split([1, 160, 0, 0]), strict=True):
        feed(parts, name, a, b)
    assert numbers(parts) == pytest.approx(numbers(whole), rel=1e-9)
    first = interval(whole, resamples=20)
    for key, one in interval(parts, resamples=20).items():
        assert list(one.as_dict().values()) == pytest.approx(list(first[key].as_dict().values()), rel=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_figures_are_float64_scalars(name):
    metric = make(name)
    feed(metric, name, *sets(name))
    found = metric.compute()
    for value in found.values() if isinstance(found, dict) else [found]:
        assert (value.dtype, value.shape) == (torch.float64, ())


@pytest.mark.parametrize("name", KINDS)
def test_the_reference_can_stay(name):
    real, fake = sets(name)
    fresh, kept = make(name), make(name)
    kept.reset_real_features = False
    feed(kept, name, real, 3 * fake)
    kept.reset()
    kept.update(fake, real=False)
    feed(fresh, name, real, fake)
    assert numbers(kept) == numbers(fresh)
    kept.reset_real_features = True
    kept.reset()
    assert len(kept.features(real=True)) == 0


def test_a_collection_keeps_one_copy_of_the_features():
    real, fake = cases.draw(50, 3, 0), cases.draw(40, 3, 1)
    both = MetricCollection([KernelDistance(Pixels((3,))), PRDC(Pixels((3,)))])
    for _ in range(2):
        both.update(real, real=True)
        both.update(fake, real=False)
    found = both.compute()
    alone = KernelDistance(Pixels((3,)))
    for _ in range(2):
        alone.update(real, real=True)
        alone.update(fake, real=False)
    assert found["KernelDistance"].item() == pytest.approx(alone.compute().item())
    assert list(both.compute_groups.values()) == [["KernelDistance", "PRDC"]]


def test_a_collection_may_hold_what_looks_at_other_sides():
    real, train, fake = (cases.draw(50, 3, seed) for seed in range(3))
    every = MetricCollection([KernelDistance(Pixels((3,))), Memorisation(Pixels((3,)))])
    every.update(train, real=True, train=True)
    every.update(real, real=True)
    every.update(fake, real=False)
    assert torch.equal(every["KernelDistance"].features(real=True), real)
    alone = cases.fed(lambda: KernelDistance(Pixels((3,))), real, fake)
    found = every.compute()
    assert found["KernelDistance"].item() == pytest.approx(alone.compute().item())
    assert found["memorisation_share"] > 0


@pytest.mark.parametrize("name", [*KINDS, "streaming"])
def test_bad_samples(name):
    metric = FrechetDistance(Pixels((5,))) if name == "streaming" else make(name)
    x = cases.draw(10, 4 if name == "memorisation" else cases.ALL.get(name, (5,))[0], 0)
    with pytest.raises(UserError, match=r"samples are uint8; metrics take floats on \[-1, 1\].*from_levels"):
        metric.update(x.byte(), real=False)
    x[3, 1] = torch.nan
    x[7, 0] = torch.inf
    with pytest.raises(UserError, match="2 of 10 samples have NaN or infinite numbers"):
        metric.update(x, real=False)
    with pytest.raises(UserError, match=r": 0 (real data|generated samples|training samples) seen"):
        metric.compute()


def test_images_out_of_range_or_of_another_shape():
    metric = KernelDistance(load_extractor("digits"))
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(UserError, match=r"must lie on \[-1, 1\]; these run from .* to 255.*x / 127.5 - 1"):
        metric.update((x * 255).clamp(min=1).index_fill(0, torch.tensor([0]), 255.0), real=False)
    metric.update(x * 2 - 1, real=False)
    with pytest.raises(ValueError, match=r"takes samples of shape \(1, 8, 8\).*got \(1, 28, 28\)"):
        metric.update(torch.zeros(4, 1, 28, 28), real=True)
    with pytest.raises(UserError, match="KernelDistance: 0 real data seen; at least 2"):
        metric.compute()
    with pytest.raises(ValueError, match="must have an int num_features; got Identity with None"):
        KernelDistance(torch.nn.Identity())


def _rank(rank: int, folder: str) -> None:
    """The first process sees the data and half of the samples, the second the rest, the third nothing."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    found = {}
    for name in KINDS:
        real, fake = sets(name)
        metric = make(name)
        if rank == 0:
            feed(metric, name, real, fake[:90])
        if rank == 1:
            metric.update(fake[90:], real=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # compute before update
            found[name] = [numbers(metric), [x.low for x in interval(metric, resamples=20).values()]]
        # What was joined for the figure is apart again.
        assert len(metric.features(real=False)) == (90, 71, 0)[rank]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # three processes that import torch anew
def test_processes_agree_also_one_without_a_batch(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=3)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in KINDS:
            metric = make(name)
            feed(metric, name, *sets(name))
            assert found[name][0] == pytest.approx(numbers(metric), rel=1e-9), (name, rank)
            assert found[name][1] == pytest.approx([x.low for x in interval(metric, resamples=20).values()], rel=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_what_the_caller_does_with_his_tensor_afterwards_does_not_matter(name):
    real, fake = sets(name)
    one, two = make(name), make(name)
    feed(one, name, real, fake)
    buffer = fake.clone()
    feed(two, name, real, buffer)
    buffer.mul_(0.5)
    assert numbers(one) == numbers(two)


def test_a_result_is_taken_anew_after_features_are_added():
    metric = KernelDistance(Pixels((3,)))
    metric.update(cases.draw(50, 3, 0), real=True)
    metric.update(cases.draw(50, 3, 1), real=False)
    before = metric.compute()
    metric.add(cases.draw(50, 3, 2) + 5, "fake_features")
    assert metric.compute() > before + 1


@pytest.mark.parametrize("name", ["frechet", "kernel", "energy", "sliced_wasserstein"])
def test_equal_sets_have_finite_intervals(name):
    d, build = cases.ALL[name]
    x = cases.draw(200, d, 0)
    for fake in (x.clone(), torch.ones_like(x)):
        for found in interval(cases.fed(build, fake, fake), resamples=20).values():
            assert found.low <= found.value <= found.high < 1e6
