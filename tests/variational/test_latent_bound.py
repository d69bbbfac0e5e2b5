"""Latent diffusion on a linear first stage, where the densities are Gaussian and known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import VESDE, VPSDE, GaussianDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.variational import MLPVAE, VAE, FirstStage, Gaussian, MLPHierarchy, bound, latent_bound
from sde_diffusion.variational.bounds import latent_noise

D, SHAPE = 7, (3, 2)  # of the data; of z: three channels of two places each
EIGENVALUES = torch.tensor([8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.4], dtype=torch.float64)
GAINS = torch.tensor([5.0, 0.2, 1.0], dtype=torch.float64).repeat_interleave(2)  # of the encoder, in each channel
STD, NOISE, SHIFT = 0.3, 0.4, 0.7  # of q, over the gain; of p(x | z); of all latents
BASIS = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
VARIANCES = (GAINS.square() * (EIGENVALUES[:6] + STD**2)).reshape(SHAPE)
"""Of the aggregate q(z) = N(SHIFT, diag)."""


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", GAINS.unsqueeze(1) * BASIS[:, :6].T)
        self.register_buffer("log_std", 8 * torch.atanh((GAINS * STD).log() / 8))

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.weight.T + SHIFT
        return torch.cat([mean.reshape(-1, *SHAPE), self.log_std.expand_as(mean).reshape(-1, *SHAPE)], 1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", BASIS[:, :6] / GAINS)

    def forward(self, z: Tensor) -> Tensor:
        return ((z.flatten(1) - SHIFT) @ self.weight.T).unsqueeze(1)


def data(n: int) -> Tensor:
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return noise * EIGENVALUES.sqrt() @ BASIS.T


@pytest.fixture(scope="module")
def stage() -> FirstStage:
    found = FirstStage(VAE(Encoder(), Decoder(), Gaussian(NOISE, False), (D,), SHAPE).double()).double()
    found.fit_statistics(data(20_000).split(3000))
    return found


def exact_prior(stage: FirstStage, sde: VPSDE | VESDE) -> GaussianDenoiser:
    """The denoiser of the aggregate's w."""
    return GaussianDenoiser(sde, stage.standardise(torch.full(SHAPE, SHIFT)), VARIANCES.sqrt() / stage.scale)


def test_shift_and_scale_are_those_of_the_aggregate(stage):
    """Within 4 standard errors, over 20,000 items (false alarms: 4e-4)."""
    std = VARIANCES.mean(1).sqrt()
    assert ((stage.shift.flatten() - SHIFT).abs() < 4 * std / 20_000**0.5).all()
    assert ((stage.scale.flatten() / std - 1).abs() < 4 / (2 * 20_000) ** 0.5).all()
    assert stage.log_scale == pytest.approx(2 * float(stage.scale.log().sum()))
    w = stage.draw_latents(data(20_000), torch.randn(20_000, *SHAPE, dtype=torch.float64))
    torch.testing.assert_close(w.var((0, 2)), torch.ones(3, dtype=torch.float64), atol=0.03, rtol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=100.0)], ids=["vp", "ve"])
def test_the_prior_of_z_is_the_exact_aggregate_with_its_jacobian(stage, sde):
    x = data(50)
    found = latent_bound(stage, exact_prior(stage, sde), x, trace="exact")
    (stream,) = latent_noise(stage.autoencoder, range(50), "cpu", torch.float64)
    q = stage.encode(x)
    log_p = torch.distributions.Normal(SHIFT, VARIANCES.sqrt()).log_prob(q.draw(stream.normal(0))).sum((1, 2))
    torch.testing.assert_close(found.kl[0], -q.entropy() - log_p, atol=5e-3, rtol=0)
    assert abs(stage.log_scale) > 1  # a forgotten Jacobian is seen


def test_the_prior_is_worth_the_divergence_of_the_aggregate_from_the_normal_distribution(stage):
    """Within 4 standard errors (false alarms: 6e-5); the ELBO as log p of w is a little less."""
    x, prior = data(4000), exact_prior(stage, VPSDE())
    kl = 0.5 * float((VARIANCES + SHIFT**2 - 1 - VARIANCES.log()).sum())
    normal = bound(stage.autoencoder, x)
    flow = latent_bound(stage, prior, x, trace="exact", rtol=1e-3, atol=1e-3)
    gain = flow.log_prob - normal.log_prob
    assert abs(float(gain.mean()) - kl) < 4 * float(gain.std()) / 4000**0.5 + 5e-3
    torch.testing.assert_close(flow.reconstruction, normal.reconstruction)
    lower = latent_bound(stage, prior, x[:500], density="elbo", draws=1)
    less = flow.log_prob[:500] - lower.log_prob
    assert -4 * float(less.std()) / 500**0.5 < float(less.mean()) < 0.1 + 4 * float(less.std()) / 500**0.5


