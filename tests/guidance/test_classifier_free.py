"""What classifier-free guidance believes, in how many passes, and which arguments it refuses."""

import math

import pytest
import torch
from guidance_cases import classes_of, gaussians
from reference_paths import PATHS, spread
from torch import nn

from sde_diffusion import (
    MLP,
    VPSDE,
    AncestralSampler,
    ClassifierFreeGuidance,
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    HeunSampler,
    NetworkDenoiser,
    ODESampler,
    PredictorCorrector,
    elbo,
    log_likelihood,
)
from sde_diffusion.denoiser import InputGradient

SPELLINGS = ("x0", "eps", "score", "velocity")
MEANS, STDS = [[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]], [0.1, 0.15, 0.3]


class ByClassifier(Denoiser):
    """A mixture's belief, moved by w times the gradient of the exact log p(k | x_t)."""

    def __init__(self, mixture, w):
        super().__init__()
        self.mixture, self.sde, self.w = mixture, mixture.sde, w

    def forward(self, x_t, t, label):
        each = [GaussianDenoiser(self.sde, m, s) for m, s in zip(self.mixture.means, self.mixture.stds, strict=True)]
        with InputGradient(x_t) as inside:
            logs = torch.stack([one.log_prob(inside.x_t, t) for one in each], 1)
            g = inside.gradient((logs + self.mixture.log_weights).log_softmax(1)[torch.arange(len(label)), label])
        move = self.w * g * (self.sde.sigma(t).square() / self.sde.alpha(t))[:, None]
        return inside.answer(self.mixture(x_t, t).shifted(move))


@pytest.mark.parametrize("path", PATHS)
def test_it_is_guidance_by_the_exact_class_posterior(path):
    """p(k | x_t) = p_k(x_t) w_k / p(x_t), so that s_u + w grad log p(k | x_t) is s_u + w (s_k - s_u)."""
    sde = PATHS[path][0]
    mixture = GaussianMixtureDenoiser(sde, MEANS, STDS, [0.5, 0.2, 0.3])
    t = spread(sde, 9)[1:-1]
    scale = (sde.alpha(t).square() + sde.sigma(t).square()).sqrt()[:, None]
    x = scale * torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.arange(7) % 3
    conditional = classes_of(mixture)(x, t, label=label)
    for w in (1.0, 2.5):
        guided = ClassifierFreeGuidance(classes_of(mixture), w, {"label": 3})(x, t, label=label)
        other = ByClassifier(mixture, w)(x, t, label=label)
        for name in SPELLINGS:
            one, two = getattr(guided, name), getattr(other, name)
            assert ((one - two).abs() / (1 + two.abs())).max() < 1e-10
            if w == 1:
                assert torch.equal(one, getattr(conditional, name))


def network(prediction="edm", n_classes=4):
    torch.manual_seed(0)
    net = MLP([2], n_classes=n_classes, width=16, depth=1, embedding_dim=8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return NetworkDenoiser(VPSDE(), net, prediction)


X, LABEL = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 1, 1, 2])


