"""Two processes (gloo): a signal to either, to both or to their group, or the death of one, soon ends them all."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import same

ROOT = Path(__file__).parents[2]
SOON = 15  # seconds
TINY = (
    "network=mlp",
    "network.width=32",
    "network.depth=1",
    "data.min_batches_per_epoch=30",
    "callbacks.samples=null",
    "trainer.val_check_interval=20",
    "trainer.log_every_n_steps=5",
    "model.schedule=constant",
    "trainer.devices=2",
    "trainer.accelerator=cpu",
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass
class Run:
    """A training run in processes of its own."""

    main: subprocess.Popen[bytes]
    folder: Path

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def children(self) -> list[int]:
        """The run's processes that the first one has started, not its other helpers, such as git."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                spawned = "spawn_main" in (entry / "cmdline").read_text()
                launched = "LOCAL_RANK=1" in (entry / "environ").read_text()
            except (OSError, IndexError):
                continue
            if parent == self.main.pid and (spawned or launched):
                found.append(int(entry.name))
        return found

    def wait_for(self, condition: Any) -> None:
        until = time.monotonic() + 120
        while not condition():
            assert self.main.poll() is None, self.printed()
            assert time.monotonic() < until
            time.sleep(0.02)

    def send(self, number: int, target: str) -> None:
        children = self.children()
        for name in target.split("+"):
            if name == "group":
                os.killpg(self.main.pid, number)
            else:
                os.kill(self.main.pid if name == "first" else children[-1], number)

    def ends(self, children: list[int]) -> int:
        """The first process's status, when all have ended."""
        until = time.monotonic() + SOON
        status = self.main.wait(SOON)
        while any(alive(child) for child in children):
            assert time.monotonic() < until, "a process is left"
            time.sleep(0.05)
        return status

    def printed(self) -> str:
        return (self.folder.parent / "printed").read_text()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listens(pid: int) -> bool:
    """Whether a process already handles SIGTERM; while Python starts, the system would end it."""
    (caught,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Any]:
    """begin(overrides) -> Run."""
    runs = []

    def start(*overrides: str, steps: int = 100_000, strategy: str = "ddp", name: str = "run") -> Run:
        folder = tmp_path / name
        where = () if any(word.startswith("ckpt=") for word in overrides) else (*TINY, f"hydra.run.dir={folder}")
        words = (*where, f"trainer.max_steps={steps}", f"trainer.strategy={strategy}", *overrides)
        with (tmp_path / "printed").open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "sde_diffusion.train", *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in SIGNALS],
            )
        runs.append(Run(process, folder))
        return runs[-1]

    yield start
    for run in runs:
        try:
            os.killpg(run.main.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        run.main.wait()


def stopped(run: Run, number: int, target: str) -> int:
    """Send a signal some steps after a checkpoint was written."""
    run.wait_for(run.last.is_file)
    time.sleep(0.3)
    children = run.children()
    run.send(number, target)
    return run.ends(children)


TARGETS = ("first", "second", "first+second", "group")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "target"), itertools.product(SIGNALS, TARGETS))
def test_a_signal_ends_all_and_the_run_can_be_resumed(begin: Any, number: int, target: str) -> None:
    run = begin()
    assert stopped(run, number, target) == 128 + number, run.printed()
    assert "Traceback" not in run.printed()
    assert f"ckpt={run.last}" in run.printed()
    reached = torch.load(run.last, weights_only=True)["global_step"]
    again = begin(f"ckpt={run.last}", steps=reached + 20)
    assert again.main.wait(120) == 0, again.printed()
    assert torch.load(run.last, weights_only=True)["global_step"] == reached + 20


@pytest.mark.slow
@pytest.mark.parametrize("target", ["first", "second"])
def test_the_death_of_one_ends_the_other(begin: Any, target: str) -> None:
    run = begin()
    assert stopped(run, signal.SIGKILL, target) in (
        (-9,) if target == "first" else (1, -9)
    )  # Lightning's observer kills
    assert torch.load(run.last, weights_only=True)["global_step"] % 20 == 0
    assert "Traceback" not in run.printed()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_signal_while_the_processes_find_each_other(begin: Any, target: str) -> None:
    run = begin()
    run.wait_for(lambda: run.children() and listens(run.children()[-1]))
    children = run.children()
    run.send(signal.SIGTERM, target)
    assert run.ends(children) == 143, run.printed()
    assert "Traceback" not in run.printed()
    assert any(words in run.printed() for words in ("no checkpoint to resume from", "ended while it waited"))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_spawned_processes(begin: Any, target: str) -> None:
    """trainer.strategy=ddp_spawn, where the first process only waits."""
    run = begin(strategy="ddp_spawn")
    assert stopped(run, signal.SIGTERM, target) == 143, run.printed()
    assert f"ckpt={run.last}" in run.printed()


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(begin: Any) -> None:
    run = begin("callbacks.last.folder=checkpoints")
    run.wait_for((run.folder.parent / "checkpoints" / "last.ckpt").is_file)
    children = run.children()
    os.kill(run.main.pid, signal.SIGSTOP)
    run.send(signal.SIGTERM, "first")
    run.send(signal.SIGINT, "first")
    os.kill(run.main.pid, signal.SIGCONT)
    assert run.ends(children) in (130, 143), run.printed()


@pytest.mark.slow
def test_stopped_and_resumed_ends_where_the_unbroken_run_does(begin: Any) -> None:
    complete = begin(steps=200, name="complete")
    assert complete.main.wait(200) == 0, complete.printed()
    broken = begin(steps=200)
    assert stopped(broken, signal.SIGUSR1, "second") == 138, broken.printed()
    assert 20 <= torch.load(broken.last, weights_only=True)["global_step"] < 200
    again = begin(f"ckpt={broken.last}", steps=200)
    assert again.main.wait(120) == 0, again.printed()
    a, b = (torch.load(run.last, weights_only=True) for run in (complete, broken))
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert same(a[part], b[part]), part
    assert (complete.folder / "metrics.csv").read_text() == (broken.folder / "metrics.csv").read_text()
