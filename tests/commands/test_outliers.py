"""Verdicts on whether other data are less likely than a model's own."""

import pytest
import torch

from sde_diffusion.commands.outliers import compare


@pytest.mark.parametrize(
    ("shift", "auroc", "typicality", "words"),
    [
        (-8.0, 1.0, 1.0, "100% are less likely"),
        (8.0, 0.0, 1.0, "MORE likely than 99%"),
        (0.0, 0.5, 0.5, "not clearly distinguished"),
    ],
)
def test_verdicts(shift, auroc, typicality, words):
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 20_000, generator=generator, dtype=torch.float64)
    found = compare(own, other + shift)
    # The standard error of either is 0.003 where nothing is told apart.
    assert found["auroc"] == pytest.approx(auroc, abs=0.012)
    assert found["auroc_typicality"] == pytest.approx(typicality, abs=0.012)
    assert words in found["verdict"]


def test_verdict_on_a_spread_to_both_sides():
    own = torch.linspace(-1, 1, 1001)
    other = torch.cat([torch.full((40,), -9.0), torch.full((60,), 9.0)])
    found = compare(own, other)
    assert (found["below"], found["above"]) == (pytest.approx(0.4), pytest.approx(0.6))
    assert found["auroc"] == pytest.approx(0.4)
    assert found["auroc_typicality"] == 1


def test_ties_count_half_and_large_numbers_stay_apart():
    own = torch.tensor([-1000.0, -1001.0], dtype=torch.float64)
    assert compare(own, torch.tensor([-1001.0, -1002.0], dtype=torch.float64))["auroc"] == pytest.approx(3.5 / 4)
