"""Options of a solver's method that are passed on to its library, and their allowed values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sde_diffusion.checks import native, real
from sde_diffusion.checks.reprs import shown


@dataclass(frozen=True)
class Option:
    """The allowed values of an option.

    Attributes:
        allowed: A description, such as "a positive number".
        fits: Whether a value is allowed.
    """

    allowed: str
    fits: Callable[[Any], bool]


def _number(value: Any) -> float:
    """The value as a finite number; NaN, which is in no range, for anything else."""
    number = real(value)
    return number if number is not None and math.isfinite(number) else math.nan


POSITIVE = Option("a positive number", lambda value: _number(value) > 0)
NOT_NEGATIVE = Option("a number of at least 0", lambda value: _number(value) >= 0)
AT_LEAST_ONE = Option("a number of at least 1", lambda value: _number(value) >= 1)
SHARE = Option("a number above 0 and up to 1", lambda value: 0 < _number(value) <= 1)
BOOLEAN = Option("true or false", lambda value: isinstance(native(value), bool))
COUNT = Option("an integer of at least 1", lambda value: _number(value) >= 1 and _number(value) % 1 == 0)
PLACES = Option(
    "a list of different places between 0 and 1",
    lambda value: (
        isinstance(value, list | tuple)
        and all(0 < _number(u) < 1 for u in value)
        and len({_number(u) for u in value}) == len(value)
    ),
)


def integer(low: int, high: int) -> Option:
    """An integer from low to high."""
    return Option(f"{low} to {high}", lambda value: _number(value) in range(low, high + 1))


def one_of(*names: str) -> Option:
    """One of some names."""
    return Option(" or ".join(names), lambda value: isinstance(value, str) and value in names)


def check_options(method: str, given: Mapping[str, Any], takes: Mapping[str, Option]) -> dict[str, Any]:
    """Check options of a method; returns them with Python numbers.

    Raises:
        ValueError: If one is unknown or out of range; the message lists the allowed ones.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"options must be a mapping of names to values; got {shown(given)}")
    wrong = [name for name, value in given.items() if name not in takes or not takes[name].fits(value)]
    if wrong:
        known = ", ".join(f"{name}={option.allowed}" for name, option in takes.items()) or "none"
        raise ValueError(f"the options of {method} are: {known}; got {', '.join(f'{n}={given[n]!r}' for n in wrong)}")
    return {name: native(value) for name, value in given.items()}
