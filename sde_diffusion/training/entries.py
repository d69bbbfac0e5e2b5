"""A small language for what untrusted contents must be: values, lists and mappings, checked with one message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.hints import Natural, words
from sde_diffusion.checks.reprs import shown

DEEPEST, MOST = 100, 10_000_000  # levels of containers in containers; values in all, each counted where it appears
WHOLE = "the checkpoint"


class ContentsError(ValueError):
    """An entry of a checkpoint is missing, or is not what it must be."""


@dataclass(frozen=True)
class Value:
    """One value: what it must be, in words, and whether one is."""

    what: str
    holds: Callable[[Any], bool]

    def check(self, value: Any, place: str) -> None:
        """Raise ContentsError unless the value is of this kind."""
        if not self.holds(value):
            raise ContentsError(f"{place} must be {self.what}; got {shown(value)}")


@dataclass(frozen=True)
class Each:
    """A list, or where keys are given a mapping, of any number of entries of one kind."""

    kind: Kind
    keys: type | None = None

    def check(self, value: Any, place: str) -> None:
        """Raise ContentsError unless the value and its entries are of this kind."""
        if self.keys is None:
            LIST.check(value, place)
            entries: Any = enumerate(value)
        else:
            MAPPING.check(value, place)
            entries = value.items()
        for key, entry in entries:
            if self.keys is not None and not isinstance(key, self.keys):
                raise ContentsError(f"the keys of {place} must be of type {self.keys.__name__}; one is {shown(key)}")
            self.kind.check(entry, f"{place}[{shown(key)}]")


@dataclass(frozen=True)
class Entries:
    """A mapping: entries that it must have, those that it may have, and what others must be (None: no others)."""

    required: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    others: Kind | None = None

    def check(self, value: Any, place: str) -> None:
        """Raise ContentsError unless the value and its entries are of this kind."""
        MAPPING.check(value, place)
        lacking = [name for name in self.required if name not in value]
        if lacking:
            raise ContentsError(f"{place} lacks {', '.join(lacking)}")
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ContentsError(f"the keys of {place} must be text; one is {shown(key)}")
            name = f"{place}.{key}".removeprefix(f"{WHOLE}.")
            kind = self.required.get(key) or self.optional.get(key) or self.others
            if kind is None:
                raise ContentsError(f"{name} is nothing that a checkpoint has")
            kind.check(entry, name)


@dataclass(frozen=True)
class Either:
    """A kind, or None, or with `empty` a mapping without entries."""

    kind: Kind
    empty: bool = False

    def check(self, value: Any, place: str) -> None:
        """Raise ContentsError unless the value is of the kind, or what may stand in its place."""
        if value is not None and not (self.empty and isinstance(value, dict) and not value):
            self.kind.check(value, place)


Kind = Value | Each | Entries | Either

ANYTHING = Value("anything", lambda _: True)
MAPPING = Value("a mapping", lambda value: isinstance(value, dict))
LIST = Value("a list", lambda value: isinstance(value, list | tuple))
TEXT = Value(words(str), lambda value: isinstance(value, str))
FLAG = Value(words(bool), lambda value: isinstance(value, bool))
COUNT = Value(words(Natural), lambda value: type(value) is int and value >= 0)
NUMBER = Value(words(float), lambda value: type(value) in (int, float) and math.isfinite(value))
TENSOR = Value("a tensor", lambda value: isinstance(value, Tensor))
SCALAR = Value("a number", lambda value: type(value) in (int, float) or (isinstance(value, Tensor) and not value.ndim))
SIMPLE = Value("a number, text, true, false or null", lambda value: isinstance(value, int | float | str | type(None)))
SETTINGS = Value("a mapping of numbers, text, lists and mappings alone", lambda value: _is_settings(value))
_RELEASE = re.compile(r"([2-9]|[1-9]\d+)(\.\d+)+((a|b|rc|\.post|\.dev)\d+)*", re.ASCII)
RELEASE = Value("a version from 2.0 up", lambda value: isinstance(value, str) and bool(_RELEASE.fullmatch(value)))


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(leaf, str | int | float | None) and isinstance(key, str | int | None) for key, leaf in leaves(value)
    )


def leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (key, value) for each value below a container that is not one itself, and (key, None) for each key itself.

    In lists the key is None. What a container holds that appears in several places is yielded once.
    """
    waiting, seen = [(None, node)], set[int]()
    while waiting:
        key, value = waiting.pop()
        if not _holds_others(value):
            yield key, value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                yield from ((name, None) for name in value)
                waiting.extend(value.items())
            else:
                waiting.extend((None, entry) for entry in value)


def check_size(node: Any) -> None:
    """Check that containers do not lie too deep in one another, nor hold too much, each counted where it appears.

    In a small file each of sixty lists may hold the one before twice.

    Raises:
        ContentsError: If they do.
    """
    known: dict[int, tuple[int, int]] = {}

    def measure(value: Any, depth: int) -> tuple[int, int]:
        """How deep and how many values; known ones are measured once."""
        if not _holds_others(value):
            return 0, 1
        if id(value) not in known:
            if depth > DEEPEST:  # also where a container holds itself
                raise ContentsError(f"it holds containers more than {DEEPEST} deep")
            entries = value.values() if isinstance(value, dict) else value
            inside = [measure(entry, depth + 1) for entry in entries]
            known[id(value)] = (1 + max((one for one, _ in inside), default=0), 1 + sum(many for _, many in inside))
        height, count = known[id(value)]
        if depth + height > DEEPEST + 1 or count > MOST:
            raise ContentsError(f"it holds containers more than {DEEPEST} deep, or more than {MOST:,} values")
        return height, count

    measure(node, 0)


def _holds_others(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | set | frozenset) and not isinstance(value, torch.Size)
