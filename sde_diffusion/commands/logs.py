"""Handlers of log lines that give up once, where logging's own print a traceback for every line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any


def _gives_up(handler: logging.Handler, what: str) -> bool:
    """Whether lines can no longer be written: then that is said, and none is written from then on."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):  # a mistake in the line itself
        return False
    handler.addFilter(lambda record: False)
    with contextlib.suppress(OSError, ValueError):
        print(f"cannot write {what}: {error.strerror or error}; going on without it", file=sys.stderr)
    return True


class LogFile(logging.FileHandler):
    """A log file on a disk that may fill up: the run goes on, and says once that its log does not."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Give up the file."""
        if not _gives_up(self, self.baseFilename):
            super().handleError(record)


class LogLines(logging.StreamHandler[Any]):
    """Lines on the screen, which may be a pipe that nobody reads any more, as of `| head`."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Give up the screen."""
        if not _gives_up(self, "to the screen"):
            super().handleError(record)
            return
        with contextlib.suppress(OSError, ValueError):  # else Python complains of what is left of it when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
