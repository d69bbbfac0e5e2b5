"""Autoguidance and compositions, whose arithmetic they share with classifier-free guidance."""

import math

import pytest
import torch
from guidance_cases import S_C, S_U, M, classes_of, guided_gaussian
from torch import nn

from sde_diffusion import (
    MLP,
    VESDE,
    VPSDE,
    AncestralSampler,
    AutoGuidance,
    ClassifierFreeGuidance,
    Composition,
    Denoiser,
    DPMSolver,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Prediction,
    PredictorCorrector,
)

SDE = VPSDE()
SPELLINGS = ("x0", "eps", "score", "velocity")
X, LABEL = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 1, 1, 2])


def network(seed=0, n_classes=4, shape=(2,), sde=SDE):
    torch.manual_seed(seed)
    net = MLP(list(shape), n_classes=n_classes, width=16, depth=1, embedding_dim=8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return NetworkDenoiser(sde, net)


def rows_of(denoiser):
    seen = []
    denoiser.network.register_forward_hook(lambda module, given, answer: seen.append(len(answer)))
    return seen


def gaussian(mean, std, size=1, sde=SDE):
    return GaussianDenoiser(sde, mean * torch.ones(size, dtype=torch.float64), std)


def test_autoguidance_gives_the_conditions_to_both():
    good, weak = network(0), network(1)
    guided = AutoGuidance(good, weak, 1.7)
    seen = rows_of(good), rows_of(weak)
    for t in (0.002, 0.5, torch.linspace(0.1, 0.9, 5)):
        belief, g, b = guided(X, t, label=LABEL), good(X, t, label=LABEL), weak(X, t, label=LABEL)
        for name in SPELLINGS:
            want = getattr(b, name) + 1.7 * (getattr(g, name) - getattr(b, name))
            torch.testing.assert_close(getattr(belief, name), want, rtol=2e-5, atol=1e-6)
    for scale, alone, rows in ((1, good, ([5], [])), (0, weak, ([], [5]))):
        one = AutoGuidance(good, weak, scale)
        want = alone(X, 0.5, label=LABEL)
        for counts in seen:
            counts.clear()
        assert torch.equal(one(X, 0.5, label=LABEL).eps, want.eps)
        assert seen == rows
        assert one.passes == one.passes_at(0.5) == 1
    assert (guided.passes, guided.passes_at(0.5)) == (2, 2)
    assert AncestralSampler(3)(guided, (2, 2), label=1).nfe == 6


def test_autoguidance_of_gaussians_follows_the_closed_form_of_its_flow():
    guided = AutoGuidance(gaussian(M, S_C), gaussian(0.0, S_U), 3.0)
    start = float(SDE.sigma(1.0)) * torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    low, high = DPMSolver(50, order=3)(guided, (2, 1), latent=start, dtype=torch.float64).x.flatten().tolist()
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx(guided_gaussian(SDE, 3.0, 0), rel=0.015)
    inside = AutoGuidance(gaussian(M, S_C), gaussian(0.0, S_U), 3.0, interval=(0.2, 3.2), rescale=0.7, threshold=0.99)
    x = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inside(x, 1e-3).x0, gaussian(M, S_C)(x, 1e-3).x0)
    assert [inside.passes_at(t) for t in (1e-3, 0.3)] == [1, 2]


PARTS = (gaussian(1.0, 1.0, 1500), gaussian(-1.0, 0.5, 1500), gaussian(0.0, 2.0, 1500))
PRODUCT = -0.6316, 0.4588
"""N(1, 1) N(-1, 1/4) / N(0, 4): precisions 1 + 4 - 1/4, and mean (1 - 4) / 4.75."""


def test_a_corrector_brings_a_composition_to_the_product():
    """The flow leaves prod_i s_i^(w_i), half the product's std; more Langevin steps come ever closer."""
    product = Composition(PARTS, [1, 1, -1])
    start = float(SDE.sigma(1.0)) * torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, 1500)
    low, high = DPMSolver(60, order=3)(product, (2, 1500), latent=start, dtype=torch.float64).x[:, 0].tolist()
    flow = (low + high) / 2, (high - low) / 2
    assert flow[1] == pytest.approx(1 * 0.5 / 2, rel=0.01)
    found = []
    for n in (1, 6):
        sampler = PredictorCorrector("probability_flow", "annealed_langevin", 60, 0.5, n)
        x = sampler(product, (2, 1500), seeds=range(2), dtype=torch.float64).x
        found.append((float(x.mean()), float(x.std())))  # standard errors 0.01
    misses = [math.dist(one, PRODUCT) for one in (flow, *found)]
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 0.3
    assert misses[2] < 0.06


def test_products_of_gaussians_at_equal_means_and_stds_are_exact():
    """Equal stds: each score is linear with the same slope, and the composition is exact at every t."""
    mixed = Composition([gaussian(m, 0.5) for m in (1.0, -1.0, 0.2)], [1, 0.5, -0.5])
    exact, x = gaussian(1.0 - 0.5 - 0.1, 0.5), X[:, :1].double()
    for t in (1e-4, 0.3, 1.0):
        for name in SPELLINGS:
            torch.testing.assert_close(getattr(mixed(x, t), name), getattr(exact(x, t), name))


