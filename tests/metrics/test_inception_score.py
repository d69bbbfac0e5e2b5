import math

import pytest
import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore as Torchmetrics

from sde_diffusion.data import Digits
from sde_diffusion.metrics import InceptionScore, Pixels, interval, load_extractor


class Logits(nn.Module):
    """Takes samples for their own logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.num_classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return features


def of(logits: torch.Tensor) -> InceptionScore:
    metric = InceptionScore(Logits(logits.shape[1]))
    metric.update(logits, real=False)
    return metric


def test_sure_and_even_is_the_number_of_classes():
    sure = torch.eye(5).repeat(20, 1) * 200
    assert of(sure).compute().item() == pytest.approx(5, rel=1e-12)
    assert of(sure[::5]).compute().item() == pytest.approx(1, rel=1e-12)  # one class alone
    assert of(torch.zeros(30, 5)).compute().item() == pytest.approx(1, rel=1e-12)  # never sure


def test_two_kinds_of_samples_have_a_closed_form():
    # p = (0.9, 0.1) and (0.2, 0.8) in equal numbers; mean (0.55, 0.45).
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    mean = p.mean(0)
    exact = (p * (p / mean).log()).sum(1).mean().exp()
    assert of(p.log().repeat(50, 1)).compute().item() == pytest.approx(exact.item(), rel=1e-6)


def test_equals_torchmetrics_with_one_split():
    logits = 3 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    theirs = Torchmetrics(feature=Logits(10), splits=1)
    theirs.update(logits)
    assert of(logits).compute().item() == pytest.approx(theirs.compute()[0].item(), rel=1e-5)  # theirs is in float32


def test_real_digits_score_better_than_noise_and_real_batches_are_passed_over():
    metric = InceptionScore(load_extractor("digits"))
    data = Digits().tensor("test")
    metric.update(data, real=False)
    metric.update(data[:0], real=True)
    metric.update(torch.zeros_like(data), real=True)
    digits = metric.compute().item()
    metric.reset()
    metric.update(torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, real=False)
    assert digits > 6
    assert metric.compute().item() < 0.5 * digits


def test_an_extractor_without_classes_is_refused():
    with pytest.raises(ValueError, match=r"needs a classifier.*Pixels is none.*'digits'"):
        InceptionScore(Pixels((4,)))


def test_the_interval_is_of_the_score():
    logits = 2 * torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    metric = of(logits)
    found = interval(metric)["inception_score"]
    assert found.value == pytest.approx(metric.compute().item())
    assert 1 < found.low < found.value < found.high < 6
    # Symmetric about the logarithm.
    assert math.log(found.high / found.value) == pytest.approx(math.log(found.value / found.low))
