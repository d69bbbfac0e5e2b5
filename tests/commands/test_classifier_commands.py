"""A classifier trained for a model guides it: `train model=classifier ckpt=MODEL`, `sample guidance=classifier`."""

import numpy as np
import pytest
import torch
from conftest import TINY

from sde_diffusion import AncestralSampler, ClassifierGuidance
from sde_diffusion.modality import Images
from sde_diffusion.training import Classifier, GenerativeModel
from sde_diffusion.training.guided_denoiser import guide as guide_model

SHORT = [word for word in TINY if not word.startswith(("network.", "callbacks.samples"))]


@pytest.fixture(scope="module")
def classifier(command, trained, tmp_path_factory):
    """The checkpoint of a classifier for the model of `trained`, which has no classes."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    of = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    settings = ("model=classifier", of, "model.network.channels=8", f"hydra.run.dir={folder}")
    done = command("train", *SHORT, *settings, cwd=folder.parent)
    assert done.status == 0, done.err
    return folder / "checkpoints" / "last.ckpt"


def test_it_has_the_models_path_times_and_data(classifier, trained):
    found = GenerativeModel.load_from_checkpoint(classifier)
    model = GenerativeModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    assert isinstance(found, Classifier)
    assert found.classifier.sde == model.denoiser.sde
    assert found.classifier.sigma_data == model.denoiser.sigma_data
    assert repr(found.times) == repr(model.objective.times)
    assert {**found.data, "conditions": None} == {**model.data, "conditions": None}
    assert found.conditions["label"].n_classes == 10
    log = (classifier.parents[1] / "metrics.csv").read_text()
    assert "val/accuracy" in log


def test_it_guides_the_model(command, classifier, trained, tmp_path):
    ckpt = trained / "checkpoints" / "last.ckpt"
    model, guide = (GenerativeModel.load_from_checkpoint(path) for path in (ckpt, classifier))
    settings = (f"ckpt={ckpt}", "guidance=classifier", f"guidance.classifier={classifier}", "guidance.scale=4", "n=3")
    sampler = ("sampler=ddpm", "sampler.steps=3")
    guided = ClassifierGuidance(model.denoiser, guide.classifier, 4.0)
    for name, label in (("7", 7), (None, torch.arange(3))):
        out = tmp_path / str(name)
        typed = () if name is None else (f"label={name}",)
        done = command("sample", *settings, *sampler, *typed, f"out={out}", cwd=tmp_path)
        assert done.status == 0, done.err
        want = AncestralSampler(3, eta=1.0)(guided, (3, 1, 8, 8), seeds=range(3), label=label).x
        assert np.array_equal(np.load(out / "samples.npz")["images"], Images((1, 8, 8), levels=17).to_file(want))
    guide_model(model, {"_target_": "sde_diffusion.guidance.ClassifierGuidance", "classifier": str(classifier)})
    assert list(model.guides) == [str(classifier)]  # digests, so that a stopped run does not resume with another one
    assert tuple(model.conditions) == ("label",)
    done = command("evaluate", *settings[:-1], *sampler, "n=20", "metrics=[kernel]", "extractor=pca8", cwd=tmp_path)
    assert done.status == 0, done.err


def test_what_is_refused(command, classifier, trained, tmp_path):
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    itself, by = ("model=classifier", f"ckpt={classifier}"), f"guidance.classifier={classifier}"
    for name, words, settings in (
        ("train", "contains a Classifier itself: leave model= out to resume it", itself),
        ("train", "sde=ve: this is that of the model", ("model=classifier", ckpt, "sde=ve")),
        ("sample", "which draws no samples", (f"ckpt={classifier}",)),
        ("likelihood", "neither a flow nor a bound", (f"ckpt={classifier}",)),
        ("sample", "has no denoiser", (ckpt, "guidance=auto", f"guidance.weak={classifier}")),
        ("sample", "label must be one of 0 ... 9", (ckpt, "guidance=classifier", by, "label=12")),
        ("train", "is for models that are trained", ("guidance=classifier", by)),
    ):
        done = command(name, *settings, cwd=tmp_path)
        assert done.status == 1
        assert words in done.err
        assert done.err.count("error:") == 1
