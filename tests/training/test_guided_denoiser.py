"""What guidance does not fit a model, said by `guided_denoiser` in one message that names the settings."""

import re
from functools import partial

import pytest

from sde_diffusion import (
    MLP,
    VPSDE,
    NetworkDenoiser,
    Objective,
    ScoreModel,
    UserError,
)
from sde_diffusion.training import guidance_models
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.guided_denoiser import guided_denoiser

CFG = {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance"}


def model_of(n_classes, label_dropout=0.1):
    network = MLP([2], n_classes=n_classes, width=8, depth=1, embedding_dim=8)
    return ScoreModel(NetworkDenoiser(VPSDE(), network), Objective(), n_classes=n_classes, label_dropout=label_dropout)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (partial(model_of, 0), {}, "was trained without any: train one with conditional=true"),
        (
            partial(model_of, 4, 0.0),
            {},
            "never trained without (model.label_dropout=0): train one with model.label_dropout=0.1",
        ),
        (partial(model_of, 4), {"interval": [200, 300]}, "guidance.interval=(200, 300) lies outside the walk"),
        (partial(model_of, 4), {"_target_": "os.system"}, "not a class of sde_diffusion"),
    ],
)
def test_what_a_model_does_not_allow(model, settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        guided_denoiser(model(), {**CFG, **settings})
    assert guided_denoiser(model(), {**CFG, "scale": 1}).passes == 1  # which needs nothing but the model


WEAK = {"_target_": "sde_diffusion.guidance.AutoGuidance"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "guidance.weak must be the path of a checkpoint: add guidance.weak=PATH"),
        ({"weak": "none.ckpt"}, "guidance.weak: no checkpoint none.ckpt"),
        ({"weak": 3}, "guidance.weak must be the path of a checkpoint; got guidance.weak=3"),
        ({"weak": ["a", "b"]}, "guidance.weak must be the path of a checkpoint; got"),
        (
            {"_target_": "sde_diffusion.guidance.ClassifierGuidance", "classifier": "{classes}"},
            "guidance.classifier={classes} is a checkpoint of a ScoreModel, which has no classifier",
        ),
        (
            {"_target_": "sde_diffusion.guidance.Composition", "weights": [1, 1], "denoisers": ["{classes}"] * 2},
            "guidance.weights must sum to 1, and [1.0, 1.0] sum to 2",
        ),
        ({**CFG, "negative": {"label": 10}}, "guidance.negative.label must be one of 0 ... 9; got 10"),
        ({**CFG, "negative": {"lable": 1}}, "guidance.negative names lable, and NetworkDenoiser takes label (did you"),
    ],
)
def test_models_that_do_not_fit(classes, settings, words):
    filled = {
        key: value.format(classes=classes)
        if isinstance(value, str)
        else [one.format(classes=classes) for one in value]
        if key == "denoisers"
        else value
        for key, value in settings.items()
    }
    with pytest.raises(UserError, match=re.escape(words.format(classes=classes))):
        guided_denoiser(ScoreModel.load_from_checkpoint(classes), {**WEAK, **filled})


def test_a_weak_model_of_other_data(classes, trained):
    """One without classes, and one of other data: both are named."""
    with pytest.raises(UserError, match=r"guidance.weak must take the same conditions as the denoiser; it takes no"):
        guided_denoiser(
            ScoreModel.load_from_checkpoint(classes), {**WEAK, "weak": str(trained / "checkpoints" / "last.ckpt")}
        )
    model = ScoreModel.load_from_checkpoint(classes)
    model.data = {**model.data, "shape": [1, 9, 9]}
    with pytest.raises(UserError, match=r"is a model of other data: their shape is \[1, 8, 8\], here it is \[1, 9, 9"):
        guided_denoiser(model, {**WEAK, "weak": str(classes)})


def test_models_that_are_used_without_what_they_were_trained_with(classes):
    """The unconditional part of a composition, and a weak model that gets no label."""
    composition = {"_target_": "sde_diffusion.guidance.Composition", "weights": [2, -1]}
    composition["conditions"] = [{"label": 3}, {}]
    words = "guidance= uses a model without label, and this model was never trained without label: train it with"
    with pytest.raises(UserError, match=words):
        guided_denoiser(model_of(4, 0.0), composition)
    assert guided_denoiser(model_of(4), composition).passes == 2
    never = ScoreModel.load_from_checkpoint(classes)
    never.dropout = ConditionDropout(never.conditions, 0.0)
    alone = model_of(0)
    alone.denoiser, alone.data = NetworkDenoiser(never.denoiser.sde, MLP([1, 8, 8], width=8, depth=1)), never.data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guidance_models, "load_model", lambda path, device: never)
        with pytest.raises(UserError, match=words):
            guided_denoiser(alone, {**WEAK, "weak": str(classes)})
