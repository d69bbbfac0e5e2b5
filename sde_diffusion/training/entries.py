"""A small schema language for untrusted contents: values, lists and mappings, with an error message for each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.hints import Natural, Rule, words
from sde_diffusion.checks.reprs import shown

DEEPEST, MOST = 100, 10_000_000  # nesting depth of containers; total number of values, repeated ones included
ROOT = "the checkpoint"


class ContentsError(ValueError):
    """An entry of a checkpoint is missing, or is not what it must be."""


class Value(Rule):
    """One value."""

    def check(self, value: Any, place: str) -> None:
        """Raise ContentsError unless the value is of this kind."""
        if not self.holds(value):
            raise ContentsError(f"{place} must be {self.words}; got {shown(value)}")


@dataclass(frozen=True)
class Each:
    """A list of entries of one kind, or with `keys` (the type of the keys) a mapping of them."""

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
    """A mapping, with its required and optional entries, and the kind of all others (None: there must be no others)."""

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
            name = f"{place}.{key}".removeprefix(f"{ROOT}.")
            kind = self.required.get(key) or self.optional.get(key) or self.others
            if kind is None:
                raise ContentsError(f"{name} does not belong in a checkpoint")
            kind.check(entry, name)


@dataclass(frozen=True)
class Either:
    """A kind, or None, or with `empty` an empty mapping."""

    kind: Kind
    empty: bool = False

    def check(self, value: Any, place: str) -> None:
        """Raise ContentsError unless the value is of the kind, None, or an empty mapping where allowed."""
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
SETTINGS = Value("a mapping of numbers, text, lists and mappings only", lambda value: _is_settings(value))
_RELEASE = re.compile(r"([2-9]|[1-9]\d+)(\.\d+)+((a|b|rc|\.post|\.dev)\d+)*", re.ASCII)
RELEASE = Value("a version from 2.0 up", lambda value: isinstance(value, str) and bool(_RELEASE.fullmatch(value)))


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(leaf, str | int | float | None) and isinstance(key, str | int | None) for key, leaf in leaves(value)
    )


def leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (key, value) for each value in a tree of containers that is not a container, and (key, None) for each key.

    In lists the key is None. The contents of a container that appears in several places are yielded once.
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
    """Check that containers are not nested too deeply, nor have too many values; repeated containers count repeatedly.

    A small file can contain sixty lists, each of which contains the previous one twice.

    Raises:
        ContentsError: If they are, or have.
    """
    known: dict[int, tuple[int, int]] = {}

    def measure(value: Any, depth: int) -> tuple[int, int]:
        """Depth and number of values; each container is measured once."""
        if not _holds_others(value):
            return 0, 1
        if id(value) not in known:
            if depth > DEEPEST:  # also if a container contains itself
                raise ContentsError(f"it has containers nested more than {DEEPEST} deep")
            entries = value.values() if isinstance(value, dict) else value
            inside = [measure(entry, depth + 1) for entry in entries]
            known[id(value)] = (1 + max((one for one, _ in inside), default=0), 1 + sum(many for _, many in inside))
        height, count = known[id(value)]
        if depth + height > DEEPEST + 1 or count > MOST:
            raise ContentsError(f"it has containers nested more than {DEEPEST} deep, or more than {MOST:,} values")
        return height, count

    measure(node, 0)


def _holds_others(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | set | frozenset) and not isinstance(value, torch.Size)
