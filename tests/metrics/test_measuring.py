"""Several metrics of one set of samples."""

import interval_cases as cases
import pytest
import torch
from torch import nn

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FAKE,
    REAL,
    Features,
    InceptionScore,
    KernelDistance,
    Memorisation,
    Pixels,
    Probabilities,
    measure,
    point_estimates,
)

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Takes samples for features and for logits, and counts those that it sees."""

    num_features, num_classes = 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return x

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return 3 * features


def sides() -> dict[str, torch.Tensor]:
    return {REAL: cases.draw(300, 4, 0), FAKE: cases.draw(200, 4, 1, mean=0.5)}


def test_each_sample_passes_once_whatever_the_metrics():
    extractor = Counting()
    features = Features(sides(), CPU, batch_size=64)
    metrics = {"kernel": KernelDistance(extractor), "score": InceptionScore(extractor)}
    found = measure(metrics, features, resamples=20)
    assert extractor.seen == 500
    assert list(found.figures) == ["kernel_distance", "inception_score"]
    alone = cases.fed(lambda: InceptionScore(Counting()), *sides().values())
    assert found.figures["inception_score"].value == pytest.approx(alone.compute().item(), rel=1e-6)
    derived = features(Probabilities(extractor), FAKE)
    torch.testing.assert_close(derived, (3 * sides()[FAKE]).softmax(1))
    assert extractor.seen == 500


def test_sides_may_come_in_batches():
    given = sides()
    whole = Features(given, CPU)
    batches = Features({side: lambda x=x: iter(x.split(7)) for side, x in given.items()}, CPU)
    extractor = Pixels((4,))
    for side in given:
        assert torch.equal(whole(extractor, side), batches(extractor, side))
    known = torch.zeros(3, 4)
    batches.put(extractor, REAL, known)
    assert batches(extractor, REAL) is known


def test_bad_samples_are_reported():
    features = Features({FAKE: torch.full((3, 4), torch.nan)}, CPU)
    with pytest.raises(UserError, match="3 of 3 samples have NaN"):
        features(Pixels((4,)), FAKE)


@pytest.mark.parametrize("stays", [True, False])
def test_what_a_metric_held_does_not_count(stays):
    """Also where its real side would outlast a reset."""
    metric = KernelDistance(Pixels((4,)), reset_real_features=not stays)
    features = Features(sides(), CPU)
    metric.update(torch.ones(50, 4), real=True)
    first, second = (point_estimates({"kernel": metric}, features) for _ in range(2))
    assert first == second == cases.fed(lambda: KernelDistance(Pixels((4,))), *sides().values()).point_estimates()
    assert len(metric.features(real=True)) == 0
    assert metric.reset_real_features is not stays


def test_one_that_cannot_be_taken_does_not_stop_the_others():
    metrics = {"memorisation": Memorisation(Pixels((4,))), "kernel": KernelDistance(Pixels((4,)))}
    given = {**sides(), "train_features": torch.empty(0, 4)}
    found = measure(metrics, Features(given, CPU), resamples=0)
    assert list(found.figures) == ["kernel_distance"]
    assert "0 training samples" in found.skipped["memorisation"]
    assert list(point_estimates(metrics, Features(given, CPU))) == ["kernel_distance"]
