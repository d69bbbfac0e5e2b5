"""The commands from end to end: the files of a run, their use by other commands, resuming, interruptions."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from conftest import TINY
from PIL import Image

from sde_diffusion.checks.overrides import hydra_value
from sde_diffusion.data import Digits

DDPM = ("sampler=ddpm", "sampler.steps=5")


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def load(path):
    return torch.load(path, weights_only=True)


def steps(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) for row in rows if row.get("val/loss")], rows


def assert_same(a, b, where="checkpoint"):
    """Equal to the last bit, whatever the nesting."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def test_what_a_run_leaves(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml",
        "train.log",
        "metrics.csv",
        "loss.png",
        "noise_levels.csv",
        "noise_levels.png",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "samples/step-0000015.png",
        "samples/step-0000030.png",
    }
    assert not [name for name in files if name.endswith(".part") or ".tmp" in name]
    assert load(last(trained))["global_step"] == 30
    validated, rows = steps(trained)
    assert validated == [14, 29]
    assert len([row for row in rows if row.get("train/loss")]) in (5, 6)  # each fifth step
    losses = [float(row["val/loss"]) for row in rows if row.get("val/loss")]
    best = load(trained / "checkpoints" / "best.ckpt")["global_step"]
    assert best == 15 * (1 + losses.index(min(losses)))
    assert "width: 32" in (trained / "config.yaml").read_text()
    for picture in ("loss.png", "samples/step-0000030.png"):
        with Image.open(trained / picture) as image:
            assert len(image.convert("L").getcolors(100_000)) > 10  # something is drawn


@pytest.mark.slow
def test_the_commands_it_suggests_work_from_anywhere(trained, tmp_path):
    """As printed, typed into another folder, in a fresh process."""
    suggested = re.findall(r"^  .*python\S* -m (sde_diffusion\..*)$", (trained / "train.log").read_text(), re.MULTILINE)
    names = ("sample", "evaluate", "likelihood")
    assert [line.split()[0] for line in suggested] == [f"sde_diffusion.{name}" for name in names]
    for line in suggested:
        typed = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (samples,) = tmp_path.glob("outputs/sample/*/samples.npz")
    assert np.load(samples, allow_pickle=False)["images"].shape == (64, 8, 8, 1)
    assert len(list(tmp_path.glob("outputs/evaluate/*/metrics.json"))) == 1
    assert len(list(tmp_path.glob("outputs/likelihood/*/likelihood.json"))) == 1


@pytest.mark.parametrize("name", [pytest.param("a b=ü", marks=pytest.mark.slow), "a,b[c]'$x\\"])
def test_whatever_the_folder_is_called(name, command, tmp_path):
    """Each command as it is printed, read as a shell reads it, in another folder."""
    folder, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    elsewhere.mkdir()
    short = (*TINY, "trainer.max_steps=2", "callbacks.samples=null")
    done = command("train", *short, f"hydra.run.dir={hydra_value(folder)}", cwd=tmp_path)
    assert done.status == 0, done.err
    assert last(folder).is_file()
    printed = re.findall(r"^  .+ -m sde_diffusion\.(.*)$", (folder / "train.log").read_text(), re.MULTILINE)
    assert len(printed) == 3
    for line in printed:
        name, *settings = shlex.split(line)
        done = command(name, *settings, *(DDPM if name != "likelihood" else ("n=2", "elbo=null")), cwd=elsewhere)
        assert done.status == 0, done.err
    again = command("train", *short, f"hydra.run.dir={hydra_value(folder)}", cwd=tmp_path)
    (resume,) = re.findall(r"resume it with (.*), or choose", again.err)
    done = command("train", *shlex.split(resume), "trainer.max_steps=3", cwd=elsewhere)
    assert done.status == 0, done.err
    assert load(last(folder))["global_step"] == 3


def test_samples_do_not_depend_on_the_batch(command, trained, tmp_path):
    arrays = []
    for size in (10, 3):
        out = tmp_path / str(size)
        done = command(
            "sample", f"ckpt={last(trained)}", "n=10", "seed=7", f"batch_size={size}", f"out={out}", *DDPM, cwd=tmp_path
        )
        assert done.status == 0, done.err
        arrays.append(np.load(out / "samples.npz", allow_pickle=False))
        assert (out / "grid.png").is_file()
    complete, parts = arrays
    assert complete["images"].dtype == np.uint8
    assert complete["images"].shape == (10, 8, 8, 1)
    assert complete["seeds"].tolist() == list(range(7, 17))
    assert np.abs(complete["images"].astype(int) - parts["images"]).max() <= 1  # a rounding of float32 may tip a level
    assert len(np.unique(complete["images"].reshape(10, -1), axis=0)) == 10


