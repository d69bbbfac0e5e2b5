"""A run that was stopped and resumed ends, bit for bit, like the uninterrupted one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import MLP, UNET, make_model, make_trainer, make_vdm, ring, same

from sde_diffusion.data import DataModule, Digits
from sde_diffusion.training import EMA, ScoreModel

STEPS = 20


def images() -> tuple[ScoreModel, DataModule]:
    """A conditional U-Net with dropout, in epochs of 11 batches."""
    model = make_model({**UNET, "n_classes": 10}, n_classes=10, label_dropout=0.5, validation_draws=1)
    return model, Digits(batch_size=128, min_batches_per_epoch=1)


def points() -> tuple[ScoreModel, DataModule]:
    """A perceptron in epochs of 8 batches."""
    return make_model(MLP), ring()


def run(make: Any, folder: Path, *callbacks: Callback, ckpt: Path | None = None, **options: Any) -> dict[str, Any]:
    """Train to the end, and read the checkpoint written there."""
    model, data = make()
    trainer = make_trainer(folder, *callbacks, EMA(0.95), **{"max_steps": STEPS, **options})
    trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    checkpoint: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return checkpoint


def assert_same_end(a: dict[str, Any], b: dict[str, Any]) -> None:
    for part in ("current_model_state", "state_dict", "optimizer_states"):
        assert same(a[part], b[part]), part
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert a["callbacks"]["EMA"] == b["callbacks"]["EMA"]
    assert a["global_step"] == b["global_step"]


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)


CHECKPOINTING = {"enable_checkpointing": True}


@pytest.fixture(scope="module", params=[points, images], ids=["points", "images"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return request.param, folder, run(request.param, folder, every_step(folder), **CHECKPOINTING)


@pytest.mark.parametrize("step", [3, 8, 11, 17])  # 8 and 11 end an epoch
def test_resumed_from_a_checkpoint_within_the_run(uninterrupted: tuple, tmp_path: Path, step: int) -> None:
    make, folder, expected = uninterrupted
    assert_same_end(run(make, tmp_path, ckpt=folder / f"step={step}.ckpt"), expected)


def test_a_learned_path_and_its_times_are_resumed(tmp_path: Path) -> None:
    """The path's weights in both sets of weights, and what the distribution of the times has measured."""

    def make() -> tuple[ScoreModel, DataModule]:
        return make_vdm(), ring()

    expected = run(make, tmp_path, every_step(tmp_path), **CHECKPOINTING)
    assert_same_end(run(make, tmp_path, ckpt=tmp_path / "step=13.ckpt"), expected)
    average, raw = expected["state_dict"], expected["current_model_state"]
    for name in ("moves", "schedule.logits"):
        assert bool((average[f"denoiser.sde.{name}"] != raw[f"denoiser.sde.{name}"]).any())
    assert bool((average["objective.times.moments"].isfinite()).all())


@pytest.mark.parametrize("step", [8, 13])
def test_resumed_after_a_run_that_reached_its_steps(uninterrupted: tuple, tmp_path: Path, step: int) -> None:
    """The checkpoint written after training, when the model holds the average already."""
    make, _, expected = uninterrupted
    run(make, tmp_path, max_steps=step)
    (tmp_path / "end.ckpt").rename(tmp_path / "stopped.ckpt")
    assert_same_end(run(make, tmp_path, ckpt=tmp_path / "stopped.ckpt"), expected)


def test_resumed_from_a_checkpoint_written_at_a_validation(uninterrupted: tuple, tmp_path: Path) -> None:
    """Validation every 5 steps does not change the training, and its checkpoints resume like any other."""
    make, _, expected = uninterrupted
    options = {**CHECKPOINTING, "limit_val_batches": 1, "val_check_interval": 5, "check_val_every_n_epoch": None}
    best = ModelCheckpoint(tmp_path, "{step}", monitor="val/loss", save_top_k=-1)
    assert_same_end(run(make, tmp_path, best, **options), expected)
    for step in (5, 15):
        assert_same_end(run(make, tmp_path, ckpt=tmp_path / f"step={step}.ckpt", **options), expected)


def test_twice_interrupted(uninterrupted: tuple, tmp_path: Path) -> None:
    make, folder, expected = uninterrupted
    run(make, tmp_path, every_step(tmp_path), ckpt=folder / "step=4.ckpt", max_steps=15, **CHECKPOINTING)
    assert_same_end(run(make, tmp_path, ckpt=tmp_path / "step=14.ckpt"), expected)


def test_with_accumulated_gradients(tmp_path: Path) -> None:
    """Two batches per step; the stop is in the middle of an epoch of four steps."""
    expected = run(points, tmp_path, every_step(tmp_path), accumulate_grad_batches=2, max_steps=10, **CHECKPOINTING)
    resumed = run(points, tmp_path, ckpt=tmp_path / "step=5.ckpt", accumulate_grad_batches=2, max_steps=10)
    assert_same_end(resumed, expected)


def test_each_step_draws_noise_of_its_own_that_a_restart_does_not_repeat(uninterrupted: tuple, tmp_path: Path) -> None:
    """A resumed run must not be seeded as at its beginning."""
    make, folder, _ = uninterrupted
    again = run(make, tmp_path, ckpt=folder / "step=17.ckpt", max_steps=18)
    other = torch.load(folder / "step=18.ckpt", weights_only=True)
    assert same(again["current_model_state"], other["current_model_state"])
    model, data = make()
    model.hparams["seed"] = 1
    trainer = make_trainer(tmp_path, EMA(0.95), max_steps=18)
    trainer.fit(model, data, ckpt_path=folder / "step=17.ckpt", weights_only=True)
    trainer.save_checkpoint(tmp_path / "seed.ckpt")
    seeded = torch.load(tmp_path / "seed.ckpt", weights_only=True)
    assert not same(seeded["current_model_state"], other["current_model_state"])
