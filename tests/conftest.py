"""Settings of the test run, and the commands as fixtures."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The tests' tensors are small: a second thread only waits for the first, and where processors are shared it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).parents[1]
TINY = (
    "network=mlp",
    "network.width=32",
    "network.depth=1",
    "trainer.max_steps=30",
    "trainer.val_check_interval=15",
    "trainer.log_every_n_steps=5",
    "callbacks.samples.n=4",
    "sampler=ddpm",
    "sampler.steps=5",
)

BUDGET = {
    "(root)": 55,
    "checks": 5,
    "commands": 450,
    "conditions": 5,
    "data": 20,
    "denoiser": 16,
    "density": 62,
    "faults": 60,
    "guidance": 16,
    "metrics": 40,
    "modality": 10,
    "nn": 12,
    "sampling": 265,
    "pretrained": 10,
    "sde": 12,
    "storage": 32,
    "text": 8,
    "training": 120,
    "variational": 35,
}
"""Seconds on one core that the quick tests of a folder may take, so that two cores finish in ten minutes."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The time of the tests of each folder, and the time that they may take."""
    took: dict[str, float] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            parts = Path(report.nodeid.partition("::")[0]).relative_to("tests").parts
            folder = parts[0] if len(parts) > 1 else "(root)"
            took[folder] = took.get(folder, 0.0) + report.duration
    if len(took) > 1:
        terminalreporter.section("seconds by folder")
        for folder, seconds in sorted(took.items()):
            budget = BUDGET.get(folder, 0)
            over = "   over its budget" if seconds > budget else ""
            terminalreporter.write_line(f"{folder:12}{seconds:6.0f} of {budget:4}{over}")
        terminalreporter.write_line(f"{'all':12}{sum(took.values()):6.0f} of {sum(BUDGET.values()):4}")


@dataclass
class Finished:
    """How a command ended, what it printed, and, if they were recorded, its changes of files and calls of functions."""

    status: int
    out: str
    err: str
    changes: int = 0
    calls: int = 0


class Server:
    """Runs commands in forks of a process that has imported everything: about one second each, not five."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, command: str, *overrides: str, cwd: Path, **faults: Any) -> Finished:
        """Run a command; `faults` are those of `faults.inject`."""
        words = [str(override) for override in overrides]
        request = json.dumps({"command": command, "overrides": words, "cwd": str(cwd), "faults": faults}, default=str)
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()
        return Finished(**json.loads(self.process.stdout.readline()))


@pytest.fixture
def waits():
    """Have what waits for the device raise an error from `waits()` on, till `waits("default")` or the test's end."""

    def debug(mode: str = "error") -> None:
        import torch

        torch.cuda.set_sync_debug_mode(mode)

    yield debug
    debug("default")


@pytest.fixture(scope="session")
def command():
    """command("train", "sde=ve", cwd=FOLDER) -> Finished."""
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory) -> Path:
    """The folder of a tiny run on the digits; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command("train", *TINY, f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="session")
def classes(command, tmp_path_factory) -> Path:
    """The checkpoint of a tiny run with classes, whose pictures were guided; not to be changed."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    settings = ("conditional=true", "guidance=cfg", "guidance.scale=5", f"hydra.run.dir={folder}")
    done = command("train", *TINY, *settings, cwd=folder.parent)
    assert done.status == 0, done.err
    assert done.out.count("guidance=cfg guidance.scale=5") == 3  # in the commands to try next
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def autoencoder(command, tmp_path_factory) -> Path:
    """The checkpoint of a tiny variational autoencoder of the digits; not to be changed."""
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    settings = (
        "model=vae",
        "model.autoencoder.latent_dim=4",
        "model.autoencoder.width=32",
        "model.warmup_steps=5",
        "model.lr=5e-3",
    )
    shorter = ("trainer.max_steps=60", "trainer.val_check_interval=30", "callbacks.samples.n=4")
    done = command("train", *settings, *shorter, f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.status == 0, done.err
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def start():
    """start("train", "sde=ve", cwd=FOLDER) -> a separate process, to be stopped as by a user or a power cut."""

    def begin(command: str, *overrides: str, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", command if "." in command else f"sde_diffusion.{command}", *map(str, overrides)],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests themselves run in the background, a shell has told them to ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return begin


def serve() -> None:
    """Fork for each request on stdin; answer on stdout."""
    import lightning.pytorch  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torchdiffeq  # noqa: F401
    import torchsde  # noqa: F401

    from sde_diffusion import data, evaluate, likelihood, metrics, restore, sample, sweep, train, training  # noqa: F401

    for name in ("evaluate", "likelihood", "restore", "sample", "sweep", "train"):
        importlib.import_module(f"sde_diffusion.commands.{name}")

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from faults.inject import inject

    from benchmarks import guidance, nfe_fid

    mains = {
        "nfe_fid": nfe_fid.main,
        "guidance": guidance.main,
        "train": train.main,
        "sample": sample.main,
        "restore": restore.main,
        "evaluate": evaluate.main,
        "likelihood": likelihood.main,
        "sweep": sweep.main,
    }
    for line in sys.stdin:
        request = json.loads(line)
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            tempfile.TemporaryFile("w+") as counts,
        ):
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(request["cwd"])
                main = mains[request["command"]]
                sys.argv = [inspect.getfile(main), *request["overrides"]]  # which other processes are started with
                counted = inject(**request["faults"])
                try:
                    main()
                    status = 0
                except SystemExit as end:
                    status = end.code or 0
                except BaseException:
                    traceback.print_exc()
                    status = 1
                sys.stdout.flush()
                sys.stderr.flush()
                os.pwrite(counts.fileno(), json.dumps(counted()).encode(), 0)
                os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for file in (out, err, counts):
                file.seek(0)
            answer = {"status": status, "out": out.read(), "err": err.read(), **json.loads(counts.read() or "{}")}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
