"""The two-tower model: its loss where pairs repeat, and its score."""

import math

import pytest
import torch

from sde_diffusion.metrics import TwoTower
from sde_diffusion.text import as_bytes

TEXTS = as_bytes(["a bold one", "one, bold", "a thin two"], 24)
MEANING = torch.tensor([0, 0, 1])


def made():
    torch.manual_seed(0)
    towers = TwoTower([1, 9, 6], dim=8, width=4)
    torch.nn.init.normal_(towers.words.table)
    return towers.double(), torch.randn(3, 1, 9, 6, dtype=torch.float64)


def test_pairs_of_the_same_meaning_fit_each_other():
    """Against the sum written out: -log softmax, averaged over all pairs that fit."""
    towers, x = made()
    images, texts = towers.towers(x, TEXTS)
    logits = math.exp(float(towers.log_scale)) * images @ texts.T
    expected = 0.0
    for table in (logits, logits.T):
        for i in range(3):
            fitting = [j for j in range(3) if MEANING[i] == MEANING[j]]
            expected += sum(float(torch.logsumexp(table[i], 0) - table[i, j]) for j in fitting) / len(fitting) / 6
    assert float(towers.loss(x, TEXTS, MEANING)) == pytest.approx(expected, rel=1e-9)


def test_the_score_is_2_5_times_the_cosine():
    towers, x = made()
    with torch.no_grad():
        images, texts = towers.towers(x, TEXTS)
        cosines = torch.nn.functional.cosine_similarity(images, texts)
        score = towers.score(x, TEXTS)
    assert bool((cosines < 0).any() and (cosines > 0).any())
    torch.testing.assert_close(score, torch.where(cosines > 0, 2.5 * cosines, 0.0))
