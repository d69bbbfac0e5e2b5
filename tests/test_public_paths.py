"""Classes are named by the package that exports them: in every file of conf/, in checkpoints, by every data set."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sde_diffusion import AncestralSampler, ScoreModel, log_likelihood, sde
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.conditions import Conditions
from sde_diffusion.config import BUILDABLE, build, find_class, public_path, with_public_paths
from sde_diffusion.data import DataModule
from sde_diffusion.errors import UserError
from sde_diffusion.training import DenoisingScoreMatching, GenerativeModel, Objective
from sde_diffusion.training.checkpoint import read_checkpoint
from sde_diffusion.training.guided_denoiser import guided_denoiser

RELEASES = Path(__file__).parent / "releases"
NEW = RELEASES / "0.1.0-public-paths.ckpt"
DRAWN = [0.0437775, 0.0051877, 0.3690486, 0.1159943, 0.4217523, 0.4537588]
LIKELY = [-0.0475336, -0.4896559, -1.1988202]
RELEASE_LIKELY = [-57.9576, -66.3127]


def targets(node):
    """All values of `_target_` in nested containers."""
    if isinstance(node, dict):
        return [value for key, entry in node.items() for value in ([entry] if key == "_target_" else targets(entry))]
    return [value for entry in node for value in targets(entry)] if isinstance(node, list) else []


def exported(target):
    package, _, name = target.rpartition(".")
    return package.count(".") == 1 and name in importlib.import_module(package).__all__


def test_configurations_name_public_paths():
    found = {target for path in config_folder().rglob("*.yaml") for target in targets(yaml.safe_load(path.read_text()))}
    own = {target for target in found if target.startswith("sde_diffusion.")}
    assert len(own) > 50
    for target in own:  # what Lightning runs is exported, and not found by the builder
        package, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(package), name) if exported(target) else find_class(target)
        assert public_path(found) == target


EXTENSION = """
from sde_diffusion.sde import SDE


class Extension(SDE):
    def log_alpha(self, t):
        return -t

    def log_sigma(self, t):
        return t.log()


class _Private(Extension):
    pass


class Unrelated:
    pass
