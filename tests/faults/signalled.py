"""Runs commands in forks of one process that has imported everything, and sends them a signal at a chosen place."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "sample", "evaluate", "likelihood", "sweep")


@dataclass
class Finished:
    """How a command ended, what it printed, and how many functions of this package it called."""

    status: int
    out: str
    err: str
    calls: int


class Server:
    """server("train", "sde=ve", cwd=FOLDER, at=1000, number=15): the signal comes at the 1000th call."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, command: str, *overrides: str, cwd: Path, at: int = -1, number: int = 15) -> Finished:
        request = {"command": command, "overrides": [str(o) for o in overrides], "cwd": str(cwd)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**request, "at": at, "number": int(number)}).encode() + b"\n")
        self.process.stdin.flush()
        return Finished(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Counter:
    """Counts calls of this package's functions, and sends the signal at one of them."""

    def __init__(self, at: int, number: int) -> None:
        self.calls, self.at, self.number = 0, at, number
        self.watched = (str(ROOT / "sde_diffusion"), str(ROOT / "benchmarks"))

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.watched):
            self.calls += 1
            if self.calls == self.at:
                sys.setprofile(None)
                os.kill(os.getpid(), self.number)


def child(request: dict[str, Any], mains: dict[str, Any], calls: Any) -> int:
    """The command in a fork; its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    sys.argv = [request["command"], *request["overrides"]]
    counter = Counter(request["at"], request["number"])
    status = 0
    try:
        from sde_diffusion import signals

        signals.listen()  # as the first line of every command does
        sys.setprofile(counter)
        mains[request["command"]]()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.setprofile(None)
    calls.write(str(counter.calls))
    calls.flush()
    return status


def serve() -> None:
    """Fork for each request on stdin; answer on stdout."""
    import lightning.pytorch  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torchdiffeq  # noqa: F401
    import torchsde  # noqa: F401

    sys.path.insert(0, str(ROOT))
    from benchmarks import nfe_fid

    mains = {"nfe_fid": nfe_fid.main}
    for name in COMMANDS:
        importlib.import_module(f"sde_diffusion.commands.{name}")
        mains[name] = importlib.import_module(f"sde_diffusion.{name}").main
    for line in sys.stdin:
        request = json.loads(line)
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            tempfile.TemporaryFile("w+") as n,
        ):
            pid = os.fork()
            if not pid:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                status = child(request, mains, n)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            for file in (out, err, n):
                file.seek(0)
            answer = {"status": status, "out": out.read(), "err": err.read(), "calls": int(n.read() or 0)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
