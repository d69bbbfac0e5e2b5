"""Progress of long work: a bar on a terminal, elsewhere a line in the log now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS = 30.0
"""Between two lines where there is no terminal."""


class Bar:
    """How far a piece of work has come; see `bar`."""

    def __init__(self, progress: Progress, description: str, total: float | None, completed: int) -> None:
        self._progress = progress
        self._id = progress.add_task(description, total=total, completed=completed, text="")
        self._text = ""
        self._told = time.monotonic()

    def update(
        self, completed: float | None = None, advance: float | None = None, text: str | None = None, name: str = ""
    ) -> None:
        """Say how far the work has come.

        Args:
            completed: How much is done, of `total`.
            advance: How much more is done, in place of `completed`.
            text: What to show beside, such as the figure so far.
            name: A new description.
        """
        self._text = self._text if text is None else text
        self._progress.update(self._id, completed=completed, advance=advance, description=name or None, text=self._text)
        if self._progress.disable and time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            self._tell()

    def _tell(self) -> None:
        task = self._progress.tasks[self._id]
        done = f"{task.completed:,.0f}" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f}"
        left = "" if task.time_remaining is None else f", about {_clock(task.time_remaining)} left"
        text = f"  ({self._text})" if self._text else ""
        log.info("%s  %s, %s so far%s%s", task.description, done, _clock(task.elapsed or 0.0), left, text)


@contextmanager
def bar(description: str, total: float | None, completed: int = 0) -> Iterator[Bar]:
    """Show the progress of a block of work: a bar with the time left, or without a terminal a line every 30 s.

    Args:
        description: What is done, such as "sampling".
        total: How much there is to do; None if that is not known.
        completed: How much of it was done before.

    Yields:
        What to tell the progress to.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    progress = Progress(*columns, *times, transient=True, get_time=time.monotonic)
    progress.disable = not progress.console.is_terminal
    with progress:
        yield Bar(progress, description, total, completed)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