def frechet(a, b):
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) by eigenvalues."""
    (m, c), (n, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    root = np.sqrt(scipy.linalg.eigvals(c @ d).real.clip(0)).sum()  # the trace of the root, singular or not
    return np.sum((m - n) ** 2) + np.trace(c + d) - 2 * root


def test_evaluate_scores_the_samples_that_sample_draws(command, trained, tmp_path):
    arguments = (f"ckpt={last(trained)}", "n=200", *DDPM)
    assert command("sample", *arguments, f"out={tmp_path}", cwd=tmp_path).status == 0
    done = command("evaluate", *arguments, "extractor=pixels", f"out={tmp_path}", cwd=tmp_path)
    assert done.status == 0, done.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    images = np.load(tmp_path / "samples.npz", allow_pickle=False)["images"]
    levels = np.round(images.reshape(200, -1) / 255 * 16) / 8 - 1  # 17 levels on [-1, 1]
    digits = Digits().prepare()
    test, train = (digits.tensor(split).flatten(1).double().numpy() for split in ("test", "train"))
    assert metrics["frechet_distance"] == pytest.approx(frechet(levels, test), rel=0.01)
    some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:200]]
    assert metrics["training_split"]["frechet_distance"] == pytest.approx(frechet(some, test), rel=1e-3)
    expected = {"n": 200, "nfe": 5, "n_reference": 300, "data": "digits", "split": "test", "extractor": "pixels"}
    assert {key: metrics[key] for key in expected} == expected
    assert metrics["seeds"] == [0, 199]


def test_vectors(command, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    sizes = ("data.n_train=2000", "data.n_val=100", "data.n_test=100")
    done = command("train", *TINY, "data=moons", *sizes, f"hydra.run.dir={run}", cwd=tmp_path)
    assert done.status == 0, done.err
    done = command("sample", f"ckpt={last(run)}", "n=30", f"out={out}", *DDPM, cwd=tmp_path)
    assert done.status == 0, done.err
    points = np.load(out / "samples.npz", allow_pickle=False)["points"]
    assert points.dtype == np.float32
    assert points.shape == (30, 2)
    done = command("evaluate", f"ckpt={last(run)}", "n=30", f"out={out}", *DDPM, cwd=tmp_path)
    assert done.status == 0, done.err
    assert json.loads((out / "metrics.json").read_text())["extractor"] == "pixels"


def test_classes(command, tmp_path):
    run = tmp_path / "run"
    assert command("train", *TINY, "conditional=true", f"hydra.run.dir={run}", cwd=tmp_path).status == 0
    for name, typed, want in (("threes", ["label=3"], [3] * 12), ("all", [], [*range(10), 0, 1])):
        out = tmp_path / name
        done = command("sample", f"ckpt={last(run)}", "n=12", *typed, f"out={out}", *DDPM, cwd=tmp_path)
        assert done.status == 0, done.err
        arrays = np.load(out / "samples.npz", allow_pickle=False)
        assert arrays["labels"].tolist() == want
    threes, all_in_turn = (np.load(tmp_path / name / "samples.npz")["images"] for name in ("threes", "all"))
    same = (threes == all_in_turn).reshape(12, -1).all(1)
    assert same[3]  # sample 3 has label 3 in both; the labels of the others differ
    assert not same.all()
    done = command("sample", f"ckpt={last(run)}", "label=10", f"out={tmp_path / 'x'}", *DDPM, cwd=tmp_path)
    assert (done.status, "0 ... 9" in done.err) == (1, True)


def test_a_longer_run_from_a_checkpoint(command, trained, tmp_path):
    """The settings of the checkpoint are used, with those of the command line, and the files are continued."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    done = command("train", f"ckpt={last(folder)}", "trainer.max_steps=60", cwd=tmp_path)
    assert done.status == 0, done.err
    assert not (tmp_path / "outputs").exists()
    assert steps(folder)[0] == [14, 29, 44, 59]
    assert load(last(folder))["global_step"] == 60
    assert load(last(folder))["state_dict"].keys() == load(last(trained))["state_dict"].keys()
    assert "max_steps: 60" in (folder / "config.yaml").read_text()
    assert "width: 32" in (folder / "config.yaml").read_text()
    assert len(re.findall(r"^Done\.", (folder / "train.log").read_text(), re.MULTILINE)) == 2


