"""`nfe_fid tune=true`, the file of grids beside a checkpoint, and `sampler.grid=tuned` of the commands that draw."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.grid_tuning import add_rows
from sde_diffusion import AncestralSampler, ScoreModel, TunedGrid
from sde_diffusion.commands import tuned_grids
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Images

OTHER = "{each: 1, extra: 0, sampler: {_target_: sde_diffusion.sampling.DPMSolver, order: 2}}"
WITHOUT = ("ddpm", "sde", "pc", "heun", "dpm_2", "dpm_2_rho", "dpm_3", "dpm_sde_rho", "unipc_2", "unipc_3", "deis_4")
ONLY = (*(f"~samplers.{name}" for name in WITHOUT), "tuning.samplers=[ddim]", "long=null", "n=140")
SETTINGS = ("tune=true", *ONLY, "nfe=[3,4]", "tuning.nfe=[3,4]", "tuning.n=8", "tuning.target=12")
DRAWN = ("sampler=ddim", "sampler.grid=tuned", "sampler.steps=4")


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
    assert entry["sampler"]["_target_"] == "sde_diffusion.sampling.AncestralSampler"
    assert entry["guidance"] is None
    assert [walk["passes"] for walk in entry["walks"]] == [3, 4]
    for walk in entry["walks"]:
        assert len(walk["log_snr"]) == walk["passes"]
        assert 0 < walk["error"] < walk["untuned_error"]
        assert (walk["seeds"], walk["split"]) == ([10**9, 10**9 + 7], "train")
    assert "ddim, 4 passes: error" in done.out
    text = (ckpt.parent / "out" / "table.md").read_text()
    assert "| ddim_tuned |" in text
    assert "| ddim |" in text


def test_sample_takes_the_grid(tuned, command, tmp_path):
    ckpt, _ = tuned
    done = command("sample", f"ckpt={ckpt}", *DRAWN, "n=5", "film=1", f"out={tmp_path}", cwd=tmp_path)
    assert done.status == 0, done.err
    walks = json.loads((ckpt.parent / "last.grids.json").read_text())["grids"][0]["walks"]
    model = ScoreModel.load_from_checkpoint(ckpt)
    sampler = AncestralSampler(4, eta=0.0, grid=TunedGrid([walk["log_snr"] for walk in walks]))
    expected = Images((1, 8, 8), levels=17).to_file(sampler(model.denoiser, (5, 1, 8, 8)).x)
    assert np.array_equal(np.load(tmp_path / "samples.npz")["images"], expected)


@pytest.mark.slow
def test_what_is_known_stays_and_a_sampler_is_added(tuned, command, tmp_path):
    ckpt = shutil.copy(tuned[0], tmp_path / "last.ckpt")
    path = shutil.copy(tuned[0].parent / "last.grids.json", tmp_path / "last.grids.json")
    before = json.loads(path.read_text())["grids"]
    before[0]["walks"][0]["log_snr"][1] += 0.01  # a trace
    tuned_grids.write(str(ckpt), hashlib.sha256(ckpt.read_bytes()).hexdigest(), before)
    more = (f"+samplers.other={OTHER}", "tuning.samplers=[ddim,other]", "tuning.nfe=[3]", "nfe=[3]")
    done = command("nfe_fid", f"ckpt={ckpt}", *SETTINGS, *more, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "1 grids are known already" in done.out
    after = json.loads(path.read_text())["grids"]
    assert after[0] == before[0]
    assert after[1]["sampler"]["order"] == 2


def test_without_a_file_the_message_says_how_to_find_the_grid(command, trained, tmp_path):
    done = command(
        "sample", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *DRAWN, "n=2", f"out={tmp_path}", cwd=tmp_path
    )
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert "last.grids.json does not exist; find it: " in done.err
    assert "-m benchmarks.nfe_fid ckpt=" in done.err
    assert not (tmp_path / "samples.npz").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint_sha256": "0"}, "was found for another checkpoint, or an earlier state of"),
        ({"grids": 3}, "is damaged: it has no lists of log-SNRs"),
        ({"grids": [{}]}, "is damaged: it has no lists of log-SNRs"),
        ("{", "is damaged"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, words, tmp_path):
    ckpt, settings = str(tmp_path / "a.ckpt"), {"_target_": "sde_diffusion.sampling.UniPC", "grid": "tuned"}
    path = tuned_grids.write(ckpt, "digest", [])
    path.write_text(change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"a.grids.json.* {words}.*remove it, and tune again: .*benchmarks.nfe_fid"):
        tuned_grids.with_grid(settings, ckpt, "digest", None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tuning": {"samplers": ["unpic_3"]}}, "names of samplers: .*; got unpic_3 .did you mean unipc_3"),
        ({"tuning": {"seed": 100}}, "tuning.seed=100 and seeds=.0. overlap"),
        ({"exact": True}, "exact=true has no model to find grids for"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, words):
    cfg = OmegaConf.merge(OmegaConf.load(config_folder() / "nfe_fid.yaml"), {"tune": True}, change)
    with pytest.raises(UserError, match=words):
        add_rows(cfg)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tuning.nfe=[0]", "tuning.nfe must be a list of integers of at least 1"),
        ("tuning.nfe=[1]", "ddim, 1 passes: there is nothing to tune"),
        ("samplers.ddim.sampler.eta=1.0", "needs a sampler without noise"),
    ],
)
def test_what_cannot_be_tuned_is_refused(override, words, command, trained, tmp_path):
    ckpt = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    done = command("nfe_fid", f"ckpt={ckpt}", *SETTINGS, override, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert words in done.err
    assert not (tmp_path / "last.grids.json").exists()


def test_round_trip_and_other_guidance(tmp_path):
    ckpt, settings = str(tmp_path / "a.ckpt"), {"_target_": "sde_diffusion.sampling.HeunSampler", "steps": 4}
    walk = {"passes": 7, "log_snr": [-1.0, 0.5, 2.0], "error": 0.1, "untuned_error": 0.2}
    walk |= {"target_passes": 100, "seeds": [0, 1], "split": "train"}
    walks = [walk, {**walk, "passes": 8}]  # Heun's method takes as many steps in 8 passes as in 7
    entry = {"sampler": tuned_grids.identity(settings), "guidance": None, "walks": walks}
    assert tuned_grids.read(ckpt, "digest") == []
    tuned_grids.write(ckpt, "digest", [entry])
    assert tuned_grids.read(ckpt, "digest") == [entry]
    asked = {**settings, "grid": "tuned"}
    found = tuned_grids.with_grid(asked, ckpt, "digest", None)
    assert found == {**settings, "grid": {"_target_": "sde_diffusion.sde.TunedGrid", "log_snr": [[-1.0, 0.5, 2.0]]}}
    assert tuned_grids.with_grid(settings, ckpt, "another", None) == settings
    guided = {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": 2}
    with pytest.raises(UserError, match=r"no grid for UniPC.*, but for HeunSampler.*: take one of these") as refusal:
        tuned_grids.with_grid(
            {**asked, "_target_": "sde_diffusion.sampling.UniPC", "order": 3, "steps": 7}, ckpt, "digest", None
        )
    assert "UniPC(order=3)" in str(refusal.value)
    assert "steps=" not in str(refusal.value)  # a grid is for any number of them
    with pytest.raises(UserError, match=r"no grid for HeunSampler.* with guidance ClassifierFreeGuidance"):
        tuned_grids.with_grid(asked, ckpt, "digest", guided)


@pytest.mark.slow
def test_with_guidance_a_grid_of_its_own(classes, command, tmp_path):
    """Two network passes a step: six passes are three times. Without the guidance, the grid is refused."""
    ckpt = shutil.copy(classes, tmp_path / "last.ckpt")
    guided = ("guidance=cfg", "guidance.scale=2")
    settings = (*SETTINGS, *guided, "nfe=[6]", "tuning.nfe=[6]")
    done = command("nfe_fid", f"ckpt={ckpt}", *settings, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 0, done.err
    (entry,) = json.loads((tmp_path / "last.grids.json").read_text())["grids"]
    assert (len(entry["walks"][0]["log_snr"]), entry["guidance"]["scale"]) == (3, 2)
    drawing = (f"ckpt={ckpt}", *DRAWN, "n=10", "label=3")
    assert command("sample", *drawing, *guided, f"out={tmp_path / 'a'}", cwd=tmp_path).status == 0
    refused = command("sample", *drawing, f"out={tmp_path / 'b'}", cwd=tmp_path)
    assert (refused.status, "with guidance ClassifierFreeGuidance" in refused.err) == (1, True), refused.err


@pytest.mark.slow
def test_evaluate_takes_the_grid(tuned, command, tmp_path):
    settings = (*DRAWN, "n=200", "metrics=[frechet]", f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}")
    done = command("evaluate", f"ckpt={tuned[0]}", *settings, cwd=tmp_path)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["sampler"]["grid"]["_target_"] == "sde_diffusion.sde.TunedGrid"
    table = list(csv.DictReader((tuned[0].parent / "out" / "curves.csv").open(newline="")))
    assert {row["sampler"] for row in table} == {"ddim", "ddim_tuned"}
