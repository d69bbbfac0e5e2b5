"""Derivatives of guided denoisers, of their samples and likelihoods, against finite differences; costs; other modes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion import (
    AncestralSampler,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DPMSolver,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Mask,
    NetworkDenoiser,
    ODESampler,
    PosteriorDenoiser,
    Replacement,
    TwistedSMC,
    log_likelihood,
)
from sde_diffusion.denoiser import Denoiser, Prediction
from sde_diffusion.guidance import GaussianBlur, JacobianFree, LinearOperator, MomentMatching
from sde_diffusion.sde import EDMSDE, VPSDE, RectifiedFlow

Y = torch.tensor([[0.8]], dtype=torch.float64)
FIRST = Mask(torch.tensor([1, 0]))


class Line(nn.Module):
    """F(x, c_noise) = tanh(weight x), a network with one parameter."""

    def __init__(self, weight: float = 0.7) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x, c_noise):
        return torch.tanh(self.weight * x)


def sign(x, t=None):
    """Logits of two classes, by the sign of the first number."""
    return torch.stack([3 * x[:, 0], -3 * x[:, 0]], 1)


def guided(kind: str, denoiser: Denoiser) -> tuple[Denoiser, dict]:
    if kind in ("x_t", "x0"):
        return ClassifierGuidance(denoiser, sign, 1.5, on=kind), {"label": 1}
    likelihood = {"moments": MomentMatching(1), "free": JacobianFree(0.5)}[kind]
    return PosteriorDenoiser(denoiser, FIRST, 0.3, likelihood), {"y": Y}


KINDS = ["moments", "free", "x_t", "x0"]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_samples_reach_the_network(kind):
    """With a latent that needs no gradient itself."""
    latent = torch.tensor([[0.3, -1.2]], dtype=torch.float64)

    def drawn(weight: float, graph: bool = False):
        denoiser, given = guided(kind, NetworkDenoiser(VPSDE(), Line(weight), sigma_data=0.5))
        sampler = AncestralSampler(4)
        x = sampler(denoiser, (1, 2), latent=latent, dtype=torch.float64, create_graph=graph, **given).x.sum()
        return x, denoiser

    x, denoiser = drawn(0.7, graph=True)
    x.backward()
    step = 1e-5
    by_difference = (drawn(0.7 + step)[0] - drawn(0.7 - step)[0]) / (2 * step)
    (weight,) = denoiser.parameters()
    torch.testing.assert_close(weight.grad, by_difference.detach(), rtol=1e-5, atol=1e-8)


def test_a_likelihood_given_a_measurement_without_derivatives_of_the_network():
    """N(0, s^2 I), for which `JacobianFree(s)` is exact, as `MomentMatching` is."""
    denoiser = GaussianDenoiser(EDMSDE(), torch.zeros(2), 0.5)
    x = torch.tensor([[0.4, -0.3], [0.9, 0.1]], dtype=torch.float64)
    found = [
        log_likelihood(PosteriorDenoiser(denoiser, FIRST, 0.3, one), x, trace="exact", y=Y).log_prob
        for one in (JacobianFree(0.5), MomentMatching(1))
    ]
    gain = 0.5**2 / (0.5**2 + 0.3**2)
    mean = torch.tensor([gain * 0.8, 0.0], dtype=torch.float64)
    std = torch.tensor([0.5 * math.sqrt(1 - gain), 0.5], dtype=torch.float64)
    exact = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0], exact, atol=0.05, rtol=0)  # the prior ends at a finite noise level


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_samplers_work_in_inference_mode(kind, dtype):
    denoiser, given = guided(kind, GaussianDenoiser(VPSDE(), torch.zeros(2), 0.5))
    outside = AncestralSampler(3)(denoiser, (2, 2), dtype=dtype, **given).x
    with torch.inference_mode():
        inside = AncestralSampler(3)(denoiser, (2, 2), dtype=dtype, **given).x
    torch.testing.assert_close(inside.clone(), outside)


def test_a_gaussian_for_data_of_more_axes_takes_a_time_for_each_sample():
    denoiser = GaussianDenoiser(VPSDE(), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]))
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9])
    each = torch.cat([denoiser(x[i : i + 1], t[i]).x0 for i in range(4)])
    torch.testing.assert_close(denoiser(x, t).x0, each)
    logs = torch.cat([denoiser.log_prob(x[i : i + 1], t[i]) for i in range(4)])
    torch.testing.assert_close(denoiser.log_prob(x, t), logs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_measurements_that_repeat_each_other_do_no_harm(dtype):
    """The data lie on a line, and all numbers are known: three iterations are two too many."""
    line = torch.tensor([[0.6], [0.0], [-0.8]], dtype=torch.float64)
    denoiser = GaussianDenoiser(VPSDE(), torch.zeros(3), covariance=line @ line.T)
    y = torch.tensor([[1.5]], dtype=dtype) * line.T.to(dtype)
    for operator, known in ((LinearOperator(torch.eye(3)), y), (LinearOperator(torch.eye(3)[[0] * 4]), y[:, [0] * 4])):
        x = DPMSolver(20)(PosteriorDenoiser(denoiser, operator, 0.0), (64, 3), dtype=dtype, y=known).x
        assert float((x - y).abs().max()) < 1e-2


@pytest.mark.parametrize("steps", [25, 50, 250])
def test_replacement_takes_up_all_that_a_noisy_measurement_says(steps):
    """White data, of which one number is measured: y / 2, to within 4 standard errors of 4,000 (false alarms 6e-5)."""
    denoiser = PosteriorDenoiser(GaussianDenoiser(VPSDE(), torch.zeros(2), 1.0), FIRST, 1.0)
    x = Replacement(AncestralSampler(steps, eta=1.0))(denoiser, (4000, 2), y=torch.tensor([[1.5]])).x[:, 0]
    assert float(x.mean()) == pytest.approx(0.75, abs=4 * 0.707 / math.sqrt(4000))


@pytest.mark.parametrize("form", ["x0", "eps", "score", "velocity"])
def test_guidance_on_a_path_that_ends_without_noise(form):
    """At sigma = 0 x_t says all: a measurement changes no form of an exact belief."""
    denoiser = GaussianDenoiser(RectifiedFlow(t_min=0.0), torch.zeros(2), 0.5)
    x = torch.tensor([[0.5, -0.2]], dtype=torch.float64)
    alone = getattr(denoiser(x, 0.0), form)
    given = getattr(PosteriorDenoiser(denoiser, FIRST, 0.3, MomentMatching(1))(x, 0.0, y=Y), form)
    assert alone.isfinite().all()
    torch.testing.assert_close(given, alone)


def test_a_guided_walk_ends_without_noise():
    """Gaussian data: mean and standard deviation within 4 standard errors of 4,000 draws (false alarms 3e-4)."""
    denoiser = GaussianDenoiser(RectifiedFlow(t_min=0.0), torch.zeros(2), 0.5)
    posterior = PosteriorDenoiser(denoiser, FIRST, 0.3, MomentMatching(1))
    x = ODESampler()(posterior, (4000, 2), y=Y.float()).x
    gain = 0.5**2 / (0.5**2 + 0.3**2)
    std = torch.tensor([0.5 * math.sqrt(1 - gain), 0.5])
    error = 4 / math.sqrt(4000)
    assert float(((x.mean(0) - torch.tensor([gain * 0.8, 0.0])) / std).abs().max()) < error
    assert float((x.std(0) / std - 1).abs().max()) < error


def test_a_blur_wider_than_the_data_has_a_pseudo_inverse():
    operator = GaussianBlur(1.5)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = operator(x)
    torch.testing.assert_close(operator.filter(y, torch.ones_like), y)
    squares = operator.filter(x, lambda eigenvalues: eigenvalues)
    torch.testing.assert_close(squares, operator(operator.adjoint(x)), atol=1e-10, rtol=0)


MIXTURE = GaussianMixtureDenoiser(VPSDE(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.full((2, 2), 0.3))


class Labelled(Denoiser):
    """The mixture, or one component of it with label=."""

    def __init__(self) -> None:
        super().__init__()
        self.sde, self.sigma_data = MIXTURE.sde, None
        self.parts = nn.ModuleList(GaussianDenoiser(MIXTURE.sde, mean, 0.3) for mean in MIXTURE.means)

    def forward(self, x_t, t, label=None):
        beliefs = torch.stack([*(part(x_t, t).x0 for part in self.parts), MIXTURE(x_t, t).x0], 1)
        label = torch.full((len(x_t),), 2) if label is None else label
        return Prediction(self.sde, x_t, t, output=beliefs[torch.arange(len(x_t)), label].to(x_t))


def test_scales_of_each_sample_inside_another_guidance():
    """The inner guidance has a scale for each sample, and does not see a larger batch."""
    inner = AutoGuidance(Labelled(), Labelled(), torch.tensor([1.0, 1.5, 2.0]))
    x_t, label = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0])
    found = ClassifierFreeGuidance(inner, 2.0, null={"label": 2})(x_t, 0.5, label=label).x0
    for i, scale in enumerate((1.0, 1.5, 2.0)):
        one = ClassifierFreeGuidance(AutoGuidance(Labelled(), Labelled(), scale), 2.0, null={"label": 2})
        torch.testing.assert_close(found[i : i + 1], one(x_t[i : i + 1], 0.5, label=label[i : i + 1]).x0)
    guided = ClassifierFreeGuidance(Labelled(), torch.tensor([1.0, 2.0]), null={"label": 2})
    posterior = PosteriorDenoiser(guided, FIRST, 0.3, "jacobian_free")
    with pytest.raises(ValueError, match="one for all"):
        TwistedSMC(3, 4)(posterior, (2, 2), y=Y.float(), label=torch.tensor([0, 1]))


def test_derivatives_are_counted_in_network_passes():
    """One vector-Jacobian product of a belief of two passes is two; outside an interval there are none."""
    outer = PosteriorDenoiser(ClassifierFreeGuidance(Labelled(), 2.0, null={"label": 2}), FIRST, 0.3, MomentMatching(3))
    assert outer.gradients == 6
    assert AncestralSampler(6)(outer, (1, 2), y=Y.float(), label=0).gradients == 36
    inside = ClassifierGuidance(MIXTURE, sign, 1.0, on="x0", interval=(0.5, 1.0))
    low, high = (float(MIXTURE.sde.time(-2 * math.log(r))) for r in (0.1, 5.0))
    assert [inside.gradients_at(t) for t in (low, float(MIXTURE.sde.time(-2 * math.log(0.7))), high)] == [0, 1, 0]


def test_twisted_samples_have_no_derivative_and_finite_weights():
    posterior = PosteriorDenoiser(MIXTURE, FIRST, 0.3, "pseudo_inverse")
    with pytest.raises(ValueError, match="create_graph"):
        TwistedSMC(3, 4)(posterior, (2, 2), y=Y.float(), create_graph=True)
    path = RectifiedFlow(t_max=1.0)
    flow = PosteriorDenoiser(GaussianDenoiser(path, torch.zeros(2), 0.5), FIRST, 0.3, JacobianFree(None))
    assert TwistedSMC(5, 4)(flow, (2, 2), y=Y.float()).log_evidence.isfinite().all()
