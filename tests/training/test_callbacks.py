"""Callbacks: divergence is detected before it is saved, pictures use the average, the bar counts correctly."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from test_ema import flat
from tiny import MLP, make_model, make_trainer, ring, tensors

from sde_diffusion import NetworkDenoiser
from sde_diffusion.data import Digits
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Images
from sde_diffusion.sampling import AncestralSampler, Sampler, Walk
from sde_diffusion.storage import progress
from sde_diffusion.training import EMA, ScoreModel
from sde_diffusion.training.callbacks import SampleGrid, StopOnNonFinite, TrainingProgress

EVERY_FIVE = {"limit_val_batches": 1, "val_check_interval": 5, "check_val_every_n_epoch": None}


class Spoil(Callback):
    """Put a NaN into the data of one step, or into a weight after it."""

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.where == "data" and trainer.global_step + 1 == self.step:
            batch["x"][3] = torch.nan

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.where == "weight" and trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).view(-1)[0] = torch.inf


@pytest.mark.parametrize(
    ("where", "step", "message"), [("data", 8, "loss became nan"), ("weight", 10, "weights became")]
)
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, where: str, step: int, message: str
) -> None:
    saved = ModelCheckpoint(tmp_path, "last", every_n_train_steps=5, enable_version_counter=False)
    trainer = make_trainer(
        tmp_path, Spoil(step, where), EMA(0.9), StopOnNonFinite(), saved, enable_checkpointing=True, max_steps=40
    )
    with pytest.raises(UserError, match=rf"{message}.* at step {step}: .*earlier checkpoints are kept"):
        trainer.fit(make_model(), ring())
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert all(torch.isfinite(tensor).all() for tensor in tensors(checkpoint[part]))


def test_on_a_gpu_the_loss_is_looked_at_every_so_many_steps(tmp_path: Path) -> None:
    """Simulated with a model that claims to be on a GPU: between checks the loss is not converted to a number."""

    class Loss:
        looked = 0

        def __float__(self) -> float:
            Loss.looked += 1
            return 1.0

    class Module:
        device = torch.device("cuda")

    class Run:
        global_step = 0

    stop = StopOnNonFinite(every_n_steps=10)
    for Run.global_step in range(1, 41):
        stop.on_train_batch_end(Run(), Module(), {"loss": Loss()}, None, 0)  # type: ignore[arg-type]
    assert Loss.looked == 4


class GlobalNoise(Sampler):
    """A sampler that, unlike the library's own, takes torch's global randomness."""

    def walk(self, x: torch.Tensor, run: Walk) -> torch.Tensor:
        return run.predict(x, run.sde.t_max).x0 + torch.randn(100)[:1]


def images(folder: Path, *more: Callback, **options: Any) -> ScoreModel:
    model = make_model({**MLP, "shape": [1, 8, 8], "n_classes": 10}, n_classes=10)
    trainer = make_trainer(folder, EMA(0.7), *more, max_steps=10, **{**EVERY_FIVE, **options})
    trainer.fit(model, Digits(batch_size=32))
    return model


def test_sample_grid_is_drawn_with_the_average_for_each_class(tmp_path: Path) -> None:
    sampler = AncestralSampler(steps=3)
    saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
    images(tmp_path, SampleGrid(tmp_path / "samples", sampler, n=12), saved, enable_checkpointing=True)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step-0000005.png", "step-0000010.png"]
    drawn = np.asarray(Image.open(tmp_path / "samples" / "step-0000005.png"))
    loaded = ScoreModel.load_from_checkpoint(tmp_path / "step=5.ckpt")
    label = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    assert np.array_equal(drawn, Images([1, 8, 8]).draw(sampler(loaded.denoiser, (12, 1, 8, 8), label=label).x))
    checkpoint = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    loaded.load_state_dict(checkpoint["current_model_state"])
    assert not np.array_equal(drawn, Images([1, 8, 8]).draw(sampler(loaded.denoiser, (12, 1, 8, 8), label=label).x))


def test_sample_grid_leaves_the_randomness_alone(tmp_path: Path) -> None:
    class State(Callback):
        states: list[torch.Tensor]

        def __init__(self) -> None:
            self.states = []

        def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
            self.states.append(torch.random.get_rng_state())

    without, with_grid = State(), State()
    plain = images(tmp_path, without)
    drawing = images(tmp_path, SampleGrid(tmp_path / "samples", GlobalNoise(), n=4), with_grid)
    assert torch.equal(flat(plain), flat(drawing))
    assert len(without.states) == 2
    assert all(torch.equal(a, b) for a, b in zip(without.states, with_grid.states, strict=True))


def test_sample_grid_every_second_validation_of_vectors(tmp_path: Path) -> None:
    grid = SampleGrid(tmp_path / "samples", AncestralSampler(steps=2), n=4, every_n_validations=2)
    make_trainer(tmp_path, grid, num_sanity_val_steps=1, **EVERY_FIVE).fit(make_model(), ring())
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step-0000010.png", "step-0000020.png"]


class Clock(Callback):
    """Half a second a batch, a hundred for each validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.now += 0.5

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.now += 100


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is told to the bar: its total, then step and text of each update, and None when it is taken away."""
    told: list[Any] = []
    bar = progress.bar

    @contextmanager
    def recorded(name: str, total: float | None, *arguments: Any) -> Iterator[Any]:
        if name != "step":
            with bar(name, total, *arguments) as made:
                yield made
            return
        told.append(total)
        with bar(name, total, *arguments) as made:
            update = made.update

            def note(step: int, *, text: str, **options: Any) -> None:
                told.append((step, text))
                update(step, text=text, **options)

            made.update = note  # type: ignore[method-assign, assignment]
            yield made
        told.append(None)

    monkeypatch.setattr(progress, "bar", recorded)
    return told


@pytest.mark.parametrize(
    ("refresh_every", "steps"), [(3, [3, 5, 6, 9, 10, 12, 15, 15, 18, 20]), (1000, [5, 10, 15, 20])]
)
def test_progress_counts_points_a_second_of_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shown: list[Any],
    refresh_every: int,
    steps: list[int],
) -> None:
    """16 points per half second are 32 per second, not counting validations, at any refresh rate of the bar."""
    bar, clock = TrainingProgress(refresh_every), Clock(monkeypatch)
    with caplog.at_level(logging.INFO, "sde_diffusion.storage.progress"):
        make_trainer(tmp_path, clock, bar, enable_progress_bar=True, **EVERY_FIVE).fit(make_model(), ring())
    lines = [record.getMessage() for record in caplog.records if record.name == "sde_diffusion.storage.progress"]
    assert [line.split()[:2] for line in lines] == [["step", "5"], ["step", "10"], ["step", "15"], ["step", "20"]]
    assert all("val " in line for line in lines)
    total, *updates, end = shown
    assert (total, end) == (20, None)
    assert [step for step, _ in updates] == steps
    assert all(text.endswith("  32 points/s") for _, text in updates)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("sde_diffusion")]


def test_a_long_validation_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three batches of a hundred seconds each."""
    options = {**EVERY_FIVE, "limit_val_batches": 3, "enable_progress_bar": True, "max_steps": 5}
    with caplog.at_level(logging.INFO, "sde_diffusion"):
        make_trainer(tmp_path, Clock(monkeypatch), TrainingProgress(), **options).fit(make_model(), ring())
    lines = lines_of(caplog)
    assert lines[:2] == [
        "validation batch  1 of 3, 1:40 so far, about 3:20 left",
        "validation batch  2 of 3, 3:20 so far, about 1:40 left",
    ]
    assert [line.split()[:2] for line in lines[2:]] == [["step", "5"]]


