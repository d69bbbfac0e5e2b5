"""Bounds of latent variable models, whose draws are made several at once."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm, t

from sde_diffusion.variational import Gaussian, MLPHierarchy, bound, latent_noise
from sde_diffusion.variational.bounds import Draws, estimated_bound


@pytest.mark.parametrize(("draws", "importance"), [(5, 1), (4, 2)])
def test_a_bound_is_that_of_its_draws_one_by_one(draws, importance):
    torch.manual_seed(0)
    model, x = MLPHierarchy([3], Gaussian(), [2, 2], width=8).double().eval(), torch.randn(4, 3).double()
    streams = latent_noise(model, range(4), "cpu", torch.float64)
    with torch.no_grad():
        each = [model.infer(x, [stream.normal(n) for stream in streams]) for n in range(draws * importance)]
    values = torch.stack(
        [one.log_prob - one.kl().sum(0) if importance == 1 else one.log_weight() for one in each]
    ).reshape(draws, importance, 4)
    expected = values.exp().mean(1).log()
    seen = []
    infer = model.infer
    model.infer = lambda x, noise: seen.append(len(x)) or infer(x, noise)
    for rows in (1, 3, 9, 4096):
        seen.clear()
        found = bound(model, x, draws, importance, rows=rows)
        torch.testing.assert_close(found.log_prob, expected.mean(0))
        assert max(seen) <= rows
        error = expected.std(0) / math.sqrt(draws) * t(draws - 1).ppf(0.975) / norm.ppf(0.975)
        torch.testing.assert_close(found.std_error, error)
        torch.testing.assert_close(found.kl, torch.stack([one.kl() for one in each]).mean(0))
        assert found.nfe == draws * importance


@pytest.mark.parametrize("draws", [4, 8, 32])
def test_intervals_hold_the_truth(draws):
    """In 95% of 10,000 repetitions, within 4 standard errors; with normal quantiles in 86% of those of 4 draws."""
    generator, n = torch.Generator().manual_seed(draws), 10_000

    def draw(numbers):
        values = torch.randn(len(numbers) * n, generator=generator, dtype=torch.float64)
        return Draws(values, torch.zeros(1, len(values)), values, len(numbers))

    found = estimated_bound(draw, n, draws, 1, n)
    assert float((found.log_prob.abs() <= 1.96 * found.std_error).double().mean()) == pytest.approx(0.95, abs=0.0088)


def test_too_few_draws_have_no_error():
    model, x = MLPHierarchy([3], Gaussian(), [2, 2], width=8).eval(), torch.zeros(2, 3)
    assert [bound(model, x, draws).std_error is None for draws in (1, 2, 3, 4)] == [True, True, True, False]
