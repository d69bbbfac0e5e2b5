"""The linear VAE is probabilistic PCA (Tipping & Bishop 1999; Lucas et al. 2019), which has closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.variational import VAE, Gaussian, bound

EIGENVALUES = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.2, 0.1], dtype=torch.float64)
D, LATENTS = 6, 3


def data() -> tuple[Tensor, Tensor]:
    """Points whose mean is 0 and whose covariance has exactly these eigenvalues, and the eigenvectors."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    points = math.sqrt(D) * torch.eye(D, dtype=torch.float64)
    return torch.cat([points, -points]) * EIGENVALUES.sqrt() @ basis.T, basis


class LinearEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(D, LATENTS), nn.Parameter(torch.zeros(LATENTS))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], 1)


class LinearDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(LATENTS, D)

    def forward(self, z: Tensor) -> Tensor:
        return self.mean(z).unsqueeze(1)


def linear_vae(std: float, learned: bool) -> VAE:
    torch.manual_seed(1)
    return VAE(LinearEncoder(), LinearDecoder(), Gaussian(std, learned), (D,), (LATENTS,)).double()


def exact_elbo(model: VAE, x: Tensor, beta: float = 1.0) -> Tensor:
    """E_q log p(x | z) - beta KL, exactly: at the 2d points ± sqrt(d) e_i a quadratic function has its mean."""
    points = math.sqrt(LATENTS) * torch.eye(LATENTS, dtype=torch.float64)
    points = torch.cat([points, -points])
    noise = points.repeat_interleave(len(x), 0)
    found = model.infer(x.repeat(len(points), 1), [noise])
    return (found.log_prob - beta * found.kl().sum(0)).mean()


def fit(model: VAE, x: Tensor, beta: float) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(
        trained, max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -exact_elbo(model, x, beta)
        loss.backward()
        return loss

    optimizer.step(closure)


def log_prob(model: VAE, x: Tensor) -> Tensor:
    """Log p(x) of the linear model, in closed form."""
    w, b = model.decoder.mean.weight, model.decoder.mean.bias
    covariance = w @ w.T + (2 * model.observation.log_std).exp() * torch.eye(D, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(b, covariance).log_prob(x)


def test_a_linear_vae_reaches_the_likelihood_of_probabilistic_pca():
    x, _ = data()
    model = linear_vae(0.7, learned=True)
    fit(model, x, 1.0)
    noise = EIGENVALUES[LATENTS:].mean()
    kept = EIGENVALUES[:LATENTS].log().sum() + (D - LATENTS) * noise.log()
    best = -0.5 * (D * math.log(2 * math.pi) + kept + D)
    assert abs(float(exact_elbo(model, x) - best)) < 1e-6
    assert abs(float(log_prob(model, x).mean() - best)) < 1e-6
    assert float((2 * model.observation.log_std).exp()) == pytest.approx(float(noise), abs=1e-5)


@pytest.mark.parametrize(
    ("beta", "variance"),
    [(2.0, 0.5), (1.0, 1.5), *(pytest.param(beta, 0.5, marks=pytest.mark.slow) for beta in (1.0, 3.0, 4.0))],
)
def test_latents_collapse_one_by_one_as_beta_grows(beta, variance):
    """The squared singular values of the decoder are max(eigenvalue - beta sigma^2, 0)."""
    x, _ = data()
    model = linear_vae(math.sqrt(variance), learned=False)
    fit(model, x, beta)
    found = torch.linalg.svdvals(model.decoder.mean.weight.detach()).square()
    torch.testing.assert_close(found, (EIGENVALUES[:LATENTS] - beta * variance).clamp(min=0), atol=1e-4, rtol=0)


def rotated() -> tuple[VAE, Tensor]:
    """The best linear VAE with its latents rotated: no diagonal q is its posterior any more."""
    x, _ = data()
    model = linear_vae(0.7, learned=True)
    fit(model, x, 1.0)
    turn = torch.linalg.qr(torch.randn(LATENTS, LATENTS, dtype=torch.float64))[0]
    w = model.decoder.mean.weight.data @ turn.T
    model.decoder.mean.weight.data = w
    noise = (2 * model.observation.log_std.detach()).exp()
    precision = torch.eye(LATENTS, dtype=torch.float64) + w.T @ w / noise
    model.encoder.mean.weight.data = torch.linalg.solve(precision, w.T) / noise
    model.encoder.mean.bias.data.zero_()
    model.encoder.log_std.data = 8 * torch.atanh(-0.5 * precision.diagonal().log() / 8)
    return model, x


def test_the_gap_is_the_divergence_of_q_from_the_posterior_and_closes_with_importance_weights():
    """Gap in closed form at K = 1; within 3 standard errors of a monotone fall after that (false alarms 0.3% each)."""
    model, x = rotated()
    x = x[:1]
    w = model.decoder.mean.weight.detach()
    noise = (2 * model.observation.log_std.detach()).exp()
    precision = torch.eye(LATENTS, dtype=torch.float64) + w.T @ w / noise
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))  # means agree, and so do traces
    exact = float(log_prob(model, x).detach())
    last = -math.inf
    for importance, draws in ((1, 1000), (8, 400), (64, 100), (1000, 20)):
        found = bound(model, x, draws, importance)
        value, error = float(found.log_prob), float(found.std_error)
        assert value > last - 3 * error
        if importance == 1:
            assert abs(exact - gap - value) < 3 * error
        assert value < exact + 3 * error
        last = value
    assert abs(exact - last) < 3 * error + 0.01 * gap
    assert gap > 0.05


def test_a_bound_depends_on_each_items_own_seed_alone():
    model, x = rotated()
    together = bound(model, x[:4], 3, 5, seeds=[5, 6, 7, 8], rows=7)
    alone = bound(model, x[2:3], 3, 5, seeds=[7])
    torch.testing.assert_close(together.log_prob[2:3], alone.log_prob, atol=1e-12, rtol=0)
    torch.testing.assert_close(together.kl[:, 2:3], alone.kl, atol=1e-12, rtol=0)