@pytest.mark.parametrize("prediction", ["edm", "eps", "velocity"])
def test_a_network_is_asked_once(prediction):
    denoiser, seen = network(prediction), []
    denoiser.network.register_forward_hook(lambda module, given, answer: seen.append(len(answer)))
    for t in (0.002, 0.5, torch.rand(5)):
        conditional, unconditional = denoiser(X, t, label=LABEL), denoiser(X, t, label=4)
        for scale, rows in ((0, 5), (1, 5), (3.0, 10)):
            guided = ClassifierFreeGuidance(denoiser, scale, {"label": 4})
            seen.clear()
            belief = guided(X, t, label=LABEL)
            assert seen == [rows]
            assert guided.passes == guided.passes_at(t) == rows // 5
            for name in SPELLINGS:
                c, u = getattr(conditional, name), getattr(unconditional, name)
                if rows == 5:
                    assert torch.equal(getattr(belief, name), c if scale else u)
                else:
                    torch.testing.assert_close(getattr(belief, name), u + scale * (c - u), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "sampler", [AncestralSampler(4), HeunSampler(3), PredictorCorrector(steps=2), ODESampler(rtol=0.05, atol=0.05)]
)
def test_samplers_count_passes_and_number_predictions(sampler):
    denoiser, steps = network(), []
    guided = ClassifierFreeGuidance(denoiser, 3.0, {"label": 4})
    out = sampler(guided, (2, 2), label=1, callback=lambda step, *_: steps.append(step))
    assert steps == list(range(out.nfe // 2))
    one = ClassifierFreeGuidance(denoiser, 1, {"label": 4})
    found, want = sampler(one, (2, 2), label=1), sampler(denoiser, (2, 2), label=1)
    assert torch.equal(found.x, want.x)
    assert found.nfe == want.nfe


def test_likelihoods_count_passes():
    guided = ClassifierFreeGuidance(network(), 1.5, {"label": 4})
    seen = []
    guided.denoiser.network.register_forward_hook(lambda module, given, answer: seen.append(len(answer) // 3))
    assert log_likelihood(guided, X[:3], 1e-2, 1e-2, label=LABEL[:3]).nfe == sum(seen)
    seen.clear()
    assert elbo(guided, X[:3], draws=4, label=LABEL[:3]).nfe == sum(seen) == 8


def mixture_at(sde=None):
    return classes_of(GaussianMixtureDenoiser(sde or VPSDE(), MEANS, STDS, [0.5, 0.2, 0.3]))


def test_an_interval_of_noise_levels():
    """w inside, 1 outside, in one pass there; half-way at the ends; smooth enough for an adaptive solver."""
    sde, inner = VPSDE(), mixture_at()
    guided = ClassifierFreeGuidance(inner, 3.0, {"label": 3}, interval=(0.2, 3.2))
    weights = {
        r: guided.weight(float(sde.time(torch.tensor(-2 * math.log(r), dtype=torch.float64))))
        for r in (0.05, 0.099, 0.2, 0.401, 0.8, 1.59, 3.2, 6.5, 50.0)
    }
    assert list(weights.values()) == pytest.approx([1, 1, 2, 3, 3, 3, 2, 1, 1], abs=1e-8)
    for r, passes in ((0.05, 1), (0.15, 2), (0.8, 2), (50.0, 1)):
        t = sde.time(torch.tensor(-2 * math.log(r), dtype=torch.float64))
        inner.rows.clear()
        belief = guided(X, t, label=0)
        assert inner.rows == [5 * passes]
        assert guided.passes_at(t) == passes
        torch.testing.assert_close(belief.score, guided(X, t.expand(5), label=0).score)
    walks = {ends: ODESampler(rtol=1e-5, atol=1e-5) for ends in (None, (0.2, 3.2))}
    nfe = {e: s(ClassifierFreeGuidance(inner, 3.0, {"label": 3}, e), (8, 2), label=0).nfe for e, s in walks.items()}
    assert nfe[0.2, 3.2] < 1.25 * nfe[None]


def test_rescaling_takes_back_contrast():
    sde, t = VPSDE(), 0.5
    inner, x = gaussians(sde, 6), torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    conditional = inner(x, t, label=torch.zeros(4, dtype=torch.int64)).x0
    guided = ClassifierFreeGuidance(inner, 4.0, {"label": 1})(x, t, label=0).x0
    for phi in (0.7, 1.0):
        belief = ClassifierFreeGuidance(inner, 4.0, {"label": 1}, rescale=phi)(x, t, label=0)
        for i in range(4):
            factor = phi * conditional[i].std() / guided[i].std() + 1 - phi
            torch.testing.assert_close(belief.x0[i], factor * guided[i])
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        torch.testing.assert_close(belief.eps, (x - alpha * belief.x0) / sigma)
    alone = ClassifierFreeGuidance(gaussians(sde), 4.0, {"label": 1}, rescale=1)(x[:, :1], t, label=0)
    assert bool(alone.x0.isfinite().all())  # one number has no contrast


class Captioned(nn.Module):
    """Takes two conditions that can be left out, and one that cannot."""

    def forward(self, x, t, text, label, strength):
        return x * strength + text.sum(1, keepdim=True) + label[:, None]


def test_any_named_conditions_are_left_out():
    denoiser = NetworkDenoiser(VPSDE(), Captioned(), "x0")
    given = {"text": torch.rand(5, 3), "label": LABEL, "strength": torch.rand(5, 1)}
    null = {"text": torch.tensor([0.1, 0.2, 0.3]), "label": 9}
    guided = ClassifierFreeGuidance(denoiser, 2.0, null)
    without = {"text": null["text"].expand(5, 3), "label": torch.full((5,), 9), "strength": given["strength"]}
    want = 2 * denoiser(X, 0.5, **given).x0 - denoiser(X, 0.5, **without).x0
    torch.testing.assert_close(guided(X, 0.5, **given).x0, want)
    assert tuple(guided.conditions) == ("text", "label", "strength")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": -1}, r"scale must be a finite number of at least 0 \(1: the conditional model"),
        ({"scale": math.inf}, "scale must be a finite number"),
        ({"scale": math.nan}, "scale must be a finite number"),
        ({"scale": "2"}, "scale must be a number"),
        ({"null": None}, "null must say which value of a condition stands for none"),
        ({"null": {"text": 0}}, r"null names text, and NetworkDenoiser takes label"),
        ({"interval": (2, 1)}, r"interval must be \(low, high\) with 0 <= low < high, in sigma/alpha; got \(2, 1\)"),
        ({"interval": (1, 1)}, "interval must be"),
        ({"interval": 3}, "interval must be two values"),
        ({"interval": (200, 300)}, r"interval=\(200, 300\) lies outside the walk, .* goes from 0.001 to 152.2"),
        ({"interval": (0, 1e-4)}, "lies outside the walk"),
        ({"rescale": 1.1}, r"rescale must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        ClassifierFreeGuidance(network(), **{"null": {"label": 4}, **given})


def test_bad_calls():
    guided = ClassifierFreeGuidance(network(), 2.0, {"label": 4})
    for call in (lambda: guided(X, 0.5), lambda: AncestralSampler(2)(guided, (2, 2))):
        with pytest.raises(ValueError, match="guidance with scale=2 needs a condition to go by: give label="):
            call()
    with pytest.raises(TypeError, match="takes no condition 'text'"):
        guided(X, 0.5, text=1)
    with pytest.raises(ValueError, match=r"label must be integers in 0 ... 3"):
        AncestralSampler(2)(guided, (2, 2), label=7)
    with pytest.raises(TypeError, match="denoiser must be a Denoiser"):
        ClassifierFreeGuidance(MLP([2]), 2.0, {"label": 4})
    assert ClassifierFreeGuidance(network(n_classes=0), 1.0)(X, 0.5).x0.shape == X.shape  # 1 needs nothing to leave out


class Warmth(Denoiser):
    """x0 = temp / 100, where a conditional and an unconditional pass of float16 to float64 numbers meet."""

    def __init__(self):
        super().__init__()
        self.sde = VPSDE()

    def forward(self, x_t, t, temp=None):
        cold = torch.where(temp.isnan(), 0.0, temp) if temp.is_floating_point() else temp
        return GaussianDenoiser(self.sde, torch.zeros(1), 1.0)(x_t, t).shifted(cold[:, None].to(x_t) / 100)


@pytest.mark.parametrize("null", [math.nan, -0.5])
def test_a_null_keeps_its_value_beside_integers(null):
    x = torch.zeros(3, 1, dtype=torch.float64)
    guided = ClassifierFreeGuidance(Warmth(), 2.0, {"temp": null})
    zero = 0.0 if math.isnan(null) else null
    for temp in (20, torch.tensor([20, 20, 20]), 20.0):
        moved = guided(x, 0.5, temp=temp).x0 - Warmth()(x, 0.5, temp=torch.zeros(3)).x0
        torch.testing.assert_close(moved, torch.full_like(x, (2 * 20 - zero) / 100), rtol=1e-6, atol=0)
