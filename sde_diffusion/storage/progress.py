"""Progress of long work: bars on a terminal, or else occasional lines in the log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS = 30.0
"""Time between two lines without a terminal; or a fiftieth of the elapsed time if that is longer."""

_display: Progress | None = None
"""The display of all bars: work inside other work has its bar below the outer one."""


class Bar:
    """The progress of one piece of work; see `bar`."""

    def __init__(self, display: Progress, name: str, total: float | None, completed: float, quiet: bool) -> None:
        self.name, self.total, self.completed, self.text = name, total, completed, ""
        self._display, self._quiet, self._before, self._limit = display, quiet, completed, math.inf
        self._begun = self._logged = self._since = time.perf_counter()
        self.id = display.add_task(name, total=total, completed=int(completed), visible=not quiet, text="", left="")

    def update(
        self,
        completed: float | None = None,
        advance: float = 0,
        text: str | None = None,
        name: str = "",
        limit: float = math.inf,
        stays: bool = False,
    ) -> None:
        """Update the progress.

        Args:
            completed: Amount that is done, of `total`.
            advance: Amount done since the last update.
            text: A text to show beside the bar, such as the value so far.
            name: A new name of the work.
            limit: Seconds after which the work ends in any case.
            stays: Whether to write a line to the log, on a terminal too.
        """
        self.completed = (self.completed if completed is None else completed) + advance
        self.text, self.name, self._limit = self.text if text is None else text, name or self.name, limit
        left = "" if self._left is None else f"{_clock(self._left)} left"
        self._display.update(self.id, completed=self.completed, description=self.name, text=self.text, left=left)
        if stays or self.due:
            self._log()

    def leave_out(self, completed: float) -> None:
        """Estimate the time left from here on, where `completed` is done: what has been slow so far is over."""
        self._before, self._since = completed, time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time for the next line."""
        now = time.perf_counter()
        return self._display.disable and now - self._logged >= max(SECONDS, 0.02 * (now - self._begun))

    def _log(self) -> None:
        self._logged = time.perf_counter()
        if self._quiet:
            return
        done = f"{self.completed:,.0f}" if self.total is None else f"{self.completed:,.0f} of {self.total:,.0f}"
        left = "" if self._left is None else f", about {_clock(self._left)} left"
        text = f"  ({self.text})" if self.text else ""
        log.info("%s  %s, %s so far%s%s", self.name, done, _clock(self._logged - self._begun), left, text)

    @property
    def _left(self) -> float | None:
        """Estimated seconds left, at the speed so far; None if unknown."""
        made = self.completed - self._before
        rest = math.inf if self.total is None or made <= 0 else (self.total - self.completed) / made
        seconds = max(0.0, min(rest * (time.perf_counter() - self._since), self._limit))  # a limit may have passed
        return seconds if math.isfinite(seconds) else None


@contextmanager
def bar(name: str, total: float | None, completed: float = 0, quiet: bool = False) -> Iterator[Bar]:
    """Show the progress of a block of work: a bar with the time left, or without a terminal a line every 30 s.

    Args:
        name: Name of the work, such as "sampling".
        total: Total amount of work; None if unknown.
        completed: Amount that was done before.
        quiet: Whether to show nothing, as in all processes but the first.

    Yields:
        The bar, to be updated.
    """
    global _display
    outer = _display
    display = outer or _new_display()
    with nullcontext() if outer else display:
        shown = Bar(display, name, total, completed, quiet)
        _display = display
        try:
            yield shown
        finally:
            _display = outer
            display.remove_task(shown.id)


def counted(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """The items, with a progress bar for the loop over them."""
    with bar(name, total) as shown:
        for item in items:
            yield item
            shown.update(advance=1)


@contextmanager
def passes(shown: Bar, module: nn.Module, cost: Callable[..., int] = lambda *_: 1) -> Iterator[None]:
    """Show the number of network passes that a denoiser has made in the block, after the bar's text.

    Args:
        shown: The bar.
        module: The denoiser.
        cost: Function from the arguments of a call (x_t, t) to its passes.
    """
    made, text = 0, shown.text

    def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        made += cost(*arguments)
        shown.update(text=f"{text}{'; ' if text else ''}pass {made:,}")

    handle = module.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
        shown.text = text


def _new_display() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    times = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    display = Progress(*columns, *times, transient=True)
    display.disable = not display.console.is_terminal
    return display


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
