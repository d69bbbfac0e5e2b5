"""Refining q of each item, against a linear model whose posterior is a diagonal Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion.variational import VAE, DiagonalGaussian, Gaussian, amortisation_gap

X = torch.tensor([[0.7, -0.4, 0.2], [1.5, 2.0, -0.3]], dtype=torch.float64)
STD = 0.6
W = torch.tensor([[0.8, 0.3], [0.4, -0.6], [0.0, 0.5]], dtype=torch.float64)  # orthogonal columns
PRECISION = 1 + W.square().sum(0) / STD**2  # of z given x
POSTERIOR = DiagonalGaussian(X @ W / STD**2 / PRECISION, -0.5 * PRECISION.log())


class Encoder(nn.Module):
    """The posterior, moved and widened."""

    def __init__(self, shift: float, factor: float) -> None:
        super().__init__()
        self.shift, self.log_std = shift, POSTERIOR.log_std + math.log(factor)

    def forward(self, x):
        mean = x @ W / STD**2 / PRECISION + self.shift
        return torch.cat([mean, (8 * torch.atanh(self.log_std / 8)).expand_as(mean)], 1)


class Decoder(nn.Module):
    def forward(self, z):
        return (z @ W.T).unsqueeze(1)


def linear(shift: float, factor: float) -> VAE:
    observation = Gaussian().double()
    observation.log_std.data = torch.tensor(math.log(STD), dtype=torch.float64)
    return VAE(Encoder(shift, factor), Decoder(), observation, (3,), (2,))


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (0.4, 1.5)])
def test_the_gap_is_the_divergence_of_the_networks_q_from_the_best_one(shift, factor):
    """The refined q is the posterior to 1e-4 nats; the bounds within 4 standard errors (false alarms 1e-4)."""
    model = linear(shift, factor)
    found = amortisation_gap(model, X, steps=100, lr=0.1, draws=4, evaluation_draws=1000)
    q = model.encode(X)
    (change,) = found.change
    refined = DiagonalGaussian(q.mean + q.log_std.exp() * change.mean, q.log_std + change.log_std)
    assert float(refined.kl(POSTERIOR).max()) < 1e-4
    error = (found.before.std_error.square() + found.after.std_error.square()).sqrt()
    assert float(((found.gap - q.kl(POSTERIOR)) / error.clamp(min=1e-12)).abs().max()) < 4
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), W @ W.T + STD**2 * torch.eye(3).double())
    assert float(((found.after.log_prob - exact.log_prob(X)) / found.after.std_error).abs().max()) < 4


def test_an_item_is_refined_by_its_own_seed_alone():
    model = linear(0.4, 1.5)
    together = amortisation_gap(model, X, steps=5, evaluation_draws=3, seeds=[3, 4])
    alone = amortisation_gap(model, X[1:], steps=5, evaluation_draws=3, seeds=[4])
    torch.testing.assert_close(together.gap[1:], alone.gap)
