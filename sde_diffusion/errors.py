"""The one exception that means "the user can mend this", and hints for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a command, a configuration or a file: what is wrong, where, what is allowed and what to try.

    Commands print the message alone, without a traceback, and exit with status 1.
    """


class FinishedError(UserError):
    """The result that a command is to write is there already."""


def did_you_mean(word: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for a misspelt name: " (did you mean X?)", or nothing where no allowed name is like it.

    Args:
        word: What was typed.
        allowed: The names.
        cutoff: How alike a name must be, from 0 to 1 (the same); see `difflib.get_close_matches`.
    """
    names = {name.lower().replace("-", "_"): name for name in allowed}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=cutoff)
    return f" (did you mean {names[close[0]]}?)" if close else ""
