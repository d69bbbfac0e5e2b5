"""Classifier guidance: the conditional model if the classifier is exact; per sample, in every mode of autograd."""

import math

import pytest
import torch
from guidance_cases import classes_of
from reference_paths import PATHS, spread
from torch import nn

from sde_diffusion import (
    MLP,
    VPSDE,
    AncestralSampler,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DPMSolver,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    RectifiedFlow,
)

SPELLINGS = ("x0", "eps", "score", "velocity")
MEANS, STDS, WEIGHTS = [[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]], [0.1, 0.15, 0.3], [0.5, 0.2, 0.3]


def mixture(sde=None):
    return GaussianMixtureDenoiser(sde or VPSDE(), MEANS, STDS, WEIGHTS)


@pytest.mark.parametrize("path", PATHS)
def test_the_exact_class_posterior_makes_it_classifier_free(path):
    """p(k | x_t) = p_k(x_t) w_k / p(x_t), so that s_u + w grad log p(k | x_t) is s_u + w (s_k - s_u)."""
    sde = PATHS[path][0]
    exact = mixture(sde)
    t = spread(sde, 9)[1:-1]
    scale = (sde.alpha(t).square() + sde.sigma(t).square()).sqrt()[:, None]
    x = scale * torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.arange(7) % 3
    conditional = classes_of(exact)(x, t, label=label)
    for w in (1.0, 2.5):
        free = ClassifierFreeGuidance(classes_of(exact), w, {"label": 3})(x, t, label=label)
        guided = ClassifierGuidance(exact, exact.log_responsibility, w)(x, t, label=label)
        for name in SPELLINGS:
            one, two = getattr(free, name), getattr(guided, name)
            assert ((one - two).abs() / (1 + one.abs())).max() < 1e-10
            if w == 1:
                assert torch.equal(one, getattr(conditional, name))


class Noisy(nn.Module):
    """A classifier with dropout and batch statistics, which both must be off."""

    n_classes = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, self.n_classes)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


class Miscounted:
    n_classes = 3

    def __call__(self, x, t):
        return x


@pytest.mark.parametrize("on", ["x_t", "x0"])
def test_each_sample_has_its_own_gradient(on):
    """A sample's belief does not depend on the batch, nor on the mode; no parameter gets a gradient."""
    torch.manual_seed(1)
    denoiser = NetworkDenoiser(VPSDE(), MLP([2], width=16, depth=1, embedding_dim=8))
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.5)
    net = Noisy().train()
    classifier = net if on == "x_t" else lambda x: net(x, torch.zeros(len(x)))
    guided = ClassifierGuidance(denoiser, classifier, 3.0, on)
    x, label = torch.randn(64, 2), torch.arange(64) % 3
    net.train(on == "x_t")
    every = guided(x, 0.4, label=label)
    for i in (0, 63):
        torch.testing.assert_close(guided(x[i : i + 1], 0.4, label=label[i : i + 1]).x0[0], every.x0[i])
    with torch.inference_mode():
        torch.testing.assert_close(guided(x.clone(), torch.full((64,), 0.4), label=label).eps, every.eps)
    assert all(p.grad is None for p in guided.parameters())
    assert net.training == (on == "x_t")
    moved = x.clone().requires_grad_()
    guided(moved, 0.4, label=label).x0.square().sum().backward()  # as exact likelihoods need
    assert bool(moved.grad.isfinite().all())
    drawn = AncestralSampler(3)(guided, (4, 2), seeds=range(4), label=torch.tensor([0, 1, 2, 3]))
    alone = AncestralSampler(3)(guided, (1, 2), seeds=[2], label=2)
    torch.testing.assert_close(drawn.x[2:3], alone.x)
    free = AncestralSampler(3)(denoiser, (1, 2), seeds=[3])
    torch.testing.assert_close(drawn.x[3:], free.x)  # class 3 of 0 ... 2: no label
    assert drawn.nfe == alone.nfe == free.nfe


def test_nothing_is_lost_where_alpha_is_zero():
    sde = RectifiedFlow(t_max=1.0)
    exact = mixture(sde)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    guided = ClassifierGuidance(exact, exact.log_responsibility, 2.0)
    for name in SPELLINGS:
        assert torch.equal(getattr(guided(x, 1.0, label=1), name), getattr(exact(x, 1.0), name))