def test_compiling_counts_neither_in_the_speed_nor_in_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A first step of ten minutes, and 79 of half a second."""
    monkeypatch.setattr(NetworkDenoiser, "compile", lambda self: None)
    clock = Clock(monkeypatch)

    class Compiler(Callback):
        def on_before_backward(self, trainer: Any, *args: Any) -> None:
            clock.now += 600 * (trainer.global_step == 0)

    options = {"enable_progress_bar": True, "max_steps": 80}
    with caplog.at_level(logging.INFO, "sde_diffusion"):
        make_trainer(tmp_path, clock, Compiler(), TrainingProgress(), **options).fit(make_model(compile=True), ring())
    first, second, *lines = lines_of(caplog)
    assert (first.split(",")[0], second) == ("compiling the steps of training", "compiled")
    assert lines[0].startswith("step  2 of 80, 10:01 so far, about 0:39 left")  # 78 steps of half a second
    assert all(line.endswith("  32 points/s)") for line in lines)


def test_without_a_terminal_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a minute is 60 steps."""
    with caplog.at_level(logging.INFO, "sde_diffusion.storage.progress"):
        make_trainer(tmp_path, Clock(monkeypatch), TrainingProgress(), enable_progress_bar=True, max_steps=200).fit(
            make_model(), ring()
        )
    lines = [record.getMessage() for record in caplog.records if record.name == "sde_diffusion.storage.progress"]
    assert [line.split()[1] for line in lines] == ["60", "120", "180"]
    assert lines[0].startswith("step  60 of 200, 0:30 so far, about 1:10 left")  # 140 steps of half a second
    assert lines[0].endswith("  32 points/s)")


def test_the_bar_is_taken_away_when_a_run_fails(tmp_path: Path, shown: list[Any]) -> None:
    trainer = make_trainer(tmp_path, Spoil(8, "data"), StopOnNonFinite(), TrainingProgress(4), enable_progress_bar=True)
    with pytest.raises(UserError, match="loss became nan"):
        trainer.fit(make_model(), ring())
    assert [shown[0], shown[1][0], shown[-1]] == [20, 4, None]


@pytest.mark.parametrize("make", [lambda: StopOnNonFinite(0), lambda: SampleGrid(".", AncestralSampler(), n=0)])
def test_counts_below_one_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make()
