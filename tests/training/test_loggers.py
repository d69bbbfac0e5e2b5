"""Loggers: a metrics file that survives resumes and failures, and wandb without prompts and long waits."""

import csv
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from lightning.pytorch import Callback
from tiny import make_model, make_trainer, ring

from sde_diffusion.training.loggers import CSVLogger, WandbLogger


def rows(folder: Path) -> list[tuple[int, str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row.get("a", ""), row.get("b", "")) for row in csv.DictReader(file)]


def write(folder: Path, values: dict[int, dict[str, float]]) -> None:
    logger = CSVLogger(folder)
    for step, metrics in values.items():
        logger.log_metrics(metrics, step)
    logger.finalize("success")


def test_csv_goes_on_with_a_resumed_run_without_repeating_it(tmp_path: Path) -> None:
    write(tmp_path, {0: {"a": 1.0}, 10: {"a": 2.0}, 20: {"a": 3.0}, 30: {"a": 4.0}})
    write(tmp_path, {20: {"a": 5.0}, 30: {"a": 6.0, "b": 7.0}})  # resumed from 15; a new column on the way
    write(tmp_path, {40: {"b": 8.0}})
    assert rows(tmp_path) == [
        (0, "1.0", ""),
        (10, "2.0", ""),
        (20, "5.0", ""),
        (30, "6.0", "7.0"),
        (40, "", "8.0"),
    ]


def test_csv_of_a_long_run_keeps_rows_flushed_in_between(tmp_path: Path) -> None:
    """Lightning writes at steps 99, 199, ...; the rows of both sides of a flush are there once."""
    write(tmp_path, {step: {"a": float(step)} for step in range(0, 250, 10)} | {199: {"b": 1.0}})
    write(tmp_path, {step: {"a": -float(step)} for step in range(150, 300, 10)} | {299: {"b": 1.0}})
    expected = [(step, str(float(step)), "") for step in range(0, 150, 10)]
    expected += [(step, str(-float(step)), "") for step in range(150, 300, 10)] + [(299, "", "1.0")]
    assert rows(tmp_path) == expected


@pytest.mark.parametrize("reached", ["constructed", "hyperparameters", "finalized"])
def test_csv_is_not_lost_when_the_resumed_run_fails_at_once(tmp_path: Path, reached: str) -> None:
    write(tmp_path, {0: {"a": 1.0}, 10: {"a": 2.0}})
    before = rows(tmp_path)
    logger = CSVLogger(tmp_path)
    if reached != "constructed":
        logger.log_hyperparams({"x": 1})
        logger.save()
    if reached == "finalized":
        logger.finalize("failed")
    assert rows(tmp_path) == before


def test_csv_with_half_a_row_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,step\n1.0,0\n2.0,10\n3.")
    write(tmp_path, {20: {"a": 4.0}})
    assert rows(tmp_path) == [(0, "1.0", ""), (10, "2.0", ""), (20, "4.0", "")]


class Kill(Callback):
    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == 11:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "a.ckpt")
        if trainer.global_step == 14:
            raise RuntimeError("killed")


def test_csv_of_a_training_killed_and_resumed_has_every_step_once(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        make_trainer(tmp_path, Kill(), logger=CSVLogger(tmp_path)).fit(make_model(), ring())
    make_trainer(tmp_path, logger=CSVLogger(tmp_path)).fit(make_model(), ring(), ckpt_path=tmp_path / "a.ckpt")
    make_trainer(tmp_path / "uninterrupted", logger=CSVLogger(tmp_path / "uninterrupted")).fit(make_model(), ring())
    assert [step for step, *_ in rows(tmp_path)] == list(range(20))
    assert (tmp_path / "metrics.csv").read_text() == (tmp_path / "uninterrupted" / "metrics.csv").read_text()


SCRIPT = """
import logging, time
logging.basicConfig(level=logging.INFO, format="LOG %(levelname)s %(message)s")
from sde_diffusion.training.loggers import WandbLogger
start = time.perf_counter()
logger = WandbLogger({folder!r}, timeout=2)
print("MODE", logger.experiment.settings.mode, "SECONDS", time.perf_counter() - start)
logger.log_metrics({{"loss": 1.0}}, 1)
logger.finalize("success")
print("END", time.time())
"""


def run_wandb(folder: Path, **environment: str) -> tuple[str, float]:
    """A process without a terminal, in a home of its own."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=str(folder))],
        env={**keep, "HOME": str(folder), "NETRC": str(folder / "netrc"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = time.time() - float(done.stdout.split("END ")[1])
    return done.stdout + done.stderr + f"LEFT {left}", time.perf_counter() - start


@pytest.mark.slow
def test_wandb_without_a_key_logs_offline_and_says_so_once(tmp_path: Path) -> None:
    output, _ = run_wandb(tmp_path)
    assert "MODE offline" in output
    assert output.count("LOG INFO wandb: no key found, logging offline") == 1
    assert "API key" not in output  # wandb's prompt
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wandb_with_an_unreachable_server_goes_on_offline(silent: bool, tmp_path: Path) -> None:
    """A port that refuses connections, and one that never answers: it waits for `timeout`, at the start only."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if silent else 9  # where nothing listens
        output, _ = run_wandb(tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{port}")
    assert "MODE offline" in output
    told = re.findall(r"LOG WARNING wandb: (.*)", output)
    assert len(told) == 1
    assert re.fullmatch(r"no answer from the server within 2 s, logging offline; upload later: wandb sync \S+", told[0])
    assert Path(told[0].split()[-1]).is_dir()
    # Both are 2 s and what starting wandb takes here (a second alone, more where others are at work); unmended it is 20
    # and more at the end.
    assert float(output.split("SECONDS ")[1].split()[0]) < 15
    assert float(output.split("LEFT ")[1].split()[0]) < 15


def test_wandb_with_a_malformed_key_says_so(tmp_path: Path, monkeypatch, caplog) -> None:  # type: ignore[no-untyped-def]
    """And asks no server."""
    modes = []
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda mode, **kw: modes.append(mode) or start(mode="disabled", **kw))
    monkeypatch.setenv("WANDB_API_KEY", "qwerty")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    WandbLogger(tmp_path)
    assert modes == ["offline"]
    assert "the key is malformed (40 or more letters, digits and underscores; it has 6 characters)" in caplog.text
    assert "no answer" not in caplog.text
    assert "qwerty" not in caplog.text


def test_wandb_that_fails_in_mid_run_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own process has died, or the upload does not finish in time."""
    logger = WandbLogger(tmp_path, mode="disabled", timeout=2)

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionResetError("Connection lost")

    logger._experiment.log = fail
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
    own = [record.getMessage() for record in caplog.records if record.name == "sde_diffusion.training.loggers"]
    assert own == ["wandb: Connection lost; training continues without it"]

    def late(**kwargs: object) -> None:
        raise TimeoutError

    logger._experiment.finish = late
    logger.finalize("success")
    assert re.search(r"wandb: the upload did not finish in 2 s; finish it with: wandb sync ", caplog.text)


def test_wandb_modes() -> None:
    with pytest.raises(ValueError, match="online, offline, disabled"):
        WandbLogger(".", mode="on")
