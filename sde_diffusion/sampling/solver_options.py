"""Options of a solver's method that are passed on to its library, and their allowed values as type hints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from sde_diffusion.checks import native
from sde_diffusion.checks.hints import Rule, at_least, fits, words
from sde_diffusion.checks.reprs import shown

NotNegative = Annotated[float, Rule("a number of at least 0", lambda x: x >= 0)]
AtLeastOne = Annotated[float, Rule("a number of at least 1", lambda x: x >= 1)]
Share = Annotated[float, Rule("a number above 0 and up to 1", lambda x: 0 < x <= 1)]
Places = Annotated[
    list[float],
    Rule(
        "a list of different places between 0 and 1",
        lambda places: all(0 < u < 1 for u in places) and len({*map(float, places)}) == len(places),
    ),
]


def integer(low: int, high: int) -> Any:
    """The hint of an integer from low to high."""
    return Annotated[int, at_least(low, high)]


def check_options(method: str, given: Mapping[str, Any], takes: Mapping[str, Any]) -> dict[str, Any]:
    """Check options of a method by type hints; returns them with Python numbers.

    Raises:
        ValueError: If one is unknown or out of range; the message lists the allowed ones.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"options must be a mapping of names to values; got {shown(given)}")
    wrong = [name for name, value in given.items() if name not in takes or not fits(value, takes[name])]
    if wrong:
        known = ", ".join(f"{name}={words(hint)}" for name, hint in takes.items()) or "none"
        raise ValueError(f"the options of {method} are: {known}; got {', '.join(f'{n}={given[n]!r}' for n in wrong)}")
    return {name: native(value) for name, value in given.items()}
