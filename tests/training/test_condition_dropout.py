"""Conditions dropped in training: one draw for all, except those with a probability of their own."""

import math

import pytest
import torch
from tiny import MLP, make_model

from sde_diffusion import nn
from sde_diffusion.conditions import Conditions, Label, Measurement
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sde import VPSDE
from sde_diffusion.training import Objective, ScoreModel
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.guided_denoiser import guided_denoiser

KINDS = Conditions({"label": Label(4), "rate": Measurement(), "wind": Measurement([2])})
N = 20_000
VALUES = {"label": torch.arange(N) % 4, "rate": torch.ones(N), "wind": torch.ones(N, 2)}
CFG = {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": 2.0}


def left_out(found):
    wind = found["wind"].isnan()
    assert torch.equal(wind[:, 0], wind[:, 1])
    return {"label": found["label"] == 4, "rate": found["rate"].isnan(), "wind": wind[:, 0]}


def near(share, expected):
    """Within 4.9 standard errors of N draws: false alarm 1e-6."""
    return abs(float(share.double().mean()) - expected) < 4.9 * math.sqrt(expected * (1 - expected) / N)


def test_one_draw_for_all():
    torch.manual_seed(0)
    found = left_out(ConditionDropout(KINDS, 0.3)(VALUES))
    assert torch.equal(found["label"], found["rate"])
    assert torch.equal(found["label"], found["wind"])
    assert near(found["label"], 0.3)


def test_shares_of_their_own_are_drawn_by_themselves():
    torch.manual_seed(0)
    found = left_out(ConditionDropout(KINDS, 0.3, {"rate": 0.2, "wind": 0})(VALUES))
    assert near(found["label"], 0.3)
    assert near(found["rate"], 0.2)
    assert near(found["label"] & found["rate"], 0.06)
    assert not found["wind"].any()
    assert ConditionDropout(KINDS, 0.3, {"rate": 0.2, "wind": 0}).dropped == ["label", "rate"]


def test_a_step_trains_what_the_model_is_without_its_conditions():
    """With all conditions dropped, the loss is that of the denoiser without conditions, at the same draws."""
    torch.manual_seed(1)
    network = nn.MLP([2], width=16, depth=1, embedding_dim=8, conditions=KINDS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = ScoreModel(NetworkDenoiser(VPSDE(), network), Objective(), conditions=KINDS, label_dropout=1.0)
    batch = {
        "x": torch.randn(64, 2),
        "label": VALUES["label"][:64],
        "rate": torch.randn(64),
        "wind": torch.randn(64, 2),
    }
    torch.manual_seed(2)
    loss = model.training_loss(batch)
    torch.manual_seed(2)
    torch.rand(64)  # the draw of who is left out
    draws = model.objective.draw(model.denoiser, batch["x"])
    alone = model.objective(model.denoiser, batch["x"], **draws).mean()
    torch.testing.assert_close(loss, alone)
    told = model.objective(model.denoiser, batch["x"], **draws, **model.conditions_of(batch)).mean()
    assert abs(loss - told) > 1e-3
    with pytest.raises(ValueError, match="batches must have wind, which the model is conditioned on"):
        model.training_loss({name: value for name, value in batch.items() if name != "wind"})


def test_what_a_model_was_trained_without():
    both = ConditionDropout(KINDS, 0.1)
    assert both.untrained([]) == both.untrained(["label", "rate", "wind"]) == ""
    assert "wind is missing" in both.untrained(["wind"])
    own = ConditionDropout(KINDS, 0.1, {"rate": 0.2, "wind": 0})
    assert own.untrained(["rate"]) == own.untrained(["label"]) == own.untrained(["label", "rate"]) == ""
    assert own.untrained(["label", "wind"]) == "this model was never trained without wind"


def test_guidance_takes_its_nulls_from_the_description():
    described = KINDS.describe()
    for own, names in (({}, ["label", "rate", "wind"]), ({"wind": 0.0}, ["label", "rate"])):
        model = make_model({**MLP, "conditions": described}, conditions=described, condition_dropout=own)
        guided = guided_denoiser(model, CFG)
        assert list(guided.null) == names
        x = torch.randn(3, 2)
        told = {"label": torch.tensor([1, 2, 3]), "rate": torch.tensor(1.0), "wind": torch.tensor([1.0, 2.0])}
        assert guided(x, 0.5, **told).x0.isfinite().all()
    model = make_model({**MLP, "conditions": described}, conditions=described, label_dropout=0)
    with pytest.raises(UserError, match="with label and rate and wind and without, and it was never trained without"):
        guided_denoiser(model, CFG)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"condition_dropout": {"rat": 0.1}}, "condition_dropout names rat, and the conditions are label, rate, wind"),
        ({"condition_dropout": {"rate": 2}}, r"condition_dropout.rate must lie in \[0, 1\]; got 2"),
        ({"condition_dropout": 0.1}, "condition_dropout must map names of conditions to probabilities"),
    ],
)
def test_bad_shares(given, words):
    with pytest.raises(ValueError, match=words):
        make_model(conditions=KINDS, **given)
