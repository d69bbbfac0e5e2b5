"""A user's mistake: exit status 1, one message that says what is allowed, and no partial results."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

import sde_diffusion

TRAIN = {
    "an unknown choice": (["sde=foo"], ["sde=foo", "cosine", "edm", "rectified", "subvp", "ve", "vp"]),
    "an unknown experiment": (["experiment=foo"], ["experiment=foo", "ddpm"]),
    "an unknown key": (["foo=1"], ["'foo'", "sde", "trainer"]),
    "an unknown model key": (["model.foo=1"], ["'model.foo'", "lr", "warmup_steps"]),
    "an unknown trainer key": (["trainer.foo=1"], ["'trainer.foo'", "max_steps"]),
    "an added trainer key": (["+trainer.foo=1"], ["trainer", "foo"]),
    "an unknown path key": (["sde.beta=3"], ["'sde.beta'", "beta_min", "beta_max"]),
    "a key of another choice": (
        ["model=vae", "objective=iwae", "objective.beta=2"],
        ["objective=iwae has no beta, unlike annealed_elbo, beta_elbo; allowed in objective: "],
    ),
    "a hierarchy of one latent variable": (
        ["model=hvae", "model/autoencoder=mlp"],
        ["model.autoencoder has 1 latent variable, and this model is for at least 2", "model=vae"],
    ),
    "an observation model of a score model": (
        ["observation=gaussian"],
        ["model.observation: ScoreModel takes no observation", "(given: observation=gaussian)"],
    ),
    "a switch of another command": (["compile=true"], ["unknown key 'compile' (did you mean model.compile?)"]),
    "a VAE that is told classes": (
        ["model=vae", "conditional=true"],
        ["conditional=true is for models that can be told conditions", "model=latent, score, vdm. A VariationalModel"],
    ),
    "betas out of order": (["sde.beta_min=30"], ["0 < beta_min <= beta_max", "beta_min=30"]),
    "a negative sigma": (["sde=ve", "sde.sigma_min=-1"], ["0 < sigma_min < sigma_max", "sigma_min=-1"]),
    "v off VP": (["denoiser=v", "sde=ve"], ["'v'", "VPSDE", "velocity"]),
    "no data.root": (["data=mnist"], ["data.root must be given", "data.root=VALUE"]),
    "data.root not there": (["data=mnist", "data.root=/nowhere"], ["/nowhere", "train-images"]),
    "labels there are none of": (["data=moons", "conditional=true"], ["conditional=true", "moons"]),
    "no such key of ode to leave out": (["sampler=ode", "~sampler.churn"], ["sampler.churn"]),
    "no steps": (["trainer.max_steps=0"], ["trainer.max_steps=0", "at least 1"]),
    "no interval": (["trainer.val_check_interval=0"], ["trainer.val_check_interval=0", "at least 1"]),
    "maybe": (["conditional=maybe"], ["conditional must be true or false", "maybe"]),
    "sampler.steps=0": (["sampler.steps=0"], ["steps", "at least 1", "0"]),
    "a word for a number": (["model.lr=abc"], ["model.lr=abc"]),
    "a word for max_steps": (["trainer.max_steps=abc"], ["trainer.max_steps=abc"]),
    "a negative lr": (["model.lr=-1"], ["lr must be positive", "-1"]),
    "an unknown schedule": (["model.schedule=foo"], ["constant", "cosine"]),
    "an unknown precision": (["trainer.precision=foo"], ["trainer.precision=foo", "32-true"]),
    "a precision that rounds weights": (["trainer.precision=bf16-true"], ["bf16-true", "32-true, bf16-mixed"]),
    "a precision of another library": (["trainer.precision=transformer-engine"], ["precision=transformer-engine"]),
    "fewer items than processes": (
        ["data=ring", "data.n_val=1", "trainer.devices=2", "trainer.strategy=ddp_spawn", "trainer.accelerator=cpu"],
        ["each of 2 processes needs items to validate on, and the validation split has only 1", "trainer.devices="],
    ),
    "a GPU there is none of": (["trainer.accelerator=gpu"], ["gpu"]),
    "a CUDA device there is none of": (["trainer.accelerator=cuda"], ["accelerator=cuda: torch finds no GPU"]),
    "a metric that is not logged": (["callbacks.best.monitor=foo", *TINY], ["could not find", "best.monitor=foo"]),
    "a callback's number": (["+callbacks.best.every_n_epochs=-5"], ["callbacks.best", "every_n_epochs=-5", ">= 0"]),
    "the name of another file": (["callbacks.best.filename=last"], ["callbacks.best.filename=last", "choose another"]),
    "more steps than there are": (["+trainer.min_steps=9", "trainer.max_steps=8"], ["min_steps=9", "max_steps=8"]),
    "a walk to where the log-SNR is infinite": (
        ["sampler=dpm", "sampler.t_end=0", *TINY[:5]],
        ["the sampler of callbacks.samples", "log-SNR is infinite"],
    ),
    "a cosine without end": (["trainer.max_steps=-1"], ["max_steps", "model.schedule=constant"]),
    "no samples to draw": (["callbacks.samples.n=0"], ["callbacks.samples", "at least 1"]),
    "an invalid seed": (["seed=1.5"], ["seed", "integer", "1.5"]),
    "a network of no width": (["network.width=0"], ["width", "at least 1"]),
    "batches of nothing": (["data.batch_size=0"], ["batch_size", "at least 1"]),
    "an open bracket": (["model.lr=[1"], ["[1"]),
    "no value": (["model.lr"], ["model.lr"]),
    "a name without an end": (["model.lr='${'"], ["model.lr", "'${'", "${seed}"]),
    "a choice without an end": (["data='${x'"], ["'${x'", "${seed}"]),
}


def check(done, *parts: str) -> None:
    assert done.status == 1, (done.status, done.out, done.err)
    assert done.err.startswith("error: "), done.err
    assert "Traceback" not in done.err + done.out
    assert len(done.err.splitlines()) <= 4, done.err
    for part in parts:
        assert part in done.err, (part, done.err)


def no_results(folder) -> None:
    """Only a log may remain."""
    assert {path.name for path in folder.rglob("*") if path.is_file()} <= {"train.log", "sample.log", "evaluate.log"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU as something that is not there")
@pytest.mark.parametrize("case", TRAIN)
def test_train(case, command, tmp_path):
    overrides, parts = TRAIN[case]
    folder = tmp_path / "run"
    check(command("train", *TINY, f"hydra.run.dir={folder}", *overrides, cwd=tmp_path), *parts)
    assert not (folder / "checkpoints").exists()


def test_what_a_refused_run_leaves_does_not_stand_in_the_way(command, tmp_path):
    """Errors that are found late, after data, model and trainer have been built."""
    folder = tmp_path / "run"
    for late in ("trainer.accelerator=foo", "callbacks.samples.n=0"):
        assert command("train", *TINY, f"hydra.run.dir={folder}", late, cwd=tmp_path).status == 1
    again = command("train", *TINY, f"hydra.run.dir={folder}", "trainer.max_steps=2", cwd=tmp_path)
    assert again.status == 0, again.err


SAMPLE = {
    "n=0": (["n=0"], ["n must be an integer of at least 1", "n=0"]),
    "n=abc": (["n=abc"], ["n must be an integer", "n=abc"]),
    "seed=1.5": (["seed=1.5"], ["seed must be an integer", "seed=1.5"]),
    "a seed beyond 64 bits": (["seed=9223372036854775807"], ["2^63"]),
    "batch_size=0": (["batch_size=0"], ["batch_size", "at least 1"]),
    "sampler.steps=0": (["sampler.steps=0"], ["steps", "at least 1"]),
    "an unknown sampler": (["sampler=foo"], ["sampler=foo", "ddim", "ddpm", "ode", "sde"]),
    "an unknown sampler key": (["sampler.foo=1"], ["'sampler.foo'", "steps", "eta"]),
    "a label for a model without": (["label=3"], ["conditional=true"]),
    "device=cuda": (["device=cuda"], ["device=cpu"]),
    "device=foo": (["device=foo"], ["device=foo", "device=cpu"]),
    "a checkpoint with = in its name": (
        ["ckpt=epoch=3.ckpt"],
        ["'ckpt=epoch=3.ckpt'", "further ones inside"],
    ),
    "no such checkpoint": (["ckpt=/nowhere/last.ckpt"], ["no checkpoint /nowhere/last.ckpt"]),
    "a folder under a file": (["out=/dev/null/x"], ["/dev/null/x", "choose another folder"]),
    "overwrite=no": (["overwrite=no"], ["true or false", "overwrite=no"]),
    "steps without end": (["sampler.steps=.inf"], ["steps must be an integer"]),
    "steps in words": (["sampler.steps=ten"], ["steps must be an integer", "ten"]),
    "an end outside the path": (["sampler.t_end=7"], ["t_end must lie in", "sampler.t_end=7"]),
    "another path than the model's": (["sde=ve"], ["no sde= here", "checkpoint"]),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU as something that is not there")
@pytest.mark.parametrize("case", SAMPLE)
def test_sample(case, command, trained, tmp_path):
    overrides, parts = SAMPLE[case]
    usual = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "sampler=ddpm", "sampler.steps=5", "n=4")
    check(command("sample", *usual, f"out={tmp_path / 'out'}", *overrides, cwd=tmp_path), *parts)
    no_results(tmp_path)


def test_sample_without_a_checkpoint(command, tmp_path):
    check(command("sample", cwd=tmp_path), "ckpt", "ckpt=VALUE")
    no_results(tmp_path)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("extractor=foo", "pixels, cifar10, digits, mnist"),
        ("split=foo", "train, val, test"),
        ("n=0", "n=0"),
        ("n=1", "n must be an integer of at least 2; got n=1"),
        ("metrics=fid", "metrics=fid is not a choice (did you mean frechet?)"),
        (
            "denoiser.compute_dtype=bfloat16",
            "no denoiser= here: the settings of training are stored in the checkpoint",
        ),
        ("data=mnist", "data.root must be given: add data.root=VALUE"),
        ("data=arrays", "data.path must be given: add data.path=VALUE"),
    ],
)
def test_evaluate(override, part, command, trained, tmp_path):
    ckpt = trained / "checkpoints" / "last.ckpt"
    usual = (f"ckpt={ckpt}", "sampler=ddpm", "sampler.steps=2", "n=4", f"out={tmp_path / 'out'}")
    check(command("evaluate", *usual, override, cwd=tmp_path), part)
    no_results(tmp_path)


def test_checkpoints_that_are_none(command, trained, tmp_path):
    good = (trained / "checkpoints" / "last.ckpt").read_bytes()
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "truncated.ckpt").write_bytes(good[: len(good) // 2])
    (tmp_path / "words.ckpt").write_text("hello\n")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name in ("missing", "foreign", "truncated", "words", "empty"):
        ckpt = tmp_path / f"{name}.ckpt"
        for arguments in (("sample", f"out={tmp_path / 'out'}"), ("train", f"hydra.run.dir={tmp_path / 'run'}")):
            check(command(*arguments, f"ckpt={ckpt}", cwd=tmp_path), str(ckpt))
    assert not (tmp_path / "out" / "samples.npz").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_stands_there_is_kept(command, trained, tmp_path):
    """A second run in the folder of a run, and samples over samples."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    done = command("train", *TINY, f"hydra.run.dir={folder}", cwd=tmp_path)
    check(done, f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", "hydra.run.dir=DIR")
    assert {path: path.read_bytes() for path in before} == before

    arguments = ("sample", f"ckpt={folder}/checkpoints/last.ckpt", "n=2", "sampler=ddpm", "sampler.steps=2", "out=o")
    assert command(*arguments, cwd=tmp_path).status == 0
    first = (tmp_path / "o" / "samples.npz").read_bytes()
    check(command(*arguments, "seed=5", cwd=tmp_path), "samples.npz exists already", "out=DIR", "overwrite=true")
    assert (tmp_path / "o" / "samples.npz").read_bytes() == first
    assert command(*arguments, "seed=5", "overwrite=true", cwd=tmp_path).status == 0
    assert (tmp_path / "o" / "samples.npz").read_bytes() != first


def test_a_folder_that_cannot_be_written(command, tmp_path):
    check(command("train", *TINY, "hydra.run.dir=/dev/null/x", cwd=tmp_path), "/dev/null/x")


def test_a_loss_that_is_no_number(command, tmp_path):
    """A learning rate of 10^20: the message names the step, and an earlier checkpoint with finite weights remains."""
    folder = tmp_path / "run"
    settings = ("model.lr=1e20", "model.warmup_steps=1000", "trainer.max_steps=200", "trainer.val_check_interval=1")
    done = command("train", *TINY, *settings, f"hydra.run.dir={folder}", "callbacks.samples=null", cwd=tmp_path)
    done.err = "error: " + done.err.partition("error: ")[2]
    check(done, "at step", "smaller model.lr", "earlier checkpoints are kept")
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in kept["state_dict"].values())
    assert 0 < kept["global_step"] <= int(done.err.partition("at step ")[2].partition(":")[0])


