"""The libraries' own options of a solver's method: which there are, what they may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """What an option may be.

    Attributes:
        allowed: In words, such as "a positive number".
        fits: Whether a value is that.
    """

    allowed: str
    fits: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


POSITIVE = Option("a positive number", lambda value: _number(value) and value > 0)
NOT_NEGATIVE = Option("a number of at least 0", lambda value: _number(value) and value >= 0)
AT_LEAST_ONE = Option("a number of at least 1", lambda value: _number(value) and value >= 1)
SHARE = Option("a number above 0 and up to 1", lambda value: _number(value) and 0 < value <= 1)
BOOLEAN = Option("true or false", lambda value: isinstance(value, bool))
COUNT = Option("a whole number of at least 1", lambda value: _number(value) and value >= 1 and value % 1 == 0)
PLACES = Option(
    "a list of different places between 0 and 1",
    lambda value: (
        isinstance(value, list | tuple)
        and all(_number(u) and 0 < u < 1 for u in value)
        and len(set(value)) == len(value)
    ),
)


def whole(low: int, high: int) -> Option:
    """A whole number from low to high."""
    return Option(f"{low} to {high}", lambda value: _number(value) and value in range(low, high + 1))


def one_of(*names: str) -> Option:
    """One of some names."""
    return Option(" or ".join(names), lambda value: value in names)


def check_options(method: str, given: Mapping[str, Any], takes: Mapping[str, Option]) -> dict[str, Any]:
    """See that a method takes the options that are given.

    Raises:
        ValueError: If one is unknown or out of range; with what there are.
    """
    wrong = [name for name, value in given.items() if name not in takes or not takes[name].fits(value)]
    if wrong:
        known = ", ".join(f"{name}={option.allowed}" for name, option in takes.items()) or "none"
        raise ValueError(f"the options of {method} are: {known}; got {', '.join(f'{n}={given[n]!r}' for n in wrong)}")
    return dict(given)
