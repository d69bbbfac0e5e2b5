"""Metrics of your own, written from what FeatureMetric's docstring says and nothing else."""

import pytest
import torch

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FAKE,
    REAL,
    FeatureMetric,
    Features,
    InceptionScore,
    Pixels,
    difference,
    interval,
    measure,
    report,
)


class MeanDistance(FeatureMetric):
    names = ("mean_distance",)
    higher_is_better = False

    def statistic(self, real, fake):
        return (real.mean(0) - fake.mean(0)).norm()


class Means(FeatureMetric):
    """Two figures of the samples alone: of a mean the influence is the value itself."""

    names = ("first", "second")
    sides = (FAKE,)

    def statistic(self, real, fake):
        return fake.mean(0)[:2]

    def influence(self, real, fake):
        return real.new_zeros(2, 0), fake.T[:2]


class MeansByGroups(FeatureMetric):
    names = ("first", "second")
    sides = (FAKE,)

    def statistic(self, real, fake):
        return fake.mean(0)[:2]


class ShareFarOut(FeatureMetric):
    names = ("far_out",)
    proportions = ("far_out",)
    note = "far_out: samples beyond all data"

    def statistic(self, real, fake):
        return float((fake.norm(dim=1) > real.norm(dim=1).max()).double().mean())

    def details(self, real, fake):
        return {"radius": float(real.norm(dim=1).max())}


def draw(n, seed, shift=0.0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


def fed(kind, real, fake):
    metric = kind(Pixels((3,)))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric


def test_three_lines_are_a_metric():
    real, fake = draw(200, 0), draw(150, 1, 0.5)
    metric = fed(MeanDistance, real, fake)
    expected = (real.double().mean(0) - fake.double().mean(0)).norm()
    assert metric.compute() == pytest.approx(float(expected))
    found = interval(metric, resamples=50)["mean_distance"]
    assert found.low < found.value < found.high
    assert difference(metric, metric, resamples=20)["mean_distance"].value == 0
    features = Features({REAL: real, FAKE: fake}, torch.device("cpu"))
    measured = measure({"own": metric}, features, resamples=50)
    assert measured.figures["mean_distance"] == found


def test_the_interval_from_groups_covers():
    """Of 200; 95% within four standard errors below (false alarm 1e-4)."""
    hits = 0
    for i in range(200):
        found = interval(fed(MeanDistance, draw(100, 2 * i), draw(100, 2 * i + 1, 1.0)), resamples=25)["mean_distance"]
        hits += found.low <= 3**0.5 <= found.high
    assert hits / 200 >= 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5


def test_of_the_samples_alone():
    fake = draw(400, 0)
    exact = (fake[:, :2].double().std(0) / 400**0.5).tolist()
    by_influence, by_groups = (interval(fed(kind, draw(5, 1), fake)) for kind in (Means, MeansByGroups))
    for key, error in zip(("first", "second"), exact, strict=True):
        # Without halves' correction it is the textbook's standard error; groups estimate it.
        assert by_influence[key].std_error == pytest.approx(error, rel=0.15)
        assert by_groups[key].std_error == pytest.approx(error, rel=0.4)


def test_shares_stay_within_their_range():
    figures, details = report(fed(ShareFarOut, draw(200, 0), draw(150, 1)), resamples=25)
    assert 0 <= figures["far_out"].low <= figures["far_out"].value <= figures["far_out"].high <= 1
    assert set(details) == {"radius"}


def test_what_is_missing_is_said():
    class Nameless(FeatureMetric):
        def statistic(self, real, fake):
            return 0.0

    class Empty(FeatureMetric):
        names = ("empty",)

    class OneTooMany(FeatureMetric):
        names = ("one",)

        def statistic(self, real, fake):
            return [1.0, 2.0]

    with pytest.raises(TypeError, match="Nameless must state names"):
        Nameless(Pixels((3,)))
    x = draw(30, 0)
    with pytest.raises(NotImplementedError, match=r"Empty must have a method statistic\(real, fake\)"):
        fed(Empty, x, x).compute()
    with pytest.raises(ValueError, match=r"OneTooMany.statistic must return a figure for each of names"):
        fed(OneTooMany, x, x).compute()


@pytest.mark.parametrize("kind", [MeanDistance, Means, InceptionScore])
def test_few_samples_have_figures_and_no_intervals(kind):
    class Logits(Pixels):
        num_classes = 3

        def head(self, features):
            return features

    metric = kind(Logits((3,)))
    metric.update(draw(24, 0), real=True)
    metric.update(draw(24, 1), real=False)
    metric.compute()
    with pytest.raises(UserError, match=r"an interval needs at least 25 samples of each side; got 24"):
        interval(metric)
