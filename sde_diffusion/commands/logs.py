"""Logging handlers that stop at the first write error; those of `logging` print a traceback for every line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any


def _stop_after_error(handler: logging.Handler, what: str) -> bool:
    """If the current exception is a write error, report it once, drop all further lines, and return True."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):  # a mistake in the line itself
        return False
    handler.addFilter(lambda record: False)
    with contextlib.suppress(OSError, ValueError):
        print(f"cannot write {what}: {error.strerror or error}; continuing without it", file=sys.stderr)
    return True


class LogFile(logging.FileHandler):
    """A log file on a disk that may fill up: the run continues without it, after one message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Stop writing to the file."""
        if not _stop_after_error(self, self.baseFilename):
            super().handleError(record)


class LogLines(logging.StreamHandler[Any]):
    """Lines on the screen, which may be a closed pipe, as after `| head`."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Stop writing to the screen."""
        if not _stop_after_error(self, "to the screen"):
            super().handleError(record)
            return
        with contextlib.suppress(OSError, ValueError):  # else Python reports an error when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
