"""The results of a run do not depend on how often it was resumed: the same steps, rows and pictures."""

import csv
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny import make_model, make_trainer, ring

from sde_diffusion.sampling import AncestralSampler
from sde_diffusion.training import EMA
from sde_diffusion.training.callbacks import BestCheckpoint, FinalValidation, LastCheckpoint, SampleGrid
from sde_diffusion.training.loggers import CSVLogger
from sde_diffusion.training.noise_levels import LossByNoiseLevel


class Stop(Callback):
    """Send a signal, or raise as it would, at a step or in the validation after it."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step and self.how in ("SIGINT", "SIGTERM"):
            signal.raise_signal(signal.Signals[self.how])

    def on_validation_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step and self.how.startswith("validating"):
            signal.raise_signal(signal.Signals[self.how.split()[1]])


def run(folder: Path, max_steps: int, *more: Callback, ckpt: Path | None = None, **options: Any) -> None:
    """Epochs of 8 batches, a validation every 10, a row every 5, a picture every second validation."""
    trainer = make_trainer(
        folder,
        *more,
        EMA(0.9),
        FinalValidation(),
        SampleGrid(folder / "samples", AncestralSampler(2), n=2, every_n_validations=2),
        LossByNoiseLevel(folder, bins=2),
        BestCheckpoint(folder / "checkpoints", "best", monitor="val/loss", enable_version_counter=False),
        LastCheckpoint(folder / "checkpoints"),
        **{
            "max_steps": max_steps,
            "logger": CSVLogger(folder),
            "log_every_n_steps": 5,
            "val_check_interval": 10,
            "check_val_every_n_epoch": None,
            "limit_val_batches": None,
            "enable_checkpointing": True,
            **options,
        },
    )
    trainer.fit(make_model(), ring(), ckpt_path=ckpt, weights_only=True)


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def table(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> set[int]:
    return {int(path.stem.removeprefix("step-")) for path in (folder / "samples").iterdir()}


def assert_as_uninterrupted(folder: Path, uninterrupted: Path, ends: tuple[int, ...] = ()) -> None:
    """Equal files; at its additional ends the run has drawn further pictures."""
    assert table(folder) == table(uninterrupted)
    assert table(folder, "noise_levels.csv") == table(uninterrupted, "noise_levels.csv")
    assert pictures(uninterrupted) == {20, 40, 60, 80}
    assert pictures(folder) == {20, 40, 60, 80, *ends}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder, 80)
    assert [int(row["step"]) for row in table(folder) if row["train/loss"]] == list(range(4, 80, 5))
    assert [int(row["step"]) for row in table(folder) if row["val/loss"]] == list(range(9, 80, 10))
    return folder


@pytest.mark.slow
def test_thrice_resumed(uninterrupted: Path, tmp_path: Path) -> None:
    """Stops within an epoch (20, 30, 50) and at the end of one (40)."""
    run(tmp_path, 20)
    for steps in (30, 40, 50, 80):
        run(tmp_path, steps, ckpt=last(tmp_path))
    assert_as_uninterrupted(tmp_path, uninterrupted, ends=(30, 50))


@pytest.mark.parametrize(
    ("step", "how"),
    [
        (13, "SIGINT"),
        (16, "SIGTERM"),  # 16 and 40 end an epoch
        (20, "validating SIGTERM"),
        (40, "SIGINT"),
        *(pytest.param(step, "SIGINT", marks=pytest.mark.slow) for step in (16, 20)),
        *(pytest.param(step, "SIGTERM", marks=pytest.mark.slow) for step in (13, 20, 40)),
        pytest.param(20, "validating SIGINT", marks=pytest.mark.slow),
        *(pytest.param(40, f"validating {how}", marks=pytest.mark.slow) for how in ("SIGINT", "SIGTERM")),
    ],
)
def test_interrupted(uninterrupted: Path, tmp_path: Path, step: int, how: str, restored: None) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, 80, Stop(step, how))
    assert torch.load(last(tmp_path), weights_only=True)["global_step"] == step
    run(tmp_path, 80, ckpt=last(tmp_path))
    assert_as_uninterrupted(tmp_path, uninterrupted)


@pytest.fixture
def restored() -> Iterator[None]:
    """Signal handlers as at the start of a program; pytest's are restored afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_interrupted_in_the_last_validation(uninterrupted: Path, tmp_path: Path, restored: None) -> None:
    """The run has taken its last step: it ends like the uninterrupted one."""
    run(tmp_path, 80, Stop(80, "validating SIGINT"))
    assert torch.load(last(tmp_path), weights_only=True)["global_step"] == 80
    assert_as_uninterrupted(tmp_path, uninterrupted)


def test_from_an_earlier_state_with_rows_further_apart(uninterrupted: Path, tmp_path: Path) -> None:
    """Rows that an abandoned run logged after the checkpoint are dropped, whenever the next row comes."""
    run(tmp_path, 20)
    kept = last(tmp_path).rename(tmp_path / "20.ckpt")
    run(tmp_path, 40, ckpt=kept)
    run(tmp_path, 40, ckpt=kept, log_every_n_steps=10)
    assert [int(row["step"]) for row in table(tmp_path) if row["train/loss"]] == [4, 9, 14, 19, 29, 39]


@pytest.mark.parametrize("limit", [{"max_steps": 33}, {"max_steps": -1, "max_epochs": 3}])
def test_the_last_step_is_validated_and_drawn(tmp_path: Path, limit: dict[str, int]) -> None:
    """33 steps, or 3 epochs of 8, with validations each 10; resumed for 9 more, where it is so again."""
    end = 33 if limit["max_steps"] > 0 else 24
    options = {"val_check_interval": 10, **limit}
    run(tmp_path, options.pop("max_steps"), **options)
    assert [int(row["step"]) + 1 for row in table(tmp_path) if row["val/loss"]] == [*range(10, end, 10), end]
    assert pictures(tmp_path) == {20, end}
    run(tmp_path, end + 9, ckpt=last(tmp_path))
    assert int(table(tmp_path)[-1]["step"]) + 1 == end + 9
    assert end + 9 in pictures(tmp_path)
    assert torch.load(last(tmp_path), weights_only=True)["global_step"] == end + 9
