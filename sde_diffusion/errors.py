"""The exception for mistakes that the user can correct, and hints for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a command, a configuration or a file. The message says what is wrong and where, and what to do.

    Commands print the message without a traceback, and exit with status 1.
    """


class MissingPackageError(UserError):
    """A package is needed that is not installed; the message says how to install it."""


class FinishedError(UserError):
    """The result of a command exists already."""


def did_you_mean(word: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for a misspelt name: " (did you mean X?)", or "" if no allowed name is similar.

    Args:
        word: What was typed.
        allowed: The allowed names.
        cutoff: Minimum similarity, from 0 to 1 (identical); see `difflib.get_close_matches`.
    """
    names = {name.lower().replace("-", "_"): name for name in allowed}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=cutoff)
    return f" (did you mean {names[close[0]]}?)" if close else ""
