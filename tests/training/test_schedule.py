"""The learning rate during a run: by steps, or by time if that is further, also in a resumed run."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import timer
from tiny import make_model, make_trainer, ring

from sde_diffusion import UserError
from sde_diffusion.training.callbacks import LastCheckpoint
from sde_diffusion.training.schedule import constant_schedule, cosine_schedule


class Rates(Callback):
    """A second for each step by the clock that limits the run; keep the rate of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.rates = 0.0, list[float]()
        monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: self.now))

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.now += 1


def rates(folder: Path, monkeypatch: pytest.MonkeyPatch, ckpt: Path | None = None, **options: Any) -> list[float]:
    seen = Rates(monkeypatch)
    settings = {"max_steps": -1, "max_epochs": -1, "enable_checkpointing": True, **options}
    trainer = make_trainer(folder, seen, LastCheckpoint(folder), **settings)
    trainer.fit(make_model(lr=1.0, warmup_steps=2, schedule="cosine"), ring(), ckpt_path=ckpt, weights_only=True)
    return seen.rates


def half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def test_shapes() -> None:
    assert [constant_schedule(step, 4, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    found = [cosine_schedule(step, 4, 104) for step in (0, 3, 4, 54, 104, 200)]
    assert found == pytest.approx([0.25, 1.0, 1.0, half_cosine(0.5), 0.0, 0.0], abs=1e-15)
    assert cosine_schedule(54, 4, 104, 0.75) == pytest.approx(half_cosine(0.75))
    assert cosine_schedule(54, 4, math.inf, 0.25) == pytest.approx(half_cosine(0.25))
    assert cosine_schedule(0, 4, math.inf, 0.1) == 0.25  # the rise is by steps alone
    assert cosine_schedule(2, 4, math.inf, 0.9) == pytest.approx(half_cosine(0.9))  # and no leap where it ends


def test_time_ends_the_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s at a second per step: the rate of step k + 1 is that of progress k/20."""
    found = rates(tmp_path, monkeypatch, max_time="00:00:00:20")
    assert found == pytest.approx([0.5, *(half_cosine(k / 20) for k in range(1, 20))])


def test_the_nearer_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = rates(tmp_path, monkeypatch, max_steps=10)
    assert rates(tmp_path, monkeypatch, max_steps=10, max_time="00:01:00:00") == pytest.approx(by_steps)
    assert by_steps == pytest.approx([0.5, 1.0, *(half_cosine((k - 2) / 8) for k in range(2, 10))])


def test_a_resumed_run_has_the_rates_of_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that earlier processes took counts."""
    uninterrupted = rates(tmp_path / "uninterrupted", monkeypatch, max_time="00:00:00:20")
    first = rates(tmp_path, monkeypatch, max_steps=7, max_time="00:00:00:20")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["callbacks"]["Timer"]["time_elapsed"]["train"] == 7
    second = rates(tmp_path, monkeypatch, ckpt=tmp_path / "last.ckpt", max_time="00:00:00:20")
    assert len(first) == 7
    assert second == pytest.approx(uninterrupted[7:])


def test_a_cosine_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"max_steps, max_time or max_epochs, or model\.schedule=constant"):
        rates(tmp_path, monkeypatch)
