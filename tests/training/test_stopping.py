"""A signal at any point of a step or a validation: the resumed run ends, bit for bit, like the uninterrupted one."""

import csv
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, loops
from tiny import make_model, make_trainer, ring, same

import sde_diffusion
from sde_diffusion.modality import Points, pictures
from sde_diffusion.sampling import AncestralSampler
from sde_diffusion.storage import signals
from sde_diffusion.training import EMA
from sde_diffusion.training.callbacks import BestCheckpoint, FinalValidation, LastCheckpoint, SampleGrid
from sde_diffusion.training.loggers import CSVLogger
from sde_diffusion.training.noise_levels import LossByNoiseLevel

STEPS = 11
WATCHED = tuple(str(Path(package.__file__).parent) for package in (sde_diffusion, loops))


class SignalAtCall(Callback):
    """Send a signal at the k-th call of a function of this package or of Lightning's loops, within some steps.

    The steps from `first` to before `end` hold what there is: an epoch's end (4, 8), a validation (5, 10), rows of
    metrics (each second step), and with accumulation an optimizer step's second half.
    """

    def __init__(self, k: int = -1, number: int = signal.SIGTERM, first: int = 3, end: int = 6) -> None:
        self.k, self.number, self.first, self.end = k, number, first, end
        self.calls, self.sent_in = 0, ""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.first and not self.calls:
            sys.setprofile(self._count)
        elif trainer.global_step == self.end:
            sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(WATCHED):
            self.calls += 1
            if self.calls == self.k:
                self.sent_in = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"
                sys.setprofile(None)
                os.kill(os.getpid(), self.number)


def run(folder: Path, *more: Callback, ckpt: Path | None = None, **options: Any) -> None:
    """Eleven steps in epochs of four batches, a validation of three batches every five, a row every second step."""
    trainer = make_trainer(
        folder,
        *more,
        EMA(0.9),
        FinalValidation(),
        SampleGrid(folder / "samples", AncestralSampler(1), n=1, every_n_validations=2),
        LossByNoiseLevel(folder, bins=2),
        BestCheckpoint(folder, "best", monitor="val/loss", enable_version_counter=False),
        LastCheckpoint(folder),
        **{
            "max_steps": STEPS,
            "logger": CSVLogger(folder),
            "log_every_n_steps": 2,
            "val_check_interval": 5,
            "check_val_every_n_epoch": None,
            "limit_val_batches": None,
            "enable_checkpointing": True,
            **options,
        },
    )
    model = make_model(validation_draws=1, schedule="cosine")
    trainer.fit(model, ring(n_train=64, n_val=40), ckpt_path=ckpt, weights_only=True)


def left(folder: Path) -> dict[str, Any]:
    """The results of a run."""
    tables = {}
    for name in ("metrics.csv", "noise_levels.csv"):
        with (folder / name).open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    kept = {name: torch.load(folder / name, weights_only=True) for name in ("last.ckpt", "best.ckpt")}
    return {**tables, **kept}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in ("metrics.csv", "noise_levels.csv"):
        assert a[name] == b[name], name
    for name in ("last.ckpt", "best.ckpt"):
        mine, theirs = a[name], b[name]
        for part in ("current_model_state", "state_dict", "optimizer_states"):
            assert same(mine[part], theirs[part]), (name, part)
        for part in ("global_step", "epoch", "lr_schedulers"):
            assert mine[part] == theirs[part], (name, part)
        for state in ("EMA", "SampleGrid"):
            assert mine["callbacks"][state] == theirs["callbacks"][state], (name, state)
    best, other = (next(v for k, v in x["last.ckpt"]["callbacks"].items() if k.startswith("ModelCh")) for x in (a, b))
    assert best["best_model_score"] == other["best_model_score"]
    mine, theirs = (x["last.ckpt"]["loops"]["fit_loop"] for x in (a, b))
    for part in ("epoch_progress", "epoch_loop.batch_progress"):
        assert mine[part] == theirs[part], part


def no_pictures(patch: pytest.MonkeyPatch) -> None:
    for home, name in ((Points, "draw"), (pictures, "loss_by_level"), (pictures, "save")):
        patch.setattr(home, name, lambda *_: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pictures, which take longest; signal handlers as at the start of a program."""
    no_pictures(monkeypatch)
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in signals.SIGNALS:  # where the tests themselves run in the background, some are ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    sys.setprofile(None)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module", params=[1, 2], ids=lambda n: f"accumulate{n}")
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, int, dict[str, Any]]:
    """Number of batches per step, number of calls, and the results of the run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    counting = SignalAtCall()
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        run(folder, counting, accumulate_grad_batches=request.param)
    return request.param, counting.calls, left(folder)


def stopped_and_resumed(folder: Path, uninterrupted: tuple[int, int, dict[str, Any]], k: int, number: int) -> str:
    """Where the signal was sent; the resumed run is compared."""
    accumulate, _, expected = uninterrupted
    sender = SignalAtCall(k, number)
    with pytest.raises(signals.Stopped) as caught:
        run(folder, sender, accumulate_grad_batches=accumulate)
    sys.setprofile(None)
    assert caught.value.code == 128 + number
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # as before
    run(folder, ckpt=folder / "last.ckpt", accumulate_grad_batches=accumulate)
    assert_same(left(folder), expected)
    return sender.sent_in


def places(calls: int, n: int) -> list[tuple[int, int]]:
    """n places spread over the calls, with the signals in turn."""
    spread = [1 + i * (calls - 1) // (n - 1) for i in range(n)]
    return [(k, signals.SIGNALS[i % len(signals.SIGNALS)]) for i, k in enumerate(spread)]


def test_a_signal_at_some_places(uninterrupted: tuple[int, int, dict[str, Any]], tmp_path: Path) -> None:
    for k, number in places(uninterrupted[1], 8):
        stopped_and_resumed(tmp_path / str(k), uninterrupted, k, number)


@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_a_signal_at_every_place(uninterrupted: tuple[int, int, dict[str, Any]], tmp_path: Path) -> None:
    """Every function that is called in three steps; STOPPING_PART=i/n takes the i-th of n parts."""
    part, parts = map(int, os.environ.get("STOPPING_PART", "0/1").split("/"))
    wrong = {}
    for k in range(1 + part, uninterrupted[1] + 1, parts):
        try:
            stopped_and_resumed(tmp_path / str(k), uninterrupted, k, signals.SIGNALS[k % len(signals.SIGNALS)])
        except (AssertionError, pytest.fail.Exception) as error:
            wrong[k] = str(error)[:200]
    assert not wrong


class Crash(Callback):
    """An error after which nothing is written, as in a power cut."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            raise ArithmeticError


def test_the_state_after_a_validation_within_a_step(
    uninterrupted: tuple[int, int, dict[str, Any]], tmp_path: Path
) -> None:
    """Validations every five batches: with two batches per step, within the third step."""
    accumulate, _, expected = uninterrupted
    with pytest.raises(ArithmeticError):
        run(tmp_path, Crash(), accumulate_grad_batches=accumulate, val_check_interval=5 if accumulate > 1 else 3)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    if accumulate > 1:
        run(tmp_path, ckpt=tmp_path / "last.ckpt", accumulate_grad_batches=accumulate)
        assert_same(left(tmp_path), expected)
