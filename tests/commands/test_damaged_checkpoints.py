"""Checkpoints damaged in any way: a command succeeds, or one message says what is wrong with which file."""

import contextlib
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from damage_cases import bomb, damaged_bytes, damaged_contents, doubled, nested, repacked, saved, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sde_diffusion.commands.resuming import read_run
from sde_diffusion.errors import UserError
from sde_diffusion.training import ScoreModel
from sde_diffusion.training.checkpoint import check_fit, read_checkpoint

RELEASE = Path(__file__).parents[1] / "releases" / "0.1.0.ckpt"
CONTENT = RELEASE.read_bytes()
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
MANY = settings(FEW, max_examples=300)

damaged = st.one_of(damaged_contents(CONTENT), damaged_contents(CONTENT), damaged_bytes(CONTENT))


def use(path: Path) -> None:
    """Read a checkpoint as sampling and resuming do before they begin."""
    model = ScoreModel.load_from_checkpoint(path)
    check_fit(model, read_run(str(path)), path, resuming=True)


@FEW
@given(damaged, st.booleans())
def test_read_or_refused_in_one_message(content: bytes, sealed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        path = write(Path(folder) / "damaged.ckpt", content, sealed)
        said = ""
        try:
            use(path)
        except UserError as error:
            said = str(error)
        assert not said or str(path) in said
        assert len(said) < 1500
        assert "\n" not in said


@pytest.mark.slow  # 300 damaged checkpoints, each sampled from and resumed by the commands: about ten minutes
@MANY
@given(damaged, st.booleans())
def test_commands_work_or_say_what_is_wrong(command: Any, content: bytes, sealed: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder / "damaged.ckpt", content, sealed)
        for done in (
            command("sample", f"ckpt={path}", "n=2", "out=drawn", "sampler=ddim", "sampler.steps=2", cwd=folder),
            command("train", f"ckpt={path}", "trainer.max_steps=21", f"hydra.run.dir={folder / 'run'}", cwd=folder),
        ):
            errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
            assert "Traceback" not in done.err, done.err
            assert (done.status, len(errors)) in ((0, 0), (1, 1)), done.err


def flips(n: int) -> list[tuple[int, int]]:
    chosen = random.Random(0).sample(range(8 * (len(CONTENT) + 71)), n)
    return [(bit // 8, bit % 8) for bit in chosen]


@pytest.mark.parametrize("n", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(tmp_path: Path, n: int) -> None:
    path = write(tmp_path / "last.ckpt", CONTENT, sealed=True)
    sealed = path.read_bytes()
    write(tmp_path / "best.ckpt", CONTENT, sealed=True)
    for at, bit in flips(n):
        changed = bytearray(sealed)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)
        assert f"ckpt={tmp_path / 'best.ckpt'} is intact" in str(caught.value)


def test_another_checkpoint_is_only_recommended_if_it_is_intact(tmp_path: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        write(tmp_path / name, CONTENT, sealed=True)
    for name in ("best.ckpt", "last.ckpt"):
        content = bytearray((tmp_path / name).read_bytes())
        content[30_000] ^= 1
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"its folder has no intact last\.ckpt or best\.ckpt: use a copy of it"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: bomb(), "is compressed or claims to be larger than it is"),
        (lambda: bomb("archive/data.pkl"), "is compressed or claims to be larger than it is"),
        (lambda: repacked(CONTENT, packed=True), "is compressed or claims to be larger than it is"),
        (lambda: repacked(CONTENT, drop="/data.pkl"), "is damaged"),
        (lambda: CONTENT[:-1], "is damaged"),
        (lambda: b"\x80\2}q\0.", "it is a pickle, which can run code"),
        (lambda: b"hello", "is not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_checkpoint(write(tmp_path / "x.ckpt", content(), sealed=True))


BIAS = "denoiser.network.input.bias"

CHANGES: dict[str, tuple[Any, str]] = {
    "deep": (lambda c: c["callbacks"].update(x=nested(5000)), "more than 100 deep"),
    "wide": (lambda c: c["callbacks"].update(x=doubled(60)), "more than 10,000,000 values"),
    "huge number": (
        lambda c: c.update(global_step=10**400),
        "its entry 'global_step' has an integer of more than 64 bits",
    ),
    "tensor of nothing": (lambda c: c["state_dict"].update(x=torch.ones(1).expand(2**40)), "the file has fewer"),
    "sparse": (
        lambda c: c["state_dict"].update(x=torch.ones(3).to_sparse()),
        "entry 'x' has a tensor that is not dense",
    ),
    "mark": (lambda c: c.update(sde_diffusion=7), "sde_diffusion must be a mapping; got 7"),
    "run": (lambda c: c["sde_diffusion"].update(run=[]), r"sde_diffusion.run must be a mapping; got \[\]"),
    "seed": (
        lambda c: c["sde_diffusion"]["run"].update(seed="x"),
        "run.seed must be an integer from 0 to 4294967295",
    ),
    "group": (lambda c: c["sde_diffusion"]["run"].pop("sampler"), "sde_diffusion.run lacks sampler"),
    "version": (lambda c: c["sde_diffusion"].update(version=1), "sde_diffusion.version must be text; got 1"),
    "hyperparameters": (lambda c: c.update(hyper_parameters=[]), "hyper_parameters must be a mapping"),
    "levels": (lambda c: c["hyper_parameters"]["data"].update(levels="x"), "data.levels must be an integer"),
    "data": (lambda c: c["hyper_parameters"].update(data=3), "hyper_parameters.data must be a mapping; got 3"),
    "units": (
        lambda c: c["hyper_parameters"]["data"].update(levels=None, units={"low": [0.0], "high": [0.0]}),
        "one finite high above each finite low",
    ),
    "shape": (lambda c: c["hyper_parameters"]["data"].update(shape=[1, 9, 9]), "its network is for shape"),
    "step": (lambda c: c.update(global_step=-1), "global_step must be an integer of at least 0; got -1"),
    "other step": (lambda c: c.update(global_step=7), "global_step is 7, but its optimizer has taken 20 steps"),
    "loops": (lambda c: c["loops"].update(fit_loop={}), "loops.fit_loop lacks epoch_progress"),
    "a count": (
        lambda c: c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"].update(ready="x"),
        "total.ready must be an integer of at least 0; got 'x'",
    ),
    "callback": (lambda c: c["callbacks"].update(EMA=[]), "callbacks.EMA must be a mapping"),
    "updates": (lambda c: c["callbacks"]["EMA"].update(updates=None), "EMA.updates must be an integer"),
    "lightning": (lambda c: c.update({"pytorch-lightning_version": "x"}), "must be a version from 2.0 up; got 'x'"),
    "method": (lambda c: c["lr_schedulers"][0].update(step=1), r"lr_schedulers\[0\].step is not part of"),
    "weights": (lambda c: c.update(state_dict={"a": 1}), r"state_dict\['a'\] must be a tensor; got 1"),
    "more weights": (lambda c: c["state_dict"].update(a=torch.ones(2)), r"1 not of its network \(a\)"),
    "fewer": (
        lambda c: c["state_dict"].pop("denoiser.network.input.bias"),
        r"1 missing \(denoiser.network.input.bias\)",
    ),
    "wrong shape": (
        lambda c: c["state_dict"].update({BIAS: torch.ones(3)}),
        rf"1 of another shape \({BIAS} \[3\] for \[8\]\)",
    ),
    "NaN": (
        lambda c: c["state_dict"][BIAS].fill_(float("nan")),
        "have NaN or infinite values",
    ),
    "raw NaN": (
        lambda c: c["current_model_state"][BIAS].fill_(float("inf")),
        "have NaN or inf",
    ),
    "moments": (lambda c: c["optimizer_states"][0]["state"][2].update(exp_avg=torch.ones(2)), "moments do not fit"),
    "groups": (lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].pop(), "not that of the 16 parameters"),
    "width": (lambda c: widen(c, "width", 10**9), "width=1000000000 is too large for the weights in the file"),
    "depth": (lambda c: widen(c, "depth", 10_000), "more parameters than the file has weights"),
}


def widen(checkpoint: dict[str, Any], key: str, value: int) -> None:
    for node in (checkpoint["hyper_parameters"], checkpoint["sde_diffusion"]["run"]):
        node["denoiser"]["network"][key] = value


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_said_of_each_entry(tmp_path: Path, name: str) -> None:
    checkpoint = torch.load(RELEASE, weights_only=True)
    change, said = CHANGES[name]
    change(checkpoint)
    write(tmp_path / "changed.ckpt", saved(checkpoint), sealed=True)
    with pytest.raises(UserError, match=said) as caught:
        use(tmp_path / "changed.ckpt")
    assert str(tmp_path / "changed.ckpt") in str(caught.value)
    assert "a copy" not in str(caught.value)  # which would say the same


@pytest.mark.parametrize(
    "part",
    ["callbacks", "loops", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "epoch"],
)
def test_a_model_without_its_run_is_used_but_not_resumed(tmp_path: Path, part: str) -> None:
    checkpoint = torch.load(RELEASE, weights_only=True)
    del checkpoint[part]
    torch.save(checkpoint, tmp_path / "stripped.ckpt")
    ScoreModel.load_from_checkpoint(tmp_path / "stripped.ckpt")
    with pytest.raises(
        UserError, match=r"has a model but not the full state of its run: it lacks the .* sample, evaluate"
    ):
        read_run(str(tmp_path / "stripped.ckpt"))


@pytest.mark.parametrize(
    ("version", "layout", "refused", "warned"),
    [
        ("0.1.0", 1, 0, 0),
        ("0.1.9", 1, 0, 0),
        ("0.2.0", 1, 0, 1),
        ("12.0.1", 1, 0, 1),
        ("0.1.0", 2, 1, 0),
        ("9", 2, 1, 0),
    ],
)
def test_a_later_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str, layout: int, refused: int, warned: int
) -> None:
    """A later layout raises an error; a later version with the present layout is read, with a warning."""
    checkpoint = torch.load(RELEASE, weights_only=True)
    checkpoint["sde_diffusion"].update(version=version, format=layout)
    torch.save(checkpoint, tmp_path / "later.ckpt")
    with contextlib.ExitStack() as expected:
        if refused:
            said = f"written by sde_diffusion '{version}', in a layout that this version, .* cannot read"
            expected.enter_context(pytest.raises(UserError, match=said))
        read_checkpoint(tmp_path / "later.ckpt")
    assert ("an earlier version" in caplog.text) == bool(warned)


def test_the_releases_checkpoint_loads_for_ever() -> None:
    """Written by version 0.1.0, which drew these values."""
    from sde_diffusion import AncestralSampler

    model = ScoreModel.load_from_checkpoint(RELEASE)
    x = AncestralSampler(steps=10, eta=0.0)(model.denoiser, (2, 1, 8, 8), seeds=[0, 1]).x
    assert x[:, 0, 3, 3].tolist() == pytest.approx([-0.2553221583, -0.2755247951], abs=1e-5)
    assert float(x.std()) == pytest.approx(0.6198373437, abs=1e-5)


def test_the_releases_run_is_resumed_for_ever(command: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(CONTENT)
    done = command("train", "ckpt=run/checkpoints/last.ckpt", "trainer.max_steps=22", cwd=tmp_path)
    assert done.status == 0, done.err
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 22
