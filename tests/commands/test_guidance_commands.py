"""Guidance from the command line: every command uses the guided denoiser, and says what cannot be guided."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from schema_cases import refusal

from sde_diffusion import (
    AncestralSampler,
    AutoGuidance,
    Composition,
    ScoreModel,
    UserError,
)
from sde_diffusion.commands import drawing
from sde_diffusion.commands.configurations import keys
from sde_diffusion.modality import Images
from sde_diffusion.training.guided_denoiser import guide, guided_denoiser

CFG = {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance"}
DIGITS = Images((1, 8, 8), levels=17)
SAMPLER = ("sampler=ddpm", "sampler.steps=3")


@pytest.fixture(scope="module")
def run(command, classes, tmp_path_factory):
    def run_it(name, *settings):
        out = tmp_path_factory.mktemp(name) / "out"
        done = command(name, f"ckpt={classes}", *settings, f"out={out}", cwd=out.parent)
        return done, out

    return run_it


def drawn(ckpt, steps, n, guidance, label):
    model = ScoreModel.load_from_checkpoint(ckpt)
    sampler = AncestralSampler(steps, eta=1.0)
    return sampler(guided_denoiser(model, guidance), (n, 1, 8, 8), label=label)


def test_pictures_during_training(classes):
    picture = np.asarray(Image.open(classes.parents[1] / "samples" / "step-0000030.png"))
    label = torch.arange(4) % 10
    guided, alone = (
        np.asarray(DIGITS.draw(drawn(classes, 5, 4, guidance, label).x)) for guidance in ({**CFG, "scale": 5}, None)
    )
    assert np.array_equal(picture.squeeze(), guided.squeeze())
    assert not np.array_equal(picture.squeeze(), alone.squeeze())


def test_samples_and_their_film(run, classes):
    files = {}
    for name, settings in {
        "guided": ("guidance=cfg", "guidance.scale=4", "film=1"),
        "one": ("guidance=cfg", "guidance.scale=1"),
        "none": (),
    }.items():
        done, out = run("sample", *SAMPLER, "n=3", "label=2", *settings)
        assert done.status == 0, done.err
        passes = int(re.search(r"(\d+) network passes each", done.out + done.err)[1])
        files[name] = np.load(out / "samples.npz")["images"], passes
    want = drawn(classes, 3, 3, {**CFG, "scale": 4}, torch.full((3,), 2))
    assert np.array_equal(files["guided"][0], DIGITS.to_file(want.x))
    assert [passes for _, passes in files.values()] == [6, 3, 3]
    assert want.nfe == 6
    assert np.array_equal(files["one"][0], files["none"][0])
    assert not np.array_equal(files["guided"][0], files["none"][0])


def test_likelihoods(run):
    options = ("n=2", "method=rk4", "steps=2", "elbo.draws=4", "elbo.t_end=0.01", "split=test")
    found = {}
    for name, settings in {"guided": ("guidance=cfg", "guidance.scale=3"), "none": ()}.items():
        done, out = run("likelihood", *options, "label=own", *settings)
        assert done.status == 0, done.err
        with (out / "likelihood.csv").open(newline="") as file:
            found[name] = [
                {key: float(row[key]) for key in ("log_prob", "elbo", "nfe")} for row in csv.DictReader(file)
            ]
        report = json.loads((out / "likelihood.json").read_text())
        assert (report["guidance"] or {}).get("scale") == (3 if name == "guided" else None)
    for guided, alone in zip(*found.values(), strict=True):
        assert guided["nfe"] == 2 * alone["nfe"]
        assert guided["log_prob"] != alone["log_prob"]
        assert guided["elbo"] != alone["elbo"]
    done, _ = run("likelihood", *options[:3], "guidance=cfg")  # already where the decoder is placed
    assert done.status == 1
    assert done.err.count("error: ") == 1
    assert "guidance with scale=2 needs a condition to go by: give label=" in done.err
    assert "Traceback" not in done.err


def test_evaluation_and_passes_against_distances(run):
    done, out = run("evaluate", *SAMPLER, "n=40", "guidance=cfg", "metrics=[kernel]", "extractor=pca8")
    assert done.status == 0, done.err
    report = json.loads((out / "metrics.json").read_text())
    assert (report["nfe"], report["guidance"]["scale"]) == (6, 2.0)
    rest = [f"~samplers.{name}" for name in OmegaConf.load("conf/nfe_fid.yaml").samplers if name != "ddim"]
    done, out = run("nfe_fid", *rest, "nfe=[7]", "long=null", "n=40", "extractor=pca8", "guidance=cfg")
    assert done.status == 0, done.err
    with (out / "curves.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["nfe"] == "6"  # three predictions of two passes each


def test_a_stopped_run_resumes_with_its_own_guidance_alone(classes, monkeypatch, tmp_path):
    """Stopped in the second of two batches; then others are refused, and the same draws only what is missing."""
    walk, batches = AncestralSampler.walk, []

    def stopped_once(self, x, run):
        batches.append(len(x))
        if len(batches) == 4:
            raise KeyboardInterrupt
        return walk(self, x, run)

    def draw(folder, guidance):
        node = {"n": 4, "seed": 0, "batch_size": 2, "overwrite": False, "guidance": guidance}
        cfg = OmegaConf.create({**node, "sampler": {"_target_": "sde_diffusion.sampling.AncestralSampler", "steps": 3}})
        model = ScoreModel.load_from_checkpoint(classes)
        guide(model, guidance)
        label = torch.tensor([1, 1, 2, 2])
        found = drawing.draw(cfg, model, {"label": label}, torch.device("cpu"), tmp_path / folder)
        return torch.cat(list(found.batches()))

    monkeypatch.setattr(AncestralSampler, "walk", stopped_once)
    scales = [{**CFG, "scale": scale} for scale in (3.0, 4.0)]
    whole = draw("whole", scales[0])
    with pytest.raises(KeyboardInterrupt):
        draw("stopped", scales[0])
    for other in (None, scales[1]):
        with pytest.raises(UserError, match="overwrite=true"):
            draw("stopped", other)
    assert torch.equal(draw("stopped", scales[0]), whole)
    assert batches == [2] * 5


REFUSED = {
    "scale=-1": "scale must be a finite number of at least 0 (1: the conditional model",
    "scale=.inf": "scale must be a finite number of at least 0 (1: the conditional model",
    "scale=high": "scale must be a finite number of at least 0 (1: the conditional model",
    "scale=[1,2]": "scale must be a finite number of at least 0 (1: the conditional model",
    "interval=[2,1]": "interval must be (low, high) with 0 <= low < high, in sigma/alpha; got (2, 1)",
    "interval=[2]": "interval must be",
    "rescale=2": "rescale must lie in [0, 1]; got 2",
}


def test_models_named_by_checkpoints(run, classes):
    """A weaker model, and several conditions of the model itself: as in Python; the composition takes no label."""
    good = ScoreModel.load_from_checkpoint(classes).denoiser
    best = classes.with_name("best.ckpt")
    weak = ScoreModel.load_from_checkpoint(best).denoiser
    settings = {
        "auto": (f"guidance.weak={best}", "guidance.scale=3", "label=2"),
        "compose": ("guidance.weights=[1,1,-1]", "guidance.conditions=[{label:3},{label:5},{}]"),
    }
    wanted = {
        "auto": AncestralSampler(3, eta=1.0)(AutoGuidance(good, weak, 3.0), (2, 1, 8, 8), label=2),
        "compose": AncestralSampler(3, eta=1.0)(
            Composition(good, [1, 1, -1], [{"label": 3}, {"label": 5}, {"label": 10}]), (2, 1, 8, 8)
        ),
    }
    for name, want in wanted.items():
        done, out = run("sample", *SAMPLER, "n=2", f"guidance={name}", *settings[name])
        assert done.status == 0, done.err
        assert f"{want.nfe} network passes each" in done.out
        found = np.load(out / "samples.npz")
        assert np.array_equal(found["images"], DIGITS.to_file(want.x))
        assert ("label" in found or "labels" in found) == (name == "auto")


def test_help_pages_say_what_a_scale_is_and_what_white_is():
    for name in ("sample", "restore", "evaluate", "likelihood", "nfe_fid", "train"):
        assert "guidance.scale: 1 is the conditional model, 0 the unconditional one" in keys(name), name
    assert "white is to be filled" in keys("restore")


def test_conditions_that_guidance_refuses(run):
    """Before anything is computed, in one message with the settings that ask for it."""
    for name, settings, words in (
        ("sample", ("guidance=cfg", "guidance.negative={label:2}", "label=2"), "negative must differ"),
        ("evaluate", ("guidance=cfg", "label=none"), "guidance with scale=2 needs a condition to go by: give label="),
        (
            "sample",
            ("guidance=compose", "guidance.weights=[2,-1]", "guidance.conditions=[{label:3},{}]", "label=1"),
            "label is set by guidance.conditions, for each of the weights: leave label= out",
        ),
    ):
        done, out = run(name, *SAMPLER, "n=4", *settings)
        assert done.status == 1
        assert done.err.startswith(f"error: {words}"), done.err
        assert "sampler=" not in done.err
        assert not out.exists()


def test_what_is_refused_at_once():
    for setting, words in REFUSED.items():
        assert f"guidance.{words}" in refusal("sample", "guidance=cfg", f"guidance.{setting}")
    for command in ("train", "evaluate", "likelihood", "nfe_fid"):
        assert "guidance.scale must be" in refusal(command, "guidance=cfg", "guidance.scale=-1")
    assert refusal("sample", "guidance=cfg", "guidance.interval=[0.2,1.6]", "guidance.rescale=0.7") is None
    assert "guidance.weak must be the path of a checkpoint" in refusal("sample", "guidance=auto")
    assert refusal("sample", "guidance=auto", "guidance.weak=w.ckpt") is None
    assert refusal("sample", "guidance=classifier", "guidance.classifier=c.ckpt", "guidance.on=x0") is None
    assert "guidance.weights must be a list of numbers that sum to 1, such as" in refusal("sample", "guidance=compose")
    assert "did you mean cfg?" in refusal("sample", "guidance=cgf")
    assert "did you mean guidance.scale?" in refusal("sample", "guidance=cfg", "guidance.scael=2")
    assert "add the unconditional model" in refusal("sample", "guidance=compose", "guidance.weights=[1,1]")
    assert (
        refusal("sample", "guidance=compose", "guidance.denoisers=[a.ckpt,b.ckpt]", "guidance.weights=[2,-1]") is None
    )
