"""Warnings when a run is resumed with other data, other settings, or on another machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from sde_diffusion.commands.resumed_changes import warn_of_changes
from sde_diffusion.commands.resuming import _leaves_folder


@pytest.fixture(scope="module")
def stopped(command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the numbers of a file."""
    folder = tmp_path_factory.mktemp("numbers")
    numbers(folder, 0)
    words = ("data=arrays", f"data.path={folder / 'rows.npz'}", "trainer.max_steps=2", "data.min_batches_per_epoch=10")
    done = command("train", *TINY, *words, f"hydra.run.dir={folder / 'run'}", cwd=folder)
    assert done.status == 0, done.err
    return folder


def numbers(folder: Path, seed: int, n: int = 200) -> None:
    np.savez(folder / "rows.npz", train_images=np.random.default_rng(seed).uniform(-1, 1, (n, 2)))


def test_other_data_of_the_same_shape_stop_a_resumed_run(command: Any, stopped: Path) -> None:
    words = ("ckpt=run/checkpoints/last.ckpt", "trainer.max_steps=3")
    before = (stopped / "run" / "run.json").read_text()
    numbers(stopped, 1)
    done = command("train", *words, cwd=stopped)
    said = "these are not the data that the run was trained on (train: 170 items as before, but different ones"
    assert done.status == 1
    assert said in done.err
    assert f"add data.path={stopped / 'rows.npz'} to continue" in done.err
    assert command("train", *words, "data.batch_size=64", cwd=stopped).status == 1  # which names no other data
    assert (stopped / "run" / "run.json").read_text() == before
    for name in ("sample", "evaluate"):
        done = command(name, "ckpt=run/checkpoints/last.ckpt", "n=4", f"out={name}", cwd=stopped)
        assert done.status == 0, done.err
    scored = command("likelihood", "ckpt=run/checkpoints/last.ckpt", "n=2", "out=likelihood", cwd=stopped)
    assert scored.status == 0, scored.err
    assert "these are not the data that the model was trained on" in scored.out + scored.err
    numbers(stopped, 0, n=300)
    assert "train: 170 items then, 255 now" in command("train", *words, cwd=stopped).err
    done = command("train", *words, f"data.path={stopped / 'rows.npz'}", cwd=stopped)
    assert done.status == 0, done.err
    assert "Resumed with other data: train: 170 items then, 255 now" in done.out + done.err


def changes(caplog: pytest.LogCaptureFixture, run: dict[str, Any], cfg: dict[str, Any], record: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    caplog.clear()
    warn_of_changes(run, OmegaConf.create(cfg), record)
    return caplog.text


def test_settings_and_machines_that_change_the_weights_are_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    release = torch.load(Path(__file__).parents[1] / "releases" / "0.1.0.ckpt", weights_only=True)
    run = release["sde_diffusion"]["run"]
    same = {key: run[key] for key in ("seed", "model", "objective", "trainer", "callbacks")}
    assert changes(caplog, run, same, run["record"]) == ""
    harmless = {**same, "trainer": {**run["trainer"], "log_every_n_steps": 3, "devices": "auto"}}
    assert changes(caplog, run, harmless, run["record"]) == ""
    cheaper = {**same, "model": {**run["model"], "activation_checkpointing": True, "validation_draws": 3}}
    assert changes(caplog, run, cheaper, run["record"]) == ""
    other = {**same, "seed": 7, "trainer": {**run["trainer"], "precision": "64-true"}}
    assert "Resumed with seed 0 -> 7, trainer.precision '32-true' -> '64-true': the weights will differ" in changes(
        caplog, run, other, run["record"]
    )
    gpu = {**run["record"], "hardware": {**run["record"]["hardware"], "kind": "cuda", "devices": 4}}
    assert "kind 'cpu' -> 'cuda', devices 1 -> 4" in changes(caplog, run, same, gpu)
    newer = {**run["record"], "versions": {**run["record"]["versions"], "torch": "9.0"}}
    assert "torch '2.13.0+cpu' -> '9.0'" in changes(caplog, run, same, newer)
    longer = {**same, "trainer": {**run["trainer"], "max_steps": 40}}
    assert "max_steps 20 -> 40" in changes(caplog, run, longer, run["record"])
    constant = {**run, "model": {**run["model"], "schedule": "constant"}}
    assert changes(caplog, constant, {**longer, "model": constant["model"]}, run["record"]) == ""


@pytest.mark.parametrize(
    ("text", "away"),
    [
        *((text, False) for text in ("best", "sub/best", "val/loss", "{epoch}-{step}", "a..b", "")),
        *((text, True) for text in ("/x", "../x", "a/../../x", "~/x", "~", "C:\\x", "\\x", "..\\x", "file:///x")),
    ],
)
def test_texts_that_lead_out_of_a_folder(text: str, away: bool) -> None:
    assert _leaves_folder(text) == away
