"""Chains whose log w = log p(x, z) - log q(z | x) is the same number, log p(x), for every draw of z."""

from __future__ import annotations

import math

import pytest
import torch
from autoencoders import MODELS
from torch import Tensor, nn

from sde_diffusion import GaussianDenoiser, elbo
from sde_diffusion.density import Decoder
from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.variational import (
    BottomUp,
    Categorical,
    DiagonalGaussian,
    DiffusionChain,
    Gaussian,
    HierarchicalVAE,
    LatentVariableModel,
    MLPHierarchy,
    amortisation_gap,
    bound,
)
from sde_diffusion.variational.amortisation import _Refined
from sde_diffusion.variational.inference import residual

PATHS = [VPSDE(), VESDE(), SubVPSDE(), CosineVPSDE(), EDMSDE(), RectifiedFlow()]
MEAN = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
STD = torch.tensor([0.2, 0.7, 1.3], dtype=torch.float64)


class ExactDecoder(Decoder):
    """p(x | x_{t_end}) of data N(MEAN, STD^2), by Bayes' rule."""

    def log_prob(self, sde: SDE, t_end: float, x: Tensor, z: Tensor) -> Tensor:
        r2 = (sde.sigma(t_end) / sde.alpha(t_end)) ** 2
        precision = 1 / STD**2 + 1 / r2
        return torch.distributions.Normal((MEAN / STD**2 + z / r2) / precision, precision.rsqrt()).log_prob(x).sum(1)


def gaussian_chain(sde: SDE, steps: int, **options) -> DiffusionChain:
    alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
    prior = (alpha * MEAN, ((alpha * STD).square() + sigma**2).sqrt())
    return DiffusionChain(
        GaussianDenoiser(sde, MEAN, STD), (3,), steps, decoder=ExactDecoder(), prior=prior, t_end=0.01, **options
    )


def conditional_variance(sde: SDE):
    """Var[x_0 | x_t] for data N(MEAN, STD^2), as precisions add."""

    def variance(x_t: Tensor, t: Tensor) -> Tensor:
        snr = (sde.alpha(t) / sde.sigma(t)) ** 2
        return (1 / (1 / STD**2 + snr)).expand_as(x_t)

    return variance


def draws(model: LatentVariableModel, n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *dims, generator=generator, dtype=torch.float64) for dims in model.latent_shapes]


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
def test_a_diffusion_with_the_best_variance_has_no_gap(sde, steps):
    chain = gaussian_chain(sde, steps, variance=conditional_variance(sde))
    x = torch.tensor([[0.4, -1.0, 2.0], [0.1, 0.3, -0.9]], dtype=torch.float64)
    exact = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1)
    weights = chain.infer(x.repeat(20, 1), draws(chain, 40)).log_weight().reshape(20, 2)
    torch.testing.assert_close(weights, exact.expand(20, 2), atol=1e-10, rtol=0)


def test_without_it_one_step_is_far_off():
    x = torch.tensor([[0.4, -1.0, 2.0]], dtype=torch.float64)
    exact = torch.distributions.Normal(MEAN, STD).log_prob(x).sum()
    assert float(bound(gaussian_chain(VPSDE(), 1), x, 100).log_prob) < exact - 100


@pytest.mark.parametrize("steps", [4, 16])
def test_a_diffusion_chain_has_the_bound_of_elbo(steps):
    """Both are estimates of the same number; false alarms: 3 standard errors of either, 0.3%."""
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = torch.tensor([[0.4, -1.0, 2.0]], dtype=torch.float64)
    chain = DiffusionChain(denoiser, (3,), steps, t_end=0.01)
    by_draws = bound(chain, x, 1000)
    by_terms = elbo(denoiser, x.repeat(100, 1), steps, t_end=0.01).log_prob
    error = math.hypot(float(by_draws.std_error), float(by_terms.std() / 10))
    assert abs(float(by_draws.log_prob) - float(by_terms.mean())) < 3 * error


class Affine(nn.Module):
    """Outputs of a normal distribution: mean = scale z + shift, and a fixed standard deviation."""

    def __init__(self, scale: Tensor, std: Tensor, shift: Tensor | float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = scale, torch.as_tensor(shift, dtype=torch.float64)
        log_std = std.log()
        self.outputs = 8 * torch.atanh(log_std / 8)  # what `DiagonalGaussian.of_outputs` bounds to log_std

    def forward(self, z: Tensor, *_: Tensor) -> Tensor:
        mean = self.scale * z + self.shift
        return torch.cat([mean, self.outputs.expand_as(mean)], 1)


class Mean(nn.Module):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        return (self.scale * z).unsqueeze(1)


class Pick(nn.Module):
    """The state below is z itself: a Markov chain."""

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        return z


A1, A2 = (torch.tensor(v, dtype=torch.float64) for v in ([0.8, -1.2], [0.5, 0.9]))
S0, S1 = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, 0.3], [0.6, 0.2]))
ONE = torch.ones(2, dtype=torch.float64)
X = torch.tensor([[0.7, -0.4], [1.5, 2.0]], dtype=torch.float64)


