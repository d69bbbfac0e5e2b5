"""Each command, stopped by each signal at places all over its run: status, message, and the same results at the end."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from signalled import Finished, Server

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
TINY = (
    *("network.width=32", "network.depth=1", "data.min_batches_per_epoch=10", "callbacks.samples.n=2"),
    *("trainer.max_steps=12", "trainer.val_check_interval=5", "trainer.log_every_n_steps=2", "model.warmup_steps=3"),
    *("sampler=ddim", "sampler.steps=2"),
)
WALK = ("sampler=ddim", "sampler.steps=3")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def ckpt(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert server("train", *TINY, f"hydra.run.dir={folder / 'run'}", cwd=folder).status == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


def places(calls: int, n: int) -> Iterator[tuple[int, int]]:
    for i in range(n):
        yield 1 + i * (calls - 1) // (n - 1), SIGNALS[i % len(SIGNALS)]


def assert_stopped(done: Finished, number: int) -> None:
    """The status says by what; no traceback."""
    assert done.status == 128 + number, (done.out, done.err)
    assert "Traceback" not in done.out + done.err, done.err


def trained(folder: Path) -> dict[str, Any]:
    tables = {name: (folder / name).read_text() for name in ("metrics.csv", "noise_levels.csv")}
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights = torch.cat([value.flatten() for value in last["state_dict"].values()]).tolist()
    pictures = sorted(path.name for path in (folder / "samples").iterdir())
    return {**tables, "weights": weights, "pictures": pictures, "schedule": last["lr_schedulers"]}


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*.part")]


def check_train(server: Server, tmp_path: Path, n: int) -> None:
    whole = tmp_path / "whole"
    done = server("train", *TINY, f"hydra.run.dir={whole}", cwd=tmp_path)
    assert done.status == 0, done.err
    expected, after = trained(whole), 0
    for at, number in places(done.calls, n):
        folder = tmp_path / str(at)
        last = folder / "checkpoints" / "last.ckpt"
        stopped = server("train", *TINY, f"hydra.run.dir={folder}", cwd=tmp_path, at=at, number=number)
        if stopped.status == 0:  # after the last step, which is too late
            after += 1
        else:
            assert_stopped(stopped, number)
            if last.is_file():
                assert f"ckpt={last}" in stopped.out
                again = server("train", f"ckpt={last}", cwd=tmp_path)
            else:
                assert "Resume with" not in stopped.out
                again = server("train", *TINY, f"hydra.run.dir={folder}", cwd=tmp_path)
            assert again.status == 0, again.err
        assert trained(folder) == expected
        assert not leftovers(folder)
        shutil.rmtree(folder)
    assert after <= max(1, n // 5)


RESULTS = {
    "sample": ("n=40", "batch_size=10", *WALK),
    "evaluate": ("n=80", "batch_size=40", "metrics=[kernel]", *WALK),
    "likelihood": ("n=12", "batch_size=4", "rtol=1e-2", "atol=1e-2", "elbo=null"),
    "nfe_fid": ("nfe=[2,3]", "n=200", "exact=true"),
}


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".csv":
            found[path.name] = path.read_text()
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found[path.name] = {name: arrays[name].tolist() for name in arrays}
        elif path.suffix == ".json":
            found[path.name] = None  # there; with times in it
    return found


def check_result(server: Server, ckpt: Path, command: str, tmp_path: Path, n: int) -> None:
    words = (f"ckpt={ckpt}", *RESULTS[command])
    whole = server(command, *words, f"out={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.status == 0, whole.err
    expected = result(tmp_path / "whole")
    assert expected
    for at, number in places(whole.calls, n):
        folder = tmp_path / str(at)
        stopped = server(command, *words, f"out={folder}", cwd=tmp_path, at=at, number=number)
        if stopped.status:
            assert_stopped(stopped, number)
            again = server(command, *words, f"out={folder}", cwd=tmp_path)
            finished = "exists already" in again.err  # where the signal came after the last file
            assert again.status == (1 if finished else 0), (at, again.err)
        assert json.dumps(result(folder)) == json.dumps(expected), at
        assert not leftovers(folder)
        shutil.rmtree(folder)


def test_train_at_some_places(server: Server, tmp_path: Path) -> None:
    check_train(server, tmp_path, 3)


def test_sample_at_some_places(server: Server, ckpt: Path, tmp_path: Path) -> None:
    check_result(server, ckpt, "sample", tmp_path, 3)


@pytest.mark.slow
def test_train_at_many_places(server: Server, tmp_path: Path) -> None:
    check_train(server, tmp_path, 120)


@pytest.mark.slow
@pytest.mark.parametrize("command", RESULTS)
def test_results_at_many_places(command: str, server: Server, ckpt: Path, tmp_path: Path) -> None:
    check_result(server, ckpt, command, tmp_path, 20)


def test_how_to_go_on_is_said(server: Server, ckpt: Path, tmp_path: Path) -> None:
    words = (f"ckpt={ckpt}", *RESULTS["sample"], f"out={tmp_path / 'out'}")
    calls = server("sample", *words, cwd=tmp_path).calls
    shutil.rmtree(tmp_path / "out")
    stopped = server("sample", *words, cwd=tmp_path, at=calls // 2, number=signal.SIGHUP)
    assert stopped.status == 129
    assert f"the same command with out={tmp_path / 'out'} resumes there" in stopped.out
