"""Objectives of latent variable models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sde import VPSDE
from sde_diffusion.training import BetaELBO, ImportanceWeighted
from sde_diffusion.variational import VAE, Gaussian, MLPHierarchy, bound

X = torch.tensor([[0.7], [-1.3], [0.2]], dtype=torch.float64)


class Encoder(nn.Module):
    def __init__(self, gain: float, std: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.tensor(8 * math.atanh(math.log(std) / 8), dtype=torch.float64))

    def forward(self, x):
        return torch.cat([self.gain * x, self.log_std.expand_as(x)], 1)


class Decoder(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, z):
        return (self.scale * z).unsqueeze(1)


def model(gain: float = 0.5, std: float = 0.8, scale: float = 0.9, noise: float = 0.6) -> VAE:
    return VAE(Encoder(gain, std), Decoder(scale), Gaussian(noise), (1,), (1,)).double()


def gradients(objective, found: VAE, seed: int) -> list[float]:
    torch.manual_seed(seed)
    found.zero_grad()
    objective(found, X.repeat(500, 1)).mean().backward()
    return [float(p.grad) for part in (found.encoder, found.decoder, found.observation) for p in part.parameters()]


def test_the_doubly_reparameterised_gradient_has_the_same_mean_and_less_noise():
    """Means of 60 repetitions within 4 standard errors (false alarms 1e-3 for 4 parameters)."""
    found = model()
    by = {
        name: torch.tensor([gradients(ImportanceWeighted(16, name), found, seed) for seed in range(60)])
        for name in ("dreg", "standard")
    }
    means = [values.mean(0) for values in by.values()]
    error = torch.stack([values.var(0) / 60 for values in by.values()]).sum(0).sqrt()
    assert ((means[0] - means[1]).abs() < 4 * error).all()
    encoder = slice(0, 2)
    assert (by["dreg"].std(0)[encoder] < 0.7 * by["standard"].std(0)[encoder]).all()


def test_it_is_zero_for_the_encoder_that_is_the_posterior():
    scale, noise = 0.9, 0.6
    precision = 1 + scale**2 / noise**2
    found = model(scale / noise**2 / precision, precision**-0.5, scale, noise)
    assert gradients(ImportanceWeighted(8), found, 0)[:2] == pytest.approx(
        [0, 0], abs=1e-7
    )  # sigma is stored in float32


def test_the_losses_are_the_bounds():
    found = model()
    draws = ImportanceWeighted(5).draw(found, X)
    loss = ImportanceWeighted(5, "standard")(found, X, **draws)
    torch.testing.assert_close(ImportanceWeighted(5)(found, X, **draws), loss)
    # Of the same model, by many draws: within 4 standard errors (false alarms 2e-4).
    many = ImportanceWeighted(5)(found, X[:1].expand(4000, 1)).detach()
    other = bound(found.requires_grad_(False), X[:1], 4000, 5)
    error = math.hypot(float(many.std()) / 4000**0.5, float(other.std_error))
    assert float(many.mean() + other.log_prob) == pytest.approx(0, abs=4 * error)


def test_beta_rises_and_free_nats_are_not_paid_for():
    found = model().requires_grad_(False)
    draws = BetaELBO().draw(found, X)
    plain, none = BetaELBO()(found, X, **draws), BetaELBO(1.0, 10)(found, X, step=0, **draws)
    half = BetaELBO(1.0, 10)(found, X, step=5, **draws)
    torch.testing.assert_close(half, (plain + none) / 2)
    torch.testing.assert_close(BetaELBO(1.0, 10)(found, X, step=10, **draws), plain)
    torch.testing.assert_close(BetaELBO(1.0, 10, 100.0)(found, X, step=10, **draws), plain)  # free while beta rises
    kl = (plain - none).mean()
    free = BetaELBO(free_nats=100.0)(found, X, **draws)
    torch.testing.assert_close(free.mean(), (none + 100).mean())
    torch.testing.assert_close(BetaELBO(free_nats=float(kl) / 2)(found, X, **draws), plain)


def test_dreg_of_several_levels_is_refused():
    levels = MLPHierarchy([1], Gaussian(), [2, 2], width=8)
    with pytest.raises(UserError, match="gradient=standard"):
        ImportanceWeighted(2).check(levels)


def test_a_denoiser_is_refused():
    with pytest.raises(UserError, match="ImportanceWeighted is for models with latent variables, such as model=vae"):
        ImportanceWeighted(2).check(GaussianDenoiser(VPSDE(), torch.zeros(1), std=1.0))
