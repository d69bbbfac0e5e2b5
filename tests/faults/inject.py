"""Faults for a command in its own process: a kill before a change of a file or in time, a signal at a call."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from sde_diffusion.storage import signals

ROOT = Path(__file__).parents[2]

CHANGES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.truncate"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), (0, 1)),
    "os.fsync": (0,),
}
"""Python's audit events for changes of files, and which of their arguments are paths."""


class Tally:
    """Counts what changes files below `roots`, and ends the process by SIGKILL before number `kill_at`, from 0 on.

    What is opened for writing counts, and what is removed, renamed, made or flushed: between two of these the content
    of files that are being written grows, and nothing else.
    """

    def __init__(self, roots: Sequence[str], kill_at: int | None) -> None:
        self.roots = [os.path.realpath(root) for root in roots]
        self.kill_at, self.changes = kill_at, 0
        sys.addaudithook(self.hook)
        fsync = os.fsync
        os.fsync = lambda file: (self.hook("os.fsync", (f"/proc/self/fd/{file}",)), fsync(file))[
            1
        ]  # no event of its own

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
            paths = [path]
        elif event in CHANGES:
            paths = [arguments[place] for place in CHANGES[event]]
        else:
            return
        if any(self.below(path) for path in paths):
            if self.changes == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.changes += 1

    def below(self, path: Any) -> bool:
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        real = os.path.realpath(os.fsdecode(path))
        return any(real == root or real.startswith(root + os.sep) for root in self.roots)


class Calls:
    """Counts calls of this package's functions, and sends this process a signal at one of them, from 1 on.

    Args:
        signal_at: Which call, of all of them; or "NAME:NUMBER" for one of those of functions of this name.
        number: Which signal.
    """

    def __init__(self, signal_at: int | str, number: int) -> None:
        self.name, _, place = str(signal_at).rpartition(":")
        self.calls, self.signal_at, self.number = 0, int(place), number
        self.watched = (str(ROOT / "sde_diffusion"), str(ROOT / "benchmarks"))
        sys.setprofile(self.hook)

    def hook(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self.watched) and self.name in ("", code.co_name):
            self.calls += 1
            if self.calls == self.signal_at:
                sys.setprofile(None)
                os.kill(os.getpid(), self.number)


def inject(
    watch: Sequence[str] = (),
    kill_at: int | None = None,
    kill_after: float | None = None,
    environment: Mapping[str, str] | None = None,
    signal_at: int | str | None = None,
    number: int = signal.SIGTERM,
) -> Callable[[], dict[str, int]]:
    """Prepare this process.

    Args:
        watch: Folders.
        kill_at: Which change of a file below these not to survive.
        kill_after: After how many seconds to die.
        environment: Variables to set.
        signal_at: At which call of this package's functions to send a signal, see `Calls`; 0: only count them.
        number: Which signal.

    Returns:
        What tells how many changes and calls there have been.
    """
    os.environ.update(environment or {})
    calls = None
    if signal_at is not None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signals.listen()  # as the first line of every command does
        calls = Calls(signal_at, number)
    if kill_after is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a process wherever it is
        signal.setitimer(signal.ITIMER_REAL, kill_after)
    tally = Tally(watch, kill_at) if watch else None

    def counted() -> dict[str, int]:
        sys.setprofile(None)
        return {"changes": tally.changes if tally else 0, "calls": calls.calls if calls else 0}

    return counted