def test_a_scale_of_the_noise_level():
    exact = mixture()
    sde, x = exact.sde, torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ramp = ClassifierGuidance(exact, exact.log_responsibility, lambda log_snr: (3 - log_snr).clamp(0, 5))
    times = sde.time(torch.tensor([4.0, 2.0, 0.0, -1.0], dtype=torch.float64))
    together = ramp(x, times, label=0)
    for i, w in enumerate((0, 1, 3, 4)):
        want = ClassifierGuidance(exact, exact.log_responsibility, w)(x[i : i + 1], times[i], label=0)
        torch.testing.assert_close(together.score[i : i + 1], want.score)
        torch.testing.assert_close(ramp(x[i : i + 1], times[i], label=0).score, want.score)
    inside = ClassifierGuidance(exact, exact.log_responsibility, 2.0, interval=(0.5, 5))
    assert torch.equal(inside(x, 1e-3, label=0).x0, exact(x, 1e-3).x0)


def test_a_classifier_of_clean_data_sees_the_belief():
    """Of N(0, s^2), x0 = k x_t with k = alpha s^2 / (alpha^2 s^2 + sigma^2): the gradient is that at x0, times k."""
    sde, s, rows = VPSDE(), 0.6, torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0]], dtype=torch.float64)
    t, label = 0.4, torch.tensor([2, 0, 1])
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    k = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    guided = ClassifierGuidance(GaussianDenoiser(sde, torch.zeros(2), s), lambda x0: x0 @ rows.T, 1.5, on="x0")
    gradient = k * (rows[label] - (k * x @ rows.T).softmax(1) @ rows)
    torch.testing.assert_close(guided(x, t, label=label).x0, k * x + 1.5 * sigma**2 / alpha * gradient)


def test_a_classifier_of_clean_data_is_too_sure():
    """Class: the sign. Its modes at 1.0 (80%) and 2.2 (20%) keep their shares only if the noise is known about."""
    sde = VPSDE()
    exact = GaussianMixtureDenoiser(sde, [[1.0], [2.2], [-1.0], [-2.2]], [0.1] * 4, [0.4, 0.1, 0.4, 0.1])

    def sign(x, t=None):
        logs = exact.log_responsibility(x, sde.t_min if t is None else t)
        return torch.stack([logs[:, :2].logsumexp(1), logs[:, 2:].logsumexp(1)], 1)

    latent = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    share = {}
    for on in ("x_t", "x0"):
        guided = ClassifierGuidance(exact, sign, on=on)
        x = DPMSolver(50)(guided, (400, 1), latent=latent, dtype=torch.float64, label=0).x
        assert bool((x > 0).all())
        share[on] = float((x > 1.6).double().mean())
    assert share["x_t"] == pytest.approx(0.2, abs=0.006)
    assert abs(share["x0"] - 0.2) > 0.05


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"scale": -1}, ValueError, r"scale must be a finite number of at least 0 \(1: the conditional model if"),
        ({"scale": lambda log_snr: -log_snr}, ValueError, "scale must be a finite number of at least 0"),
        ({"scale": lambda log_snr: log_snr[:2]}, ValueError, r"log-SNR \[7\] must return a number or that shape"),
        ({"scale": math.nan}, ValueError, "scale must be a finite"),
        ({"on": "x1"}, ValueError, "on must be one of x_t, x0"),
        ({"classifier": 3}, TypeError, "classifier must be a function or a module"),
        ({"classifier": Noisy}, TypeError, "classifier must be a function or a module"),
        ({"denoiser": nn.Linear(2, 2)}, TypeError, "denoiser must be a Denoiser"),
    ],
)
def test_bad_arguments(given, error, message):
    exact = mixture()
    with pytest.raises(error, match=message):
        ClassifierGuidance(**{"denoiser": exact, "classifier": exact.log_responsibility, **given})


def test_bad_calls():
    exact, x = mixture(), torch.zeros(2, 2)
    guided = ClassifierGuidance(exact, Noisy())
    with pytest.raises(ValueError, match="scale=1 needs a class: give label="):
        AncestralSampler(2)(guided, (2, 2))
    with pytest.raises(ValueError, match=r"label must be integers in 0 ... 2"):
        AncestralSampler(2)(guided, (2, 2), label=4)
    for answer, words in (
        (lambda x, t: x[:, 0], r"must return logits \[2, classes\]; got \[2\]"),
        (lambda x, t: None, "got None"),
        (lambda x, t: x * math.nan, "logits are NaN"),
        (lambda x, t: x.detach(), "the classifier must be differentiable, and its logits have no gradient"),
        (Miscounted(), "the classifier has 3 classes, but returns 2 logits"),
    ):
        with pytest.raises(ValueError, match=words):
            ClassifierGuidance(exact, answer)(x, 0.5, label=0)
    with pytest.raises(ValueError, match=r"label must be integers in 0 ... 1"):
        ClassifierGuidance(exact, lambda x, t: x)(x, 0.5, label=5)
    with pytest.raises(TypeError, match="takes no condition 'text'"):
        guided(x, 0.5, label=0, text=1)
    assert torch.equal(ClassifierGuidance(exact, Noisy(), 0)(x, 0.5).x0, exact(x, 0.5).x0)
