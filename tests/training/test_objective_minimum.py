"""The objective is minimal at the exact denoiser: by training, and by calculus."""

import pytest
import torch
from reference_paths import PATHS
from torch import Tensor, nn

from sde_diffusion.denoiser import GaussianMixtureDenoiser, NetworkDenoiser
from sde_diffusion.nn import MLP
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.training import (
    EDMWeighting,
    ELBOWeighting,
    EpsWeighting,
    LogNormalTimes,
    Objective,
    UniformTimes,
    VelocityWeighting,
)


def relative_score_error(denoiser: nn.Module, exact: GaussianMixtureDenoiser, n: int = 400) -> float:
    """E|sigma (s_hat - s)|^2 / E|sigma s|^2 over uniform t, at points of the exact marginals."""
    generator = torch.Generator().manual_seed(9)
    wrong = right = 0.0
    for t in torch.linspace(exact.sde.t_min + 0.01, exact.sde.t_max, 40):
        x0 = exact.sample(n, generator)
        x = exact.sde.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=torch.float64))
        sigma2 = float(exact.sde.sigma(t)) ** 2
        with torch.no_grad():
            score, truth = denoiser(x.float(), t).score.double(), exact(x, t).score
        wrong += sigma2 * float((score - truth).square().mean())
        right += sigma2 * float(truth.square().mean())
    return wrong / right


@pytest.mark.slow
def test_training_finds_the_exact_score_of_a_mixture() -> None:
    """Measured after 1500 steps of 512: 2.0e-4; untrained 0.045, the prediction for Gaussian data of that variance."""
    sde = VPSDE()
    means = torch.tensor([[0.6, 0.2], [-0.5, 0.5], [0.1, -0.6]])
    exact = GaussianMixtureDenoiser(sde, means, torch.tensor([0.15, 0.2, 0.1]).reshape(3, 1), torch.tensor([2.0, 1, 1]))
    torch.manual_seed(6)
    denoiser = NetworkDenoiser(sde, MLP([2], width=64, depth=2), sigma_data=0.5)
    objective = Objective(EDMWeighting(0.5), LogNormalTimes(stratified=True))
    untrained = relative_score_error(denoiser, exact)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=4e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        x0 = exact.sample(512).float()
        loss = objective(denoiser, x0, objective.times(sde, 512), torch.randn_like(x0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    trained = relative_score_error(denoiser, exact)
    assert 0.02 < untrained < 0.1
    assert trained < 5e-4


class Linear(nn.Module):
    """x0 = k x_t for all t, where k is learned."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.k * x


class Plain(NetworkDenoiser):
    """The network as E[x_0 | x_t] itself, given x_t as it is."""

    def forward(self, x_t: Tensor, t: Tensor, **conditions: object):  # type: ignore[no-untyped-def]
        prediction = super().forward(x_t, t, **conditions)
        prediction.output = self.network(x_t, t)
        return prediction


def slope(sde: SDE, objective: Objective, t: Tensor, k: float, s: float) -> float:
    """d loss / dk for x0 ~ N(0, s^2), the expectation over (x0, eps) by 2-D Gauss-Hermite, exact for a square."""
    root = torch.tensor([-1.0, 1.0], dtype=torch.float64)  # two nodes: exact for polynomials of degree 3
    x0, noise = (v.reshape(-1, 1) for v in torch.meshgrid(s * root, root, indexing="ij"))
    denoiser = Plain(sde, Linear(k), "x0")
    loss = objective(denoiser, x0, t.expand(4), noise).mean()
    (gradient,) = torch.autograd.grad(loss, denoiser.network.parameters())
    return float(gradient) / loss.item()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weighting", [EpsWeighting(), VelocityWeighting(), ELBOWeighting(), EDMWeighting(0.3)])
def test_gradient_vanishes_at_the_coefficient_of_linear_regression(path: str, weighting: object) -> None:
    """E[x_0 | x_t] = k x_t with k = alpha s^2 / (alpha^2 s^2 + sigma^2), whatever the weighting."""
    sde, alpha, sigma, _ = PATHS[path]
    s = 0.8
    objective = Objective(weighting, UniformTimes())
    for share in (0.05, 0.3, 0.9):
        t = torch.tensor(sde.t_min + share * (sde.t_max - sde.t_min), dtype=torch.float64)
        a, b = float(alpha(t.item())), float(sigma(t.item()))
        k = a * s**2 / (a**2 * s**2 + b**2)
        scale = (a**2 * s**2 + b**2) / (s * b) ** 2 / k  # 1 / the least error, in units of k
        assert abs(slope(sde, objective, t, k, s)) < 1e-6 * max(1.0, scale)
        assert slope(sde, objective, t, 1.1 * k, s) > 0 > slope(sde, objective, t, 0.9 * k, s)