MISSPELT = {
    "samper=ode": "sampler",
    "lr=1": "model.lr",
    "trainr.max_steps=5": "trainer",
    "model.lrr=1": "model.lr",
    "max_step=5": "trainer.max_steps",
    "sampler.stesp=3": "sampler.steps",
    "sampler=ddmp": "ddpm",
    "experiment=edmm": "edm",
    "data.batchsize=3": "data.batch_size",
    "+sampler.step=5": "steps",
}


@pytest.mark.parametrize("typed", MISSPELT)
def test_did_you_mean(typed, command, tmp_path):
    check(command("train", typed, cwd=tmp_path), f"did you mean {MISSPELT[typed]}?")


def test_nothing_like_it(command, tmp_path):
    done = command("train", "xyzzy=1", cwd=tmp_path)
    check(done, "unknown key 'xyzzy'; allowed: ")


def test_a_key_of_what_is_null(command, tmp_path):
    check(command("train", "sampler.grid.rho=3", cwd=tmp_path), "sampler.grid is null", "+sampler.grid.rho=VALUE")


@pytest.mark.parametrize(
    ("typed", "parts"),
    [("train sde=vp", ["python -m sde_diffusion.train sde=vp"]), ("smaple", ["did you mean sample?"])],
)
def test_the_package_is_no_command(typed, parts):
    done = subprocess.run([sys.executable, "-m", "sde_diffusion", *typed.split()], capture_output=True, text=True)
    assert done.returncode == 1
    assert all(part in done.stderr for part in parts)


