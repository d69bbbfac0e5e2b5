"""Texts as conditions: values, the null text, and networks that are told them."""

import pytest
import torch
from torch import nn

from sde_diffusion import VPSDE, ClassifierFreeGuidance, DPMSolver, NetworkDenoiser, Text, UNet, UserError
from sde_diffusion.conditions import Conditions, kind_by_values
from sde_diffusion.config import build
from sde_diffusion.nn.attention import CrossAttention
from sde_diffusion.text import HashedWords, as_bytes, as_texts
from sde_diffusion.training.dropout import ConditionDropout

TEXT = Text(40, HashedWords(8, 64))
TEXTS = ["a bold seven", "a thin two, upright", "one"]


def test_values_of_texts():
    found = TEXT.read("text", TEXTS, 6)
    assert as_texts(found) == TEXTS * 2
    assert torch.equal(TEXT.check("text", "one", 3), TEXT.read("text", "one", 3))
    assert (as_texts(TEXT.read("text", 7, 1)), TEXT.to_file(found[:1]).tolist()) == (["7"], TEXTS[:1])
    assert TEXT.is_null(TEXT.check("text", "", 2)).all()
    assert [TEXT.words(value) for value in (found[0], TEXT.null)] == ["'a bold seven'", "none"]
    described = Conditions({"text": TEXT}).describe()
    assert Conditions(build(described)).describe() == described
    kind = kind_by_values([found, found[:1]])
    assert (type(kind), kind.shape, kind_by_values([found[:, 0]])) == (Text, (40,), None)


@pytest.mark.parametrize(
    ("typed", "n", "words"),
    [
        ([], 2, "holds no text"),
        (("a", ""), 2, "text is empty: give words, or text=none for no text"),
        (TEXTS, 4, "has 3 texts, which are taken in turn, for n=4 samples: take n=3, or a multiple"),
        ("x" * 41, 1, "text: a text may have at most 40 bytes; got 41"),
        (torch.ones(1, 40), 1, "must be text of at most 40 bytes .*; got float32"),
    ],
)
def test_values_refused(typed, n, words):
    with pytest.raises(UserError, match=words):
        TEXT.read("text", typed, n)


@pytest.fixture(scope="module", params=[(), (1,)])
def model(request):
    torch.manual_seed(0)
    shape = {"channels": 4, "channel_mult": [1, 2], "blocks": 1, "attention": [], "embedding_dim": 8}
    network = UNet([1, 5, 4], conditions={"text": TEXT}, cross_attention=request.param, **shape).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return NetworkDenoiser(VPSDE(), network)


def test_a_network_is_told_the_text_and_its_null_is_that_of_training(model):
    """A dropped text in training, the empty text, null of guidance and no text at all are the same."""
    x, told = torch.randn(3, 1, 5, 4, dtype=torch.float64), TEXT.read("text", TEXTS, 3)
    found, none = model(x, 0.5, text=told).x0, model(x, 0.5).x0
    assert ((found - none).flatten(1).abs().amax(1) > 1e-4).all()
    dropped = ConditionDropout(Conditions({"text": TEXT}), 1.0)({"text": told})["text"]
    for null in (dropped, TEXT.check("text", "", 3), TEXT.nulls(3)):
        torch.testing.assert_close(model(x, 0.5, text=null).x0, none, rtol=1e-12, atol=1e-12)
    guided = ClassifierFreeGuidance(model, 3.0, null={"text": TEXT.null})
    combined = none + 3 * (found - none)
    torch.testing.assert_close(guided(x, 0.5, text=told).x0, combined, rtol=1e-9, atol=1e-9)
    alone = torch.cat([model(x[i : i + 1], 0.5, text=told[i : i + 1]).x0 for i in range(3)])
    torch.testing.assert_close(alone, found, rtol=1e-10, atol=1e-10)
    drawn = DPMSolver(2)(model, (2, 1, 5, 4), seeds=[0, 1], text="a bold seven").x
    torch.testing.assert_close(drawn, DPMSolver(2)(model, (2, 1, 5, 4), seeds=[0, 1], text=["a bold seven"] * 2).x)


def test_cross_attention_is_a_weighted_mean_of_the_tokens_that_are_there():
    """Against the sum written out for one pixel and one head; tokens that are masked have no effect."""
    torch.manual_seed(0)
    layer = CrossAttention(4, 6).double()
    nn.init.normal_(layer.output.weight)
    x, tokens = torch.randn(1, 4, 2, 3, dtype=torch.float64), torch.randn(1, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False]])
    found = layer(x, tokens, mask)
    q = layer.query(layer.norm(x))[0, :, 1, 2]
    k, v = layer.key_value(layer.norm_tokens(tokens[0, :3])).chunk(2, 1)
    mixed = torch.softmax(k @ q / 2, 0) @ v
    expected = (x[0, :, 1, 2] + layer.output.weight[:, :, 0, 0] @ mixed + layer.output.bias) / 2**0.5
    torch.testing.assert_close(found[0, :, 1, 2], expected, rtol=1e-12, atol=1e-12)
    other = torch.where(mask[..., None], tokens, 7.0)
    torch.testing.assert_close(layer(x, other, mask), found)


@pytest.mark.slow
def test_a_network_that_is_told_a_text_compiles_to_one_graph():
    shape = {"channels": 4, "channel_mult": [1], "blocks": 1, "attention": []}
    network = UNet([1, 8, 8], conditions={"text": Text()}, cross_attention=[0], **shape)
    x, told = torch.randn(2, 1, 8, 8), as_bytes(TEXTS[:2], 96)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(x, torch.tensor(0.3), text=told), network(x, torch.tensor(0.3), text=told))