def test_a_resumed_run_keeps_its_callbacks_settings(command, tmp_path):
    """The checkpoint contributes values only: what Hydra builds is never named by a file."""
    folder = tmp_path / "run"
    settings = ("callbacks.ema.decay=0.5", "callbacks.samples=null", "callbacks.progress.refresh_every=7")
    assert command("train", *TINY, *settings, f"hydra.run.dir={folder}", cwd=tmp_path).status == 0
    assert "_target_" not in json.dumps(load(last(folder))["sde_diffusion"]["run"]["callbacks"])
    longer = ("trainer.max_steps=45", "callbacks.progress.refresh_every=9")
    assert command("train", f"ckpt={last(folder)}", *longer, cwd=tmp_path).status == 0
    callbacks = yaml.safe_load((folder / "config.yaml").read_text())["callbacks"]
    assert callbacks["ema"]["decay"] == 0.5
    assert callbacks["samples"] is None
    assert callbacks["progress"]["refresh_every"] == 9
    assert callbacks["last"]["_target_"] == "sde_diffusion.training.LastCheckpoint"


def test_a_finished_run_has_nothing_to_do(command, trained, tmp_path):
    """It says so and which limit to raise, and changes no file except the log."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    done = command("train", f"ckpt={last(folder)}", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "the run is at step 30 of trainer.max_steps=30; raise trainer.max_steps" in done.out
    assert "Done" not in done.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path in before} == before
    assert json.loads((folder / "run.json").read_text())["metrics"]["val/loss"] > 0


@pytest.mark.slow
def test_a_run_whose_time_is_over_has_nothing_to_do(command, tmp_path):
    folder = tmp_path / "run"
    limit = ("trainer.max_steps=-1", "trainer.max_time=00:00:00:02", "callbacks.samples=null", "model.warmup_steps=0")
    each = ("trainer.log_every_n_steps=1", "trainer.val_check_interval=100000")
    done = command("train", *TINY, *limit, *each, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.status == 0, done.err
    validated, rows = steps(folder)
    assert validated[-1] + 1 == load(last(folder))["global_step"]  # the last steps are validated
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert rates[-1] < 0.05 * max(rates)  # the cosine ends with the time
    done = command("train", f"ckpt={last(folder)}", "callbacks.samples=null", cwd=tmp_path)
    assert (done.status, "of the 2 s of trainer.max_time have been used; raise trainer.max_time" in done.out) == (
        0,
        True,
    )
    done = command("train", f"ckpt={last(folder)}", "trainer.max_time=00:00:00:04", cwd=tmp_path)
    assert done.status == 0, done.err
    assert steps(folder)[0][-1] > validated[-1]


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision, command, tmp_path):
    """Trained with pictures, resumed, sampled, scored."""
    folder = tmp_path / "run"
    settings = (*TINY, f"trainer.precision={precision}", "callbacks.samples.n=2", "data.min_batches_per_epoch=20")
    done = command("train", *settings, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert (done.status, done.err) == (0, ""), done.err
    done = command("train", f"ckpt={last(folder)}", "trainer.max_steps=40", cwd=tmp_path)
    assert (done.status, done.err) == (0, ""), done.err
    assert load(last(folder))["global_step"] == 40
    assert (folder / "samples" / "step-0000040.png").is_file()
    done = command("sample", f"ckpt={last(folder)}", "n=4", f"out={tmp_path}", *DDPM, cwd=tmp_path)
    assert (done.status, done.err) == (0, ""), done.err
    done = command("likelihood", f"ckpt={last(folder)}", "n=4", "rtol=1e-2", f"out={tmp_path}", cwd=tmp_path)
    assert (done.status, done.err) == (0, ""), done.err


def test_a_copy_of_a_run_keeps_its_best(command, trained, tmp_path):
    """Resumed with a validation that is worse: neither the copy's best.ckpt nor a file of the original changes."""
    copy, original = tmp_path / "copy", tmp_path / "original"
    for folder in (copy, original):
        shutil.copytree(trained, folder)
    record = load(last(original))["callbacks"]
    (state,) = [state for name, state in record.items() if name.startswith("ModelCheckpoint")]
    kept = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    worse = ("trainer.max_steps=45", "model.lr=3", "model.schedule=constant", "model.warmup_steps=0")
    done = command("train", f"ckpt={last(copy)}", *worse, "callbacks.ema=null", "callbacks.samples=null", cwd=tmp_path)
    assert done.status == 0, done.err
    with (copy / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[-1] > float(state["best_model_score"])  # it is worse
    best = copy / "checkpoints" / "best.ckpt"
    assert best.read_bytes() == kept[original / "checkpoints" / "best.ckpt"]
    (state,) = [s for name, s in load(last(copy))["callbacks"].items() if name.startswith("ModelCheckpoint")]
    assert (state["best_model_path"], state["dirpath"]) == (str(best), str(best.parent))
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("objective=min_snr",), "objective changed"),
        (("model.dequantise=true",), "model.dequantise changed"),
        (("hydra.run.dir=elsewhere",), ""),  # where there is no best.ckpt yet
    ],
)
def test_losses_that_cannot_be_compared_are_not(change, said, command, trained, tmp_path):
    """A loss that cannot be compared is the best so far, even if it is larger."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    settings = ("trainer.max_steps=45", "callbacks.samples=null", *change)
    done = command("train", f"ckpt={last(folder)}", *settings, cwd=tmp_path)
    assert done.status == 0, done.err
    assert said in done.out
    where = tmp_path / "elsewhere" if "hydra" in change[0] else folder
    assert load(where / "checkpoints" / "best.ckpt")["global_step"] == 45


def test_without_averages_a_resumed_run_goes_on_from_the_raw_weights(command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    raw = load(last(folder))["current_model_state"]
    frozen = ("trainer.max_steps=31", "model.lr=1e-30", "callbacks.ema=null", "callbacks.samples=null")
    assert command("train", f"ckpt={last(folder)}", *frozen, cwd=tmp_path).status == 0
    after = load(last(folder))
    assert "current_model_state" not in after
    assert_same(after["state_dict"], raw)


def test_a_resumed_run_keeps_the_sampler_of_its_pictures(command, tmp_path):
    folder = tmp_path / "run"
    sampler = "callbacks.samples.sampler={_target_: sde_diffusion.sampling.AncestralSampler, steps: 2}"
    assert command("train", *TINY, sampler, f"hydra.run.dir={folder}", cwd=tmp_path).status == 0
    done = command("train", f"ckpt={last(folder)}", "trainer.max_steps=45", cwd=tmp_path)
    assert done.status == 0, done.err
    kept = yaml.safe_load((folder / "config.yaml").read_text())["callbacks"]["samples"]["sampler"]
    assert kept == {"_target_": "sde_diffusion.sampling.AncestralSampler", "steps": 2}


@pytest.mark.parametrize("override", ["sde=ve", "network.width=48", "denoiser=eps"])
def test_a_resumed_run_keeps_its_model(override, command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = (folder / "config.yaml").read_text()
    done = command("train", f"ckpt={last(folder)}", "trainer.max_steps=60", override, cwd=tmp_path)
    assert (done.status, override in done.err, "cannot change" in done.err) == (1, True, True)
    assert (folder / "config.yaml").read_text() == before


@pytest.mark.slow
def test_a_run_killed_in_a_validation_does_it_again(command, start, tmp_path):
    """last.ckpt is written after the validation, so that a resumed run skips none."""
    folder = tmp_path / "run"
    process = start(
        "train",
        *TINY,
        "trainer.max_steps=400",
        "trainer.val_check_interval=20",
        "callbacks.samples=null",
        "seed=1",
        "model.validation_draws=200",
        f"hydra.run.dir={folder}",
        cwd=tmp_path,
    )
    wait_for(last(folder), process)
    time.sleep(0.3)  # most of a run's time is validation here
    process.kill()
    process.communicate()
    assert command("train", f"ckpt={last(folder)}", cwd=tmp_path).status == 0
    with (folder / "metrics.csv").open(newline="") as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert validated == list(range(19, 400, 20))


def wait_for(path, process):
    until = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.slow
def test_ctrl_c(start, tmp_path):
    """Status 130, and a checkpoint from which the run can be resumed."""
    folder = tmp_path / "run"
    settings = ("trainer.max_steps=1000000", "callbacks.samples=null", f"hydra.run.dir={folder}")
    process = start("train", *TINY, *settings, cwd=tmp_path)
    wait_for(last(folder), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err + out
    assert f"ckpt={last(folder)}" in out
    assert load(last(folder))["global_step"] >= 15