"""


def test_a_module_of_a_package_need_not_be_exported(tmp_path, monkeypatch):
    """One file of the package, which extends what it exports, is all that a configuration asks for."""
    (tmp_path / "extension.py").write_text(EXTENSION)
    monkeypatch.setattr(sde, "__path__", [*sde.__path__, str(tmp_path)])
    target = "sde_diffusion.sde.Extension"
    try:
        made = build({"_target_": target, "t_min": 0.01, "t_max": 0.9})
        assert (made.t_min, public_path(type(made)), find_class(target)) == (0.01, target, type(made))
        for name in ("_Private", "Unrelated", "Missing"):
            with pytest.raises(UserError, match="is not a class of sde_diffusion that a configuration may name"):
                find_class(f"sde_diffusion.sde.{name}")
    finally:
        sys.modules.pop("sde_diffusion.sde.extension", None)


def test_data_sets_name_public_paths(tmp_path):
    """Also in `describe()`, which contains their `config`."""
    np.savez(tmp_path / "x.npz", train_images=np.arange(128, dtype=np.uint8).reshape(8, 4, 4))
    needed = {
        "Arrays": {"path": str(tmp_path / "x.npz")},
        "Folder": {"root": str(tmp_path)},
        "IdxImages": {"root": str(tmp_path)},
        "ParquetImages": {"root": str(tmp_path)},
        "HubImages": {"name": "owner/name"},
    }
    data = importlib.import_module("sde_diffusion.data")
    classes = [getattr(data, name) for name in data.__all__]
    kinds = [kind for kind in classes if isinstance(kind, type) and issubclass(kind, DataModule)]
    described = {}
    for kind in kinds:
        if not getattr(kind, "__abstractmethods__", None) and kind.__name__ not in ("DataModule", "Density"):
            described[kind.__name__] = kind(**needed.get(kind.__name__, {})).config["_target_"]
    assert set(described) >= {"Arrays", "Folder", "IdxImages", "Digits", "Moons", "Ring"}
    assert described == {name: f"sde_diffusion.data.{name}" for name in described}
    assert data.Ring(n_train=8, n_val=4, n_test=4).prepare().describe()["config"]["_target_"] == described["Ring"]


@pytest.mark.parametrize(
    ("written", "public"),
    [
        ("sde_diffusion.data.densities.Moons", "sde_diffusion.data.Moons"),
        ("sde_diffusion.training.weighting.EDMWeighting", "sde_diffusion.training.EDMWeighting"),
        ("sde_diffusion.training.callbacks.SampleGrid", "sde_diffusion.training.SampleGrid"),
        ("sde_diffusion.training.objective.Objective", "sde_diffusion.training.DenoisingScoreMatching"),
        ("sde_diffusion.training.Objective", "sde_diffusion.training.DenoisingScoreMatching"),
        ("sde_diffusion.VPSDE", "sde_diffusion.sde.VPSDE"),
        ("sde_diffusion.sde.VPSDE", "sde_diffusion.sde.VPSDE"),
        ("sde_diffusion.denoiser.network.V", "sde_diffusion.denoiser.V"),
        ("torch.nn.Linear", "torch.nn.Linear"),
        ("sde_diffusion.metrics.pretrained.Inception", "sde_diffusion.metrics.pretrained.Inception"),
    ],
)
def test_paths_of_before_are_understood(written, public):
    assert with_public_paths([{"a": {"_target_": written}}]) == [{"a": {"_target_": public}}]


def test_nothing_that_writes_or_fetches_can_be_built():
    for package in BUILDABLE:
        home = importlib.import_module(package)
        for name in getattr(home, "NOT_BUILDABLE", ()):
            with pytest.raises(UserError, match="is not a class of sde_diffusion that a configuration may name"):
                find_class(f"{package}.{name}")
        for name in set(home.__all__) - set(getattr(home, "NOT_BUILDABLE", ())):
            kinds = {kind.__name__ for kind in getattr(getattr(home, name), "__mro__", ())}
            assert not kinds & {"LightningModule", "Callback", "Logger", "Checkpoint"}, name
    for target in ("sde_diffusion.metrics.pretrained.Inception", "sde_diffusion.commands.Table", "sde_diffusion.EMA"):
        with pytest.raises(UserError, match="is not a class"):
            find_class(target)


def test_a_checkpoint_of_public_paths_loads_for_ever():
    """Written by version 0.1.0 in its second layout of names, which drew these values."""
    contents = read_checkpoint(NEW)
    assert all(exported(target) for target in targets(contents["hyper_parameters"]))
    assert contents["sde_diffusion"]["model"] == "sde_diffusion.training.ScoreModel"
    model = GenerativeModel.load_from_checkpoint(NEW)
    assert type(model) is ScoreModel
    x = AncestralSampler(steps=10)(model.denoiser, (3, 2), seeds=[0, 1, 2]).x
    assert x.flatten().tolist() == pytest.approx(DRAWN, abs=1e-5)
    assert log_likelihood(model.denoiser, x, trace="exact").log_prob.tolist() == pytest.approx(LIKELY, abs=1e-3)


def test_the_release_before_has_a_likelihood_too():
    model = GenerativeModel.load_from_checkpoint(RELEASES / "0.1.0.ckpt")  # which names no model
    assert type(model) is ScoreModel
    x = AncestralSampler(steps=10)(model.denoiser, (2, 1, 8, 8), seeds=[0, 1]).x
    result = log_likelihood(model.denoiser, x)
    assert result.log_prob.tolist() == pytest.approx(RELEASE_LIKELY, abs=0.02)


def test_a_checkpoint_of_classes_alone_loads_for_ever():
    """Written when labels were the only condition, `n_classes`: the same samples, likelihoods and guidance as then."""
    model = GenerativeModel.load_from_checkpoint(RELEASES / "0.1.0-classes.ckpt")
    assert model.conditions.describe() == model.data["conditions"] == Conditions(n_classes=10).describe()
    told, sampler, shape = {"label": [3, 7]}, AncestralSampler(steps=10), (2, 1, 8, 8)
    drawn = sampler(model.denoiser, shape, seeds=[0, 1], **told).x
    guided = guided_denoiser(model, {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": 3.0})
    for x, want in (
        (drawn, [-0.881158, -0.99541, -0.093338, -0.648886]),
        (sampler(model.denoiser, shape, seeds=[0, 1]).x, [-0.89635, -1.001837, -0.100419, -0.643636]),
        (sampler(guided, shape, seeds=[0, 1], **told).x, [-0.608651, -0.698402, -0.088455, -0.659439]),
    ):
        assert x.flatten()[::32].tolist() == pytest.approx(want, abs=1e-5)
    likely = log_likelihood(model.denoiser, drawn, **told).log_prob
    assert likely.tolist() == pytest.approx([-57.6596, -64.0637], abs=0.02)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    contents = torch.load(NEW, weights_only=True)
    contents["sde_diffusion"]["model"] = "os.system"
    torch.save(contents, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"is of a model 'os.system', which is neither sde_diffusion"):
        GenerativeModel.load_from_checkpoint(tmp_path / "other.ckpt")


def test_objective_by_itself_makes_the_usual_one():
    assert type(Objective()) is DenoisingScoreMatching
    assert type(build({"_target_": "sde_diffusion.training.objective.Objective"})) is DenoisingScoreMatching
    with pytest.raises(TypeError, match="abstract"):
        type("Own", (Objective,), {})()