def exact_log_prob(x: Tensor) -> Tensor:
    variance = S0**2 + A1**2 * (S1**2 + A2**2)
    return torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), variance.sqrt()).log_prob(x).sum(1)


def observation() -> Gaussian:
    found = Gaussian().double()
    found.log_std.data = S0.log()  # one for each value
    return found


def regression(scale: Tensor, std: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and std of z given y = scale z + std n, z ~ N(0, prior^2)."""
    variance = 1 / (1 / prior**2 + scale**2 / std**2)
    return variance * scale / std**2, variance.sqrt()


def markov(posterior, **options) -> HierarchicalVAE:
    """The model x <- z_1 <- z_2 with some posterior networks."""
    prior, down = [Affine(A2, S1), Affine(0 * ONE, ONE)], [Pick(), Pick()]
    dims = [(2,), (2,)]
    return HierarchicalVAE(posterior, prior, down, Mean(A1), observation(), (2,), dims, (2,), **options).double()


def test_a_markov_chain_with_exact_conditionals_has_no_gap():
    marginal = (S1**2 + A2**2).sqrt()  # of z_1
    encoders = [Affine(*regression(A1, S0, marginal)), Affine(*regression(A2, S1, ONE))]
    model = markov(encoders, inference=BottomUp())
    weights = model.infer(X.repeat(20, 1), draws(model, 40)).log_weight().reshape(20, 2)
    torch.testing.assert_close(weights, exact_log_prob(X).expand(20, 2), atol=1e-10, rtol=0)


class Evidence(nn.Module):
    """What the data say about a level, as a Gaussian likelihood of z: x / scale with std / |scale|."""

    def __init__(self, scale: Tensor, std: Tensor, shift: float = 0.0) -> None:
        super().__init__()
        self.inner = Affine(1 / scale, std / scale.abs(), shift)

    def forward(self, h: Tensor, state: Tensor) -> Tensor:
        return self.inner(h)


def test_a_ladder_with_exact_evidence_has_no_gap():
    through = (S0**2 + (A1 * S1) ** 2).sqrt()  # std of x given z_2
    evidence = [Evidence(A1, S0), Evidence(A1 * A2, through)]
    model = markov(evidence, up=[nn.Identity(), nn.Identity()], inference="ladder")
    found = model.infer(X.repeat(20, 1), draws(model, 40))
    torch.testing.assert_close(found.log_weight().reshape(20, 2), exact_log_prob(X).expand(20, 2), atol=1e-10, rtol=0)


def test_a_hierarchy_with_wrong_evidence_is_refined_until_it_has_no_gap():
    """Evidence that is off by a constant moves the mean of q by a constant, whatever the state."""
    through = (S0**2 + (A1 * S1) ** 2).sqrt()
    evidence = [Evidence(A1, S0, 0.3), Evidence(A1 * A2, through, -0.5)]
    model = markov(evidence, up=[nn.Identity(), nn.Identity()], inference="ladder")
    found = amortisation_gap(model, X, steps=200, lr=0.1, draws=4, evaluation_draws=2)
    assert float((exact_log_prob(X) - found.before.log_prob).min()) > 0.1
    refined = bound(_Refined(model, found.change), X, 1, 20)  # log w is the same number for all draws
    torch.testing.assert_close(refined.log_prob, exact_log_prob(X), atol=1e-4, rtol=0)


def test_the_divergence_of_a_residual_level_is_that_from_a_standard_normal():
    generator = torch.Generator().manual_seed(0)
    prior, change = (DiagonalGaussian(*torch.randn(2, 5, 3, generator=generator).double()) for _ in range(2))
    found = residual(change, prior).kl(prior)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(change.mean, change.log_std.exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(found, expected)


CONTINUOUS = {name: make for name, make in MODELS.items() if name != "codes"}
CONTINUOUS["bottom-up hierarchy"] = lambda: MLPHierarchy(
    [1, 8, 8], Categorical(17), [2, 2], width=8, deterministic_path=False, inference="bottom_up"
)


@pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)
def test_what_is_inferred_is_what_the_model_generates_and_decodes(make):
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randint(0, 17, (3, 1, 8, 8)) / 8 - 1.0
    with torch.no_grad():
        for values in (*model.parameters(), model.output_bias):  # of which many begin at 0
            values.normal_(std=0.2)
        found = model.infer(x.double(), [torch.randn(3, *dims, dtype=torch.float64) for dims in model.latent_shapes])
        z = [latent.z for latent in found.latents]
        torch.testing.assert_close(model.outputs(z), found.outputs)
        torch.testing.assert_close(model.generate([latent.p.standardised(latent.z) for latent in found.latents]), z)
