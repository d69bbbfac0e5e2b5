"""Signals that ask a program to end: raised as an exception at once, or deferred until the program can stop safely.

Ctrl-C (SIGINT), a scheduler's SIGTERM, Slurm's warning SIGUSR1 and a lost terminal's SIGHUP are all treated in the same
way, in every command. The second signal ends deferred waiting at once, and the third ends the process in any case.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sde_diffusion.storage.ranks import is_first_process, is_one_of_several

SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if name in signal.Signals.__members__
)
SAME = 0.2
"""Signals within this many seconds are one request: `timeout` and terminals signal both a process and its group."""
STUCK = 5.0
"""Seconds after which a process is ended that should end at once, but whose main thread waits in C."""
PATIENCE = 30.0
"""The same for the first request, if no other process has to wait."""


class Stopped(SystemExit):
    """A signal has asked the program to end.

    A SystemExit, so that a program that does not catch it ends with the status that shells expect, and so that
    Lightning neither ignores further signals nor kills the other processes, as it does on KeyboardInterrupt.

    Args:
        number: Number of the signal.
        agreed: Whether every process of a run stops here, so that none has to be ended.

    Attributes:
        code: The exit status, 128 + number: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.number, self.agreed = number, agreed

    @property
    def signal_name(self) -> str:
        """The name of the signal, such as SIGTERM."""
        return signal.Signals(self.number).name


@dataclass
class _Request:
    """The state of the signals of this process."""

    number: int = 0
    heard: int = 0  # number of signals seen by the observer thread
    since: float = -math.inf
    answered: float = -math.inf  # time of the handler's last call
    holding: bool = False
    pass_on: Callable[[int], Any] | None = None
    ignore: Callable[[Any], Any] = sys.__unraisablehook__  # the hook for exceptions that Python ignores


_request = _Request()


def listen() -> dict[signal.Signals, Any]:
    """Handle the signals from now on, except those that are ignored, as under nohup or in a shell's background.

    Returns:
        The previous handlers, for `restore`; empty outside the main thread, where none can be set.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    if _hear not in heard.values():
        _request.number, _request.heard, _request.holding = 0, 0, False
    for number in heard:
        signal.signal(number, _hear)
    if sys.unraisablehook is not _ignored:
        _request.ignore, sys.unraisablehook = sys.unraisablehook, _ignored
    _watch_over_main_thread()
    return heard


def restore(before: dict[signal.Signals, Any]) -> None:
    """Restore the handlers that `listen` found, and clear the state; if it found its own, only stop deferring."""
    _request.holding = False
    if before and _hear not in before.values():
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = _request.ignore
        _request.number, _request.heard, _request.holding = 0, 0, False


def asked() -> int:
    """The number of the deferred signal, or 0."""
    return _request.number


def hold() -> None:
    """From now on defer the first signal, so that `asked` returns it; the second is raised."""
    _request.holding, _request.pass_on = True, None


def pass_on(to: Callable[[int], Any]) -> None:
    """From now on pass signals on to other processes by a function, until `hold` or `release`."""
    _request.pass_on = to


def release() -> None:
    """From now on raise signals at once.

    Raises:
        Stopped: If one was deferred.
    """
    _request.holding, _request.pass_on = False, None
    if _request.number:
        raise Stopped(_request.number)


def _hear(number: int, frame: Any) -> None:
    now = time.monotonic()
    _request.answered = now
    if _request.number and now - _request.since < SAME:
        return
    again = _request.number
    _request.number, _request.since = number, now
    if _request.pass_on is not None:
        _request.pass_on(number)
        return
    if again:
        for each in SIGNALS:
            if signal.getsignal(each) is _hear:
                signal.signal(each, signal.SIG_DFL)
    elif _request.holding:
        if is_first_process():
            name = signal.Signals(number).name
            # Not through Python's buffered streams, which may be in the middle of a line.
            os.write(2, f"\n{name}: stopping after this step (a second signal stops at once)\n".encode())
        return
    raise Stopped(number)


def _ignored(unraisable: Any) -> None:
    """Send a signal again that was raised where Python ignores exceptions, as in a finalizer."""
    error = unraisable.exc_value
    if not isinstance(error, Stopped):
        _request.ignore(unraisable)
        return
    _request.number = 0
    threading.Timer(0.01, os.kill, (os.getpid(), error.number)).start()


def _forget() -> None:
    """Reset the handlers in a forked child."""
    with suppress(ValueError):  # if the child does not continue in the main thread
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is _hear:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _request.number, _request.heard, _request.holding, _request.pass_on = 0, 0, False, None


def _watch_over_main_thread() -> None:
    """End the process if a signal should end it but Python's handler is not called, as in a collective that hangs.

    Python calls handlers when the main thread returns from C, but writes the number of a signal to a pipe at once. On
    systems that are not POSIX, pipes cannot be observed in this way, and such a process continues.
    """
    if not hasattr(os, "register_at_fork"):
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if before != -1:  # already set, by this function or another program
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
        return

    os.register_at_fork(after_in_child=_forget)

    def watch() -> None:
        while True:
            numbers, arrival = os.read(reading, 4096), time.monotonic()
            wanted = [number for number in numbers if signal.getsignal(number) is _hear]
            _request.heard += bool(wanted)
            if wanted and (_request.heard > 1 or not _request.holding):
                # The first may arrive while a single process is in a long call of a library.
                time.sleep(STUCK if _request.heard > 1 or is_one_of_several() else PATIENCE)
                if _request.answered < arrival - SAME:  # minus this thread's own delay
                    name = signal.Signals(wanted[-1]).name
                    os.write(2, f"\n{name}: ended while it waited for the system or another process\n".encode())
                    os._exit(128 + wanted[-1])
                while select.select([reading], [], [], 0)[0]:
                    os.read(reading, 4096)

    threading.Thread(target=watch, name="signal-observer", daemon=True).start()


def end_with(launcher: int) -> None:
    """End this process when its launcher has ended in any way, so that no orphan waits for it.

    Lightning's launcher observes its children, but nothing observes the launcher.

    Args:
        launcher: Its process id.
    """

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-observer", daemon=True).start()


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """End quietly where nobody reads what is printed any more, as after `| head`, with the status that SIGPIPE has."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # else Python reports an error when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
