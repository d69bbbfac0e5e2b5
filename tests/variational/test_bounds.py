"""Bounds of latent variable models, whose draws are made several at once."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.variational import Gaussian, MLPHierarchy, bound, latent_noise


@pytest.mark.parametrize(("draws", "importance"), [(5, 1), (3, 2)])
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
    for rows in (1, 9, 4096):
        found = bound(model, x, draws, importance, rows=rows)
        torch.testing.assert_close(found.log_prob, expected.mean(0))
        torch.testing.assert_close(found.std_error, expected.std(0) / math.sqrt(draws))
        torch.testing.assert_close(found.kl, torch.stack([one.kl() for one in each]).mean(0))
        assert found.nfe == draws * importance