def test_the_package_lists_its_commands():
    listed = subprocess.check_output([sys.executable, "-m", "sde_diffusion"], text=True)
    doors = {
        path.stem for path in Path(sde_diffusion.__file__).parent.glob("*.py") if "\ndef main(" in path.read_text()
    }
    assert set(re.findall(r"python -m sde_diffusion\.(\w+)", listed)) == doors - {"__main__"}


def test_a_resumed_run_has_the_keys_of_its_own_groups(command, tmp_path):
    """Keys of the run's data set and sampler, which are not the default ones."""
    run, short = tmp_path / "run", ("trainer.val_check_interval=2", "callbacks.samples=null", "network.width=16")
    begun = command(
        "train",
        "data=moons",
        "data.n_train=200",
        "sampler=ddim",
        *short,
        "trainer.max_steps=2",
        f"hydra.run.dir={run}",
        cwd=tmp_path,
    )
    assert begun.status == 0, begun.err
    resume = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    done = command("train", resume, "trainer.max_steps=4", "data.noise=0.07", "sampler.eta=0.5", cwd=tmp_path)
    assert done.status == 0, done.err
    config = (run / "config.yaml").read_text()
    assert "noise: 0.07" in config
    assert "eta: 0.5" in config
    assert "++" not in (run / "run.json").read_text()
    check(command("train", resume, "data.flipp=true", cwd=tmp_path), "unknown key 'data.flipp'", "n_train")
    check(command("train", resume, "sampler.churn=1", cwd=tmp_path), "unknown key 'sampler.churn'", "eta")
