"""Faults for a command in a process of its own: a kill before a certain change of a file, or after a certain time."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

CHANGES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.truncate"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), (0, 1)),
    "os.fsync": (0,),
}
"""The events by which Python tells of changes to files, and which of their arguments are paths."""


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


def inject(
    watch: Sequence[str] = (),
    kill_at: int | None = None,
    kill_after: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Tally | None:
    """Prepare this process.

    Args:
        watch: Folders.
        kill_at: Which change of a file below these not to survive.
        kill_after: After how many seconds to die.
        environment: Variables to set.
    """
    os.environ.update(environment or {})
    if kill_after is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a process wherever it is
        signal.setitimer(signal.ITIMER_REAL, kill_after)
    return Tally(watch, kill_at) if watch else None
