"""`nfe_fid tune=true`, the file of grids beside a checkpoint, and `sampler.grid=tuned` of the commands that draw."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from sde_diffusion import DPMSolver, ScoreModel, TunedGrid
from sde_diffusion.commands import tuned_grids
from sde_diffusion.errors import UserError
from sde_diffusion.modality.levels import to_levels

SAMPLER = "{each: 1, extra: 0, sampler: {_target_: sde_diffusion.sampling.DPMSolver, order: 1}}"
ONLY = (f"samplers={{own: {SAMPLER}}}", "tuning.samplers=[own]", "long=null", "n=140", "extractor=digits")
SETTINGS = ("tune=true", *ONLY, "nfe=[3,4]", "tuning.nfe=[3,4]", "tuning.n=8", "tuning.target=12")
DRAWN = ("sampler=dpm", "sampler.order=1", "sampler.grid=tuned", "sampler.steps=4")


@pytest.fixture(scope="module")
def tuned(command, trained, tmp_path_factory):
    """A checkpoint with a file of grids beside it, and what the command said."""
    folder = tmp_path_factory.mktemp("tuned")
    ckpt = shutil.copy(trained / "checkpoints" / "last.ckpt", folder / "last.ckpt")
    done = command("nfe_fid", f"ckpt={ckpt}", *SETTINGS, f"out={folder / 'out'}", cwd=folder)
    assert done.status == 0, done.err
    return ckpt, done


def test_the_file_says_what_was_found_and_for_what(tuned):
    ckpt, done = tuned
    content = json.loads((ckpt.parent / "last.grids.json").read_text())
    assert content["checkpoint_sha256"] == hashlib.sha256(ckpt.read_bytes()).hexdigest()
    (entry,) = content["grids"]
    assert entry["sampler"]["_target_"] == "sde_diffusion.sampling.DPMSolver"
    assert entry["guidance"] is None
    assert [walk["passes"] for walk in entry["walks"]] == [3, 4]
    for walk in entry["walks"]:
        assert len(walk["log_snr"]) == walk["passes"]
        assert 0 < walk["error"] < walk["untuned_error"]
        assert (walk["seeds"], walk["split"]) == ([10**9, 10**9 + 7], "train")
    assert "own, 4 passes: error" in done.out
    text = (ckpt.parent / "out" / "table.md").read_text()
    assert "| own_tuned |" in text
    assert "| own |" in text


def test_sample_takes_the_grid(tuned, command, tmp_path):
    ckpt, _ = tuned
    done = command("sample", f"ckpt={ckpt}", *DRAWN, "n=5", "film=1", f"out={tmp_path}", cwd=tmp_path)
    assert done.status == 0, done.err
    walks = json.loads((ckpt.parent / "last.grids.json").read_text())["grids"][0]["walks"]
    model = ScoreModel.load_from_checkpoint(ckpt)
    sampler = DPMSolver(4, order=1, grid=TunedGrid([walk["log_snr"] for walk in walks]))
    levels = to_levels(sampler(model.denoiser, (5, 1, 8, 8)).x, 17)
    expected = (levels.double() * 255 / 16).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "samples.npz")["images"], expected)


def test_what_is_known_stays_and_a_sampler_is_added(tuned, command, tmp_path):
    ckpt = shutil.copy(tuned[0], tmp_path / "last.ckpt")
    path = shutil.copy(tuned[0].parent / "last.grids.json", tmp_path / "last.grids.json")
    before = json.loads(path.read_text())["grids"]
    before[0]["walks"][0]["log_snr"][1] += 0.01  # a trace
    tuned_grids.write(str(ckpt), hashlib.sha256(ckpt.read_bytes()).hexdigest(), before)
    other = SAMPLER.replace("order: 1", "order: 2")
    more = (f"samplers={{own: {SAMPLER}, other: {other}}}", "tuning.samplers=[own,other]", "tuning.nfe=[3]", "nfe=[3]")
    done = command("nfe_fid", f"ckpt={ckpt}", *SETTINGS, *more, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "1 grids are known already" in done.out
    after = json.loads(path.read_text())["grids"]
    assert after[0] == before[0]
    assert after[1]["sampler"]["order"] == 2


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ("missing", DRAWN, "last.grids.json does not exist; find it: "),
        ("other", DRAWN, "was found for another checkpoint, or an earlier state of"),
        ("damaged", DRAWN, "is damaged"),
        ("lists", DRAWN, "is damaged: it has no lists of log-SNRs"),
        ("", (*DRAWN, "sampler.order=2"), "has no grid for DPMSolver(steps=10, order=2"),
        ("", ("sampler=dpm", "sampler.grid=tund"), "sampler.grid: grid must be one of"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, settings, words, tuned, command, tmp_path):
    ckpt = shutil.copy(tuned[0], tmp_path / "last.ckpt")
    path = tmp_path / "last.grids.json"
    content = json.loads((tuned[0].parent / path.name).read_text())
    if change == "other":
        content["checkpoint_sha256"] = "0" * 64
    if change == "lists":
        content["grids"][0]["walks"] = []
    if change != "missing":
        path.write_text("{" if change == "damaged" else json.dumps(content))
    done = command("sample", f"ckpt={ckpt}", *settings, "n=2", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert words in done.err
    assert change in ("", "missing") or "benchmarks.nfe_fid" in done.err
    assert not (tmp_path / "out" / "samples.npz").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tuning.samplers=[onw]", "tuning.samplers must be names of samplers: own; got onw (did you mean own?)"),
        ("tuning.seed=100", "tuning.seed=100 and seeds=[0] overlap"),
        ("exact=true", "exact=true has no model to find grids for"),
        ("tuning.nfe=[0]", "tuning must be settings {"),
        ("tuning.nfe=[1]", "own, 1 passes: there is nothing to tune"),
        ("samplers.own.sampler.eta=1", "needs a sampler without noise"),
    ],
)
def test_what_cannot_be_tuned_is_refused(override, words, command, trained, tmp_path):
    ckpt = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    add = "+" if "eta" in override else ""
    done = command("nfe_fid", f"ckpt={ckpt}", *SETTINGS, add + override, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert words in done.err
    assert not (tmp_path / "last.grids.json").exists()


def test_round_trip_and_other_guidance(tmp_path):
    ckpt, settings = str(tmp_path / "a.ckpt"), {"_target_": "sde_diffusion.sampling.HeunSampler", "steps": 4}
    walk = {"passes": 7, "log_snr": [-1.0, 0.5, 2.0], "error": 0.1, "untuned_error": 0.2}
    walk |= {"target_passes": 100, "seeds": [0, 1], "split": "train"}
    entry = {"sampler": tuned_grids.identity(settings), "guidance": None, "walks": [walk]}
    assert tuned_grids.read(ckpt, "digest") == []
    tuned_grids.write(ckpt, "digest", [entry])
    assert tuned_grids.read(ckpt, "digest") == [entry]
    asked = {**settings, "grid": "tuned"}
    found = tuned_grids.with_grid(asked, ckpt, "digest", None)
    assert found == {**settings, "grid": {"_target_": "sde_diffusion.sde.TunedGrid", "log_snr": [[-1.0, 0.5, 2.0]]}}
    assert tuned_grids.with_grid(settings, ckpt, "another", None) == settings
    guided = {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": 2}
    with pytest.raises(UserError, match=r"no grid for HeunSampler.* with guidance ClassifierFreeGuidance"):
        tuned_grids.with_grid(asked, ckpt, "digest", guided)
