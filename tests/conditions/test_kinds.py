"""Kinds of conditions: allowed values, null values, embeddings, in any number."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from sde_diffusion import (
    MLP,
    VPSDE,
    AncestralSampler,
    ClassifierFreeGuidance,
    NetworkDenoiser,
    UNet,
    UserError,
    modality,
)
from sde_diffusion.conditions import KINDS, Condition, Conditions, Label, Measurement, Text, kind_by_values
from sde_diffusion.config import build
from sde_diffusion.density import elbo, log_likelihood
from sde_diffusion.sampling import Sampler
from sde_diffusion.training import DenoisingScoreMatching

NAN = math.nan
KINDS_OF = {"label": Label(3, ["ant", "bee", "cow"]), "rate": Measurement([], 25.0, 4.0), "wind": Measurement([2], 1.0)}
VALUES = {"label": torch.tensor([2, 0, 1]), "rate": torch.tensor([20.0, 25, 31]), "wind": torch.randn(3, 2)}
NULLS = {"label": 3, "rate": NAN, "wind": [NAN, NAN]}
NETWORKS = {
    "mlp": lambda: MLP([1, 4, 4], width=8, depth=1, embedding_dim=8, conditions=KINDS_OF),
    "unet": lambda: UNet([1, 4, 4], channels=4, channel_mult=[1], blocks=1, attention=[], conditions=KINDS_OF),
}


def denoiser(name="mlp"):
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return NetworkDenoiser(VPSDE(), network)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_condition_matters_and_each_null_is_as_if_it_were_not_given(name):
    model, x = denoiser(name), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    told = model(x, 0.5, **VALUES).x0
    for one in VALUES:
        without = model(x, 0.5, **{other: value for other, value in VALUES.items() if other != one}).x0
        null = model(x, 0.5, **{**VALUES, one: NULLS[one]}).x0
        torch.testing.assert_close(null, without, rtol=1e-12, atol=1e-12)
        assert ((told - null).flatten(1).abs().amax(1) > 1e-4).all()
    torch.testing.assert_close(model(x, 0.5, **NULLS).x0, model(x, 0.5).x0, rtol=1e-12, atol=1e-12)
    alone = torch.cat([model(x[i : i + 1], 0.5, **{k: v[i : i + 1] for k, v in VALUES.items()}).x0 for i in range(3)])
    torch.testing.assert_close(alone, told, rtol=1e-11, atol=1e-11)


def test_networks_see_standardised_measurements():
    """Degrees and kelvins are the same to a network, and so is its gradient, nulls among them."""
    torch.manual_seed(0)
    celsius = Measurement([], 20.0, 5.0).embedding(8)
    kelvin = Measurement([], 293.15, 5.0).embedding(8)
    kelvin.load_state_dict(celsius.state_dict())
    values = torch.tensor([12.0, 20.0, NAN, 31.5], requires_grad=True)
    found = celsius(values)
    torch.testing.assert_close(kelvin(values + 273.15), found, rtol=0, atol=1e-4)
    assert torch.equal(found[2], celsius.null)
    (gradient,) = torch.autograd.grad(found.square().sum(), values)
    assert gradient.isfinite().all()
    assert gradient[[0, 1, 3]].abs().min() > 0
    stated = Measurement([2], null_value=-1.0)
    assert stated.nulls(2).tolist() == [[-1, -1], [-1, -1]]
    embedding = stated.embedding(8)
    assert torch.equal(embedding(stated.nulls(1))[0], embedding.null)
    assert not torch.equal(embedding(torch.tensor([[-1.0, 0]]))[0], embedding.null)


@pytest.mark.parametrize("value", [25, 25.0, [25.0] * 3, np.full(3, 25), torch.tensor([25.0]), torch.tensor(25)])
def test_values_in_any_form(value):
    expected = KINDS_OF["rate"].check("rate", torch.full((3,), 25.0), 3)
    assert torch.equal(KINDS_OF["rate"].check("rate", value, 3), expected)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate", [1.0, 2.0], r"rate must be one number for each of the 3 samples; got shape \[2\]"),
        ("rate", [[1.0], [2.0], [3.0]], r"got shape \[3, 1\]"),
        ("rate", math.inf, "rate must be finite numbers .*; got inf"),
        ("rate", "fast", "got 'fast'"),
        ("rate", True, "got bool"),
        ("wind", [1.0, NAN], r"wind must be finite numbers \(or all NaN: no wind\); got nan"),
        ("wind", [1.0, 2.0, 3.0], r"wind must be one value of shape \[2\] for each of the 3 samples; got shape \[3\]"),
        ("label", 4, r"label must be integers in 0 ... 2 \(or 3: no label\); got 4"),
    ],
)
def test_values_that_are_none(name, value, words):
    for call in (
        lambda **told: denoiser()(torch.zeros(3, 1, 4, 4), 0.5, **told),
        lambda **told: AncestralSampler(2)(denoiser(), (3, 1, 4, 4), **told),
    ):
        with pytest.raises(ValueError, match=words):
            call(**{name: value})
    with pytest.raises(ValueError, match="one integer for all samples"):
        Label(3).check("label", [1, 2], 1)


def test_kinds_describe_themselves():
    with torch.device("meta"):  # where a configuration is looked at before a run
        assert build(Conditions(KINDS_OF).describe())["rate"].std == 4.0
    conditions = Conditions(KINDS_OF)
    described = conditions.describe()
    assert Conditions(described).describe() == described
    assert [type(kind) for kind in build(described).values()] == [Label, Measurement, Measurement]
    assert described["wind"] == {
        "_target_": "sde_diffusion.conditions.Measurement",
        "shape": [2],
        "mean": 1.0,
        "std": 1.0,
        "null_value": None,
    }
    assert Conditions(n_classes=4).describe() == Conditions({"label": Label(4)}).describe()
    assert {type(kind) for kind in KINDS_OF.values()} == set(KINDS) - {Text}  # in test_text.py


def test_kinds_of_data():
    rates = torch.tensor([1.0, 3.0])
    assert kind_by_values([torch.tensor([0, 4]), torch.tensor([6])]).n_classes == 7
    assert (kind_by_values([rates, 9 * rates]).mean, kind_by_values([rates]).std) == (2.0, 1.0)  # of the training split
    assert kind_by_values([torch.full((5, 2), 0.1)]).std == [1.0, 1.0]  # constant: nothing to scale by
    assert kind_by_values([torch.tensor([100_000])]) is None
    assert kind_by_values([torch.ones(3, 2, dtype=torch.int64)]) is None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Conditions({"seeds": Label(2)}), ValueError, "'seeds' cannot be the name of a condition"),
        (lambda: Conditions({"my rate": Label(2)}), ValueError, "'my rate' cannot be the name of a condition"),
        (lambda: Conditions({"type": Label(2)}), ValueError, "'type' cannot be the name of a condition"),
        (lambda: Conditions({"rate": 3}), TypeError, "rate must be a kind of condition"),
        (lambda: Conditions([Label(2)]), TypeError, "conditions must map names to kinds"),
        (lambda: Conditions({"rate": {"_target_": "os.system"}}), UserError, "is not a class of sde_diffusion"),
        (lambda: Label(2, ["a", "b", "c"]), ValueError, "at most 2 names, one for each class"),
        (lambda: Measurement([2], [1.0]), ValueError, r"mean must be a number or of shape \[2\]"),
        (lambda: Measurement(std=0.0), ValueError, "std must be positive"),
    ],
)
def test_bad_descriptions(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_guidance_by_any_number_of_conditions():
    """Guided by both, and by one while the other is in both predictions: score_u + w (score_c - score_u)."""
    model, x = denoiser(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    null = {name: kind.null for name, kind in KINDS_OF.items()}
    for left_out in (("label", "rate", "wind"), ("rate",)):
        guided = ClassifierFreeGuidance(model, 3.0, {name: null[name] for name in left_out})(x, 0.5, **VALUES)
        told = model(x, 0.5, **VALUES).score
        without = model(x, 0.5, **{name: value for name, value in VALUES.items() if name not in left_out}).score
        torch.testing.assert_close(guided.score, without + 3 * (told - without), rtol=1e-9, atol=1e-9)


def test_a_new_kind_is_a_class_with_an_embedding():
    """Text of two letters, as numbers [2]: checked, dropped and embedded without a change anywhere else."""

    class Letters(Condition):
        dtype, shape, each = torch.int64, (2,), "pair of letters"
        null = torch.tensor([26, 26])

        @classmethod
        def of(cls, splits, names=None):
            return None

        def allowed(self, name):
            return f"{name} must be letters"

        def takes(self, dtype):
            return dtype == torch.int64

        def wrong(self, values):
            return "" if bool(((values >= 0) & (values <= 26)).all()) else "another"

        def embedding(self, dim):
            return nn.Sequential(nn.Embedding(27, dim // 2), nn.Flatten())

    network = MLP([2], width=8, depth=1, embedding_dim=8, conditions={"word": Letters()})
    nn.init.normal_(network.output.weight)
    nn.init.normal_(network.blocks[0].output.weight)
    model, x = NetworkDenoiser(VPSDE(), network), torch.randn(2, 2)
    words = torch.tensor([[3, 4], [0, 25]])
    assert not torch.equal(model(x, 0.5, word=words).x0, model(x, 0.5).x0)
    torch.testing.assert_close(model(x, 0.5, word=[26, 26]).x0, model(x, 0.5).x0)
    assert ClassifierFreeGuidance(model, 2.0, {"word": Letters.null})(x, 0.5, word=words).x0.isfinite().all()
    with pytest.raises(ValueError, match="word must be letters; got another"):
        model(x, 0.5, word=[3, 99])


@pytest.mark.parametrize(("mean", "std"), [(1.7e9, 1000.0), (101325.0, 0.09), (290.0, 12.0), (0.0, 1e-8)])
def test_small_spreads_about_a_large_mean_are_standardised_all_the_same(mean, std):
    values = mean + std * torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert Measurement.of([values]).std == pytest.approx(std, rel=0.05)
    constant = torch.full((4000,), 0.1) * (1 + torch.rand(4000) * 1e-7)
    assert Measurement.of([constant]).std == 1.0


def test_what_float32_does_not_hold_is_refused():
    for value in (1e39, np.float64(1e39), torch.tensor([1e39, 0.0], dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"rate must be finite numbers .* got inf"):
            Measurement().check("rate", value, 2)


@pytest.mark.parametrize(
    "call", [Sampler.__call__, Sampler.invert, log_likelihood, elbo, DenoisingScoreMatching.__call__]
)
def test_names_that_mean_something_else_are_refused(call):
    """As keywords of a call, or as arrays in a file of samples."""
    names = [p.name for p in inspect.signature(call).parameters.values() if p.kind is not p.VAR_KEYWORD]
    units = [kind.unit for kind in modality.KINDS]
    for name in {*names, *units, "seeds", "labels", "class_names"}:
        with pytest.raises(ValueError, match="cannot be the name of a condition"):
            Conditions({name: Label(2)})


def test_values_that_are_null_are_told_from_others():
    assert Label(3).is_null(torch.tensor([0, 3, 2])).tolist() == [False, True, False]
    assert Measurement().is_null(torch.tensor([1.0, NAN])).tolist() == [False, True]
    assert Measurement([2]).is_null(torch.tensor([[1.0, NAN], [NAN, NAN]])).tolist() == [False, True]
    assert Measurement(null_value=-1.0).is_null(torch.tensor([-1.0, 1.0])).tolist() == [True, False]
