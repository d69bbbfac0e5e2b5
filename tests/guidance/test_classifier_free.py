"""What classifier-free guidance believes, in how many passes, and which arguments it refuses."""

import math

import numpy as np
import pytest
import torch
from guidance_cases import Classes, classes_of, gaussians
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

SPELLINGS = ("x0", "eps", "score", "velocity")
MEANS, STDS = [[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]], [0.1, 0.15, 0.3]


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
    guided.denoiser.network.register_forward_hook(lambda module, given, answer: seen.append(len(answer)))
    assert log_likelihood(guided, X[:3], 1e-2, 1e-2, label=LABEL[:3]).nfe == math.ceil(sum(seen) / 3)  # of an item
    seen.clear()
    assert elbo(guided, X[:3], draws=4, label=LABEL[:3]).nfe == sum(seen) / 3 == 8


def mixture_at(sde=None):
    return classes_of(GaussianMixtureDenoiser(sde or VPSDE(), MEANS, STDS, [0.5, 0.2, 0.3]))


def test_an_interval_of_noise_levels():
    """w inside, 1 outside, in one pass there; half-way at the ends; smooth enough for an adaptive solver."""
    sde, inner = VPSDE(), mixture_at()
    guided = ClassifierFreeGuidance(inner, 3.0, {"label": 3}, interval=(0.2, 3.2))
    weights = {
        r: guided.weights_at(float(sde.time(torch.tensor(-2 * math.log(r), dtype=torch.float64))))[-1]
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


@pytest.mark.parametrize("size", [3, 200])
def test_dynamic_thresholding(size):
    """x0 is clipped to the p-quantile of its absolute values, if that is more than 1, and divided by it."""
    zero, t = torch.zeros(size, dtype=torch.float64), 0.5
    inner = Classes(*(GaussianDenoiser(VPSDE(), zero, s) for s in (0.5, 1.0)))  # beliefs proportional to x
    x = 5 * torch.randn(4, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[0] /= 50  # all within [-1, 1]: nothing to do
    belief = ClassifierFreeGuidance(inner, 4.0, {"label": 1}, threshold=0.9)(x, t, label=0)
    before = ClassifierFreeGuidance(inner, 4.0, {"label": 1})(x, t, label=0).x0
    for row, was in zip(belief.x0, before, strict=True):
        q = max(1.0, float(np.quantile(was.abs(), 0.9, method="inverted_cdf")))
        torch.testing.assert_close(row, was.clamp(-q, q) / q)
    assert torch.equal(belief.x0[0], before[0])
    assert before[0].abs().max() < 1 < before[1:].abs().amax(1).min()
    alpha, sigma = VPSDE().alpha(t), VPSDE().sigma(t)
    torch.testing.assert_close(belief.eps, (x - alpha * belief.x0) / sigma)
    one = ClassifierFreeGuidance(inner, 1.0, {"label": 1}, threshold=0.9, rescale=0.7, parallel=0.0)
    assert torch.equal(one(x, t, label=0).eps, inner(x, t, label=torch.zeros(4, dtype=torch.int64)).eps)


def test_the_parallel_part():
    inner, x, t = mixture_at(), X.double(), 0.4
    alone = inner(x, t, label=LABEL % 3).x0
    plain = ClassifierFreeGuidance(inner, 4.0, {"label": 3})(x, t, label=LABEL % 3).x0
    for eta in (0.0, 0.3):
        found = ClassifierFreeGuidance(inner, 4.0, {"label": 3}, parallel=eta)(x, t, label=LABEL % 3).x0
        for i in range(5):
            along = torch.outer(alone[i], alone[i]) / alone[i].square().sum()
            change = plain[i] - alone[i]
            torch.testing.assert_close(found[i], alone[i] + change - (1 - eta) * along @ change)


def test_a_negative_condition_in_one_pass():
    denoiser, seen = network(), []
    denoiser.network.register_forward_hook(lambda module, given, answer: seen.append(len(answer)))
    c, n, u = (denoiser(X, 0.3, label=label).eps for label in (LABEL, torch.full((5,), 2), torch.full((5,), 4)))
    for v, rows, want in ((0.5, 15, u + 3 * (c - u) - 0.5 * (n - u)), (None, 10, n + 3 * (c - n))):
        guided = ClassifierFreeGuidance(denoiser, 3.0, {"label": 4}, negative={"label": 2}, negative_scale=v)
        seen.clear()
        torch.testing.assert_close(guided(X, 0.3, label=LABEL).eps, want, rtol=2e-5, atol=2e-6)
        assert seen == [rows]
        assert guided.passes == guided.passes_at(0.3) == rows // 5
    without = ClassifierFreeGuidance(denoiser, 3.0, None, negative={"label": 2})  # needs no null value
    torch.testing.assert_close(without(X, 0.3, label=LABEL).eps, want, rtol=2e-5, atol=2e-6)
    inside = ClassifierFreeGuidance(denoiser, 3.0, None, (0.2, 3.2), negative={"label": 2})
    assert torch.equal(inside(X, 1e-3, label=LABEL).eps, denoiser(X, 1e-3, label=LABEL).eps)
    assert [inside.passes_at(t) for t in (1e-3, 0.1)] == [1, 2]


def test_scales_by_noise_level_and_by_sample():
    inner, sde, x = mixture_at(), VPSDE(), X.double()
    label = LABEL % 3

    def ramp(log_snr):
        return 1 + (2 - log_snr).clamp(0, 4)

    guided = ClassifierFreeGuidance(inner, ramp, {"label": 3})
    times = sde.time(torch.tensor([3.0, 2.5, 1.0, -1.0, -5.0], dtype=torch.float64))
    together = guided(x, times, label=label).score
    by_sample = ClassifierFreeGuidance(inner, torch.tensor([1.0, 1, 2, 4, 5]), {"label": 3})
    torch.testing.assert_close(by_sample(x, times, label=label).score, together)
    for i, w in enumerate((1.0, 1, 2, 4, 5)):
        want = ClassifierFreeGuidance(inner, w, {"label": 3})(x[i : i + 1], times[i], label=label[i : i + 1]).score
        torch.testing.assert_close(together[i : i + 1], want)
        torch.testing.assert_close(guided(x[i : i + 1], times[i], label=label[i : i + 1]).score, want)
        assert guided.passes_at(times[i]) == (1 if i < 2 else 2)
    assert guided.passes == 2


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
        ({"scale": "2"}, "scale must be a finite number of at least 0 .1: the conditional model"),
        ({"null": None}, "null must say which value of a condition stands for none"),
        ({"null": {"text": 0}}, r"null names text, and NetworkDenoiser takes label"),
        ({"interval": (2, 1)}, r"interval must be \(low, high\) with 0 <= low < high, in sigma/alpha; got \(2, 1\)"),
        ({"interval": (1, 1)}, "interval must be"),
        ({"interval": 3}, "interval must be two values"),
        ({"interval": (200, 300)}, r"interval=\(200, 300\) lies outside the walk, .* goes from 0.001 to 152.2"),
        ({"interval": (0, 1e-4)}, "lies outside the walk"),
        ({"rescale": 1.1}, r"rescale must lie in \[0, 1\]"),
        ({"threshold": 0}, r"threshold must be a quantile in \(0, 1\], such as 0.995"),
        ({"threshold": 255}, "threshold must be a quantile"),
        ({"parallel": -1}, "parallel must be a finite number of at least 0"),
        ({"negative": {"label": 1}, "scale": 1}, "negative has no effect at scale=1: give a scale greater than 1, or"),
        ({"negative": {"label": 1}, "negative_scale": 0}, "negative has no effect with negative_scale=0"),
        ({"negative": {"label": 1}, "negative_scale": -1}, "negative_scale must be a finite number of at least 0"),
        ({"negative_scale": 1}, "negative_scale needs a negative condition"),
        ({"negative": {"text": 1}}, "negative names text, and NetworkDenoiser takes label"),
        ({"scale": lambda log_snr: log_snr}, "scale must be a finite number of at least 0"),
        ({"scale": lambda log_snr: "2"}, "scale must be a finite number of at least 0 .1: the conditional model"),
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
    away = ClassifierFreeGuidance(network(), 2.0, {"label": 4}, negative={"label": 2})
    with pytest.raises(ValueError, match="negative must differ from the condition itself; both are label=2"):
        AncestralSampler(2)(away, (2, 2), label=2)
    assert AncestralSampler(2)(away, (2, 2), label=torch.tensor([1, 2])).nfe == 4
    with pytest.raises(ValueError, match=r"label must be integers in 0 ... 3"):
        AncestralSampler(2)(ClassifierFreeGuidance(network(), 2.0, negative={"label": 9}), (2, 2), label=2)
    with pytest.raises(ValueError, match=r"scale must be a number, or one for each of the 5 samples \(1: the"):
        ClassifierFreeGuidance(network(), torch.ones(3), {"label": 4})(X, 0.5, label=1)
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