def test_it_is_a_lower_bound_that_importance_weights_tighten(stage):
    """To the same bound of closed-form densities; 4 standard errors each (false alarms: 3 x 6e-5)."""
    weight, x, prior = stage.autoencoder.decoder.weight, data(50), exact_prior(stage, VPSDE())
    covariance = weight * VARIANCES.flatten() @ weight.T + NOISE**2 * torch.eye(D, dtype=torch.float64)
    mean = torch.zeros(D, dtype=torch.float64)
    exact = float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).mean())
    aggregate, gaps = torch.distributions.Normal(SHIFT, VARIANCES.sqrt()), []
    for importance, draws in ((1, 10), (4, 4), (64, 4)):
        found = latent_bound(stage, prior, x, draws, importance, trace="exact", rtol=1e-3, atol=1e-3)
        value, error = float(found.log_prob.mean()), float(found.std_error.square().sum().sqrt()) / len(x)
        rows = x.repeat(50 * importance, 1)
        q = stage.encode(rows)
        z = q.draw(torch.randn(len(rows), *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        log_x = stage.autoencoder.observation.log_prob(rows, stage.autoencoder.outputs([z]))
        log_w = (log_x + aggregate.log_prob(z).sum((1, 2)) - q.log_prob(z)).reshape(50, importance, -1)
        known = float((log_w.logsumexp(1) - math.log(importance)).mean())
        assert abs(value - known) < 4 * error * math.sqrt(1 + draws / 50) + 2e-3
        gaps.append(exact - known)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert found.nfe > 128  # of 128 draws


def test_each_items_bound_depends_on_its_own_seed_alone(stage):
    x, prior = data(6), exact_prior(stage, VPSDE())
    both = latent_bound(stage, prior, x, 4, seeds=[5, 6, 7, 8, 9, 10], steps=20, method="rk4")
    one = latent_bound(stage, prior, x[3:4], 4, seeds=[8], steps=20, method="rk4", rows=1)
    torch.testing.assert_close(both.log_prob[3:4], one.log_prob)
    torch.testing.assert_close(both.std_error[3:4], one.std_error)


def test_what_is_no_bound_is_refused(stage):
    x, prior = data(3), exact_prior(stage, VPSDE())
    with pytest.raises(ValueError, match=r"density must be one of flow, elbo; got .flaw."):
        latent_bound(stage, prior, x, density="flaw")
    for wrong in ({"density": "elbo"}, {"trace": "hutchinson"}):
        with pytest.raises(ValueError, match="importance=3 would count the noise"):
            latent_bound(stage, prior, x, importance=3, **wrong)


@dataclass(frozen=True)
class Point:
    """The q of a deterministic encoder."""

    mean: Tensor

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean)

    def draw(self, noise: Tensor) -> Tensor:
        return self.mean

    def entropy(self) -> Tensor:
        raise UserError("a point has no entropy")


class Deterministic(MLPVAE):
    has_entropy = False

    def encode(self, x: Tensor) -> Point:
        return Point(super().encode(x).mean)


def test_what_is_no_first_stage_is_refused():
    with pytest.raises(UserError, match="a first stage has one latent variable, and this model has 2"):
        FirstStage(MLPHierarchy([4], Gaussian(), [4, 3], 8))
    stage = FirstStage(Deterministic([4], Gaussian(), 3, 8))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    stage.fit_statistics([x])
    with pytest.raises(UserError, match="a point has no entropy"):
        latent_bound(stage, GaussianDenoiser(VPSDE(), torch.zeros(3), 1.0), x)
    before = stage.scale.clone()
    with torch.no_grad():  # a constant, but for rounding
        stage.autoencoder.encoder.output.weight[2] = 0
        stage.autoencoder.encoder.output.bias[2] = 3
    with pytest.raises(UserError, match="channel 2 of the first stage carries nothing: std"):
        stage.fit_statistics([x])
    assert torch.equal(stage.scale, before)