def test_classes_of_one_model_are_composed_in_one_pass():
    denoiser = network()
    composed = Composition(denoiser, [1, 1, -1], [{"label": 3}, {"label": torch.tensor(1)}, {"label": 4}])
    seen = rows_of(denoiser)
    belief = composed(X, 0.5)
    assert seen == [15]
    assert composed.passes == composed.passes_at(0.5) == 3
    assert tuple(composed.conditions) == ()
    want = denoiser(X, 0.5, label=3).eps + denoiser(X, 0.5, label=1).eps - denoiser(X, 0.5).eps
    torch.testing.assert_close(belief.eps, want, rtol=2e-5, atol=2e-6)
    unnamed = Composition([denoiser] * 3, [1, 1, -1], [{"label": 3}, {"label": 1}, {}])
    out = AncestralSampler(2)(unnamed, (3, 2), seeds=range(3))
    torch.testing.assert_close(out.x, AncestralSampler(2)(composed, (3, 2), seeds=range(3)).x, rtol=1e-4, atol=1e-4)
    assert out.nfe == 6


class Anything(Denoiser):
    """Takes any conditions, and lists those of each call."""

    sde = SDE

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_t, t, **conditions):
        self.seen.append(conditions)
        return Prediction(SDE, x_t, t, x_t)


def test_a_condition_that_is_fixed_for_one_is_not_shared():
    denoiser = Anything()
    Composition(denoiser, [2, -1], [{"label": 3}, {}])(X, 0.5, label=5, text=1)
    assert denoiser.seen == [{"label": 3, "text": 1}, {"text": 1}]


def test_a_composition_of_class_and_null_is_classifier_free_guidance():
    mixture = GaussianMixtureDenoiser(SDE, [[0.8, 0.2], [-0.6, 0.5]], [0.1, 0.3])
    composed = Composition(classes_of(mixture), [2.5, -1.5], [{"label": 0}, {"label": 2}])
    shared = Composition([classes_of(mixture), network()], [1, 0])
    guided = ClassifierFreeGuidance(classes_of(mixture), 2.5, {"label": 2})
    x, t = X.double(), torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for name in SPELLINGS:
        torch.testing.assert_close(getattr(composed(x, t), name), getattr(guided(x, t, label=0), name))
    assert torch.equal(shared(x, t, label=1).x0, classes_of(mixture)(x, t, label=torch.ones(5).long()).x0)


@pytest.mark.parametrize(
    "weights", [[0.25], [0.25, -1.5], [torch.linspace(0, 1, 5), torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])]]
)
def test_affine_combinations(weights):
    parts = [network(seed)(X, 0.3) for seed in range(len(weights) + 1)]
    found = Prediction.affine(parts[0], list(zip(parts[1:], weights, strict=True)))
    for name in SPELLINGS:
        base, *others = (getattr(part, name) for part in parts)
        columns = [torch.as_tensor(w).reshape(-1, 1) for w in weights]
        want = (1 - sum(columns)) * base + sum(w * other for w, other in zip(columns, others, strict=True))
        torch.testing.assert_close(getattr(found, name), want, rtol=2e-5, atol=1e-5)
    assert Prediction.affine(parts[0], [(part, 0) for part in parts[1:]]) is parts[0]
    assert Prediction.affine(parts[0], [(parts[1], 1), *((part, 0) for part in parts[2:])]) is parts[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: AutoGuidance(network(), network(sde=VESDE())), r"weak must have the same path as denoiser, VPS.*VES"),
        (lambda: AutoGuidance(network(), network(shape=(3,))), r"weak must have the same shape .* \(2,\); .* \(3,\)"),
        (lambda: AutoGuidance(network(), network(n_classes=0)), "weak must take the same conditions .* no label"),
        (lambda: AutoGuidance(network(), network(), -0.5), r"at least 0 \(1: the model alone, 0: the weak one\)"),
        (lambda: AutoGuidance(network(), network(), torch.tensor([1.0, -2])), "scale must be a finite number"),
        (
            lambda: Composition(PARTS, [1, 1]),
            "weights must have a number for each denoiser.*; got 2 weights for 3 denoisers",
        ),
        (lambda: Composition(PARTS[:2], [1, 1]), "sum to 2: add the unconditional model with weight -1"),
        (lambda: Composition(PARTS[:2], [1, math.nan]), "weights must be finite"),
        (lambda: Composition([], []), "got 0 weights for 0 denoisers"),
        (lambda: Composition([network(), network(sde=VESDE())], [2, -1]), r"denoisers\[1\] must have the same path"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_bad_calls_and_kinds():
    with pytest.raises(TypeError, match="weak must be a Denoiser; got MLP"):
        AutoGuidance(network(), MLP([2]))
    with pytest.raises(TypeError, match=r"denoisers\[1\] must be a Denoiser"):
        Composition([network(), None], [2, -1])
    with pytest.raises(TypeError, match=r"denoisers\[0\] takes no condition 'text'"):
        Composition(network(), [1], [{"text": 1}])
    composed = Composition(network(), [1, 1, -1], [{"label": 3}, {"label": 7}, {}])
    with pytest.raises(ValueError, match=r"label must be integers in 0 ... 3"):
        AncestralSampler(2)(composed, (2, 2))
    with pytest.raises(TypeError, match="Composition takes no condition 'label'"):
        Composition(network(), [1], [{"label": 3}])(X, 0.5, label=1)
    with pytest.raises(ValueError, match=r"scale must be a number, or one for each of the 5 samples \(1: the"):
        AutoGuidance(network(), network(1), torch.ones(3))(X, 0.5, label=1)
    assert issubclass(Composition, Denoiser)
