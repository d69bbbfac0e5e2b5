"""Type hints as the schema of settings: whether a value fits a hint, and how messages describe what it allows.

The type hints of a constructor are the schema of the settings of its class. Commands give their own keys type hints in
the same way, with ranges as `Annotated[int, Rule(...)]`.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from sde_diffusion.checks import native, real
from sde_diffusion.checks.arguments import FLAG, INTEGER, choice_words, integer_words
from sde_diffusion.checks.overrides import hydra_value, setting
from sde_diffusion.checks.reprs import shown
from sde_diffusion.errors import UserError, did_you_mean

_BEYOND = 2**63
"""The smallest positive integer that does not fit into an int64 tensor."""

_UNCHECKED: tuple[Any, ...] = (Any, object, Tensor)
"""Hints that any value fits; what must become a Tensor is checked by the constructor."""


@dataclass(frozen=True)
class Rule:
    """A restriction of a type: `Annotated[int, Rule("a positive integer", lambda n: n > 0)]`.

    Args:
        words: How messages describe what is allowed, after "must be".
        holds: Whether a value of the type is allowed.
    """

    words: str
    holds: Callable[[Any], bool]


def at_least(least: int, most: float = math.inf) -> Rule:
    """The integers from `least` to `most`."""
    return Rule(integer_words(least, most), lambda n: least <= n <= most)


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, Rule("a positive number", lambda x: x > 0)]
Described = Annotated[Mapping[str, Any], Rule("settings {_target_: CLASS, ...}", lambda node: "_target_" in node)]
BetweenZeroAndOne = Annotated[float, Rule("a number between 0 and 1", lambda x: 0 < x < 1)]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits a hint.

    Numbers must be finite, and integers must fit into 64 bits. 10.0 is an integer; true is not a number. Lists and
    tuples are equivalent. Any value fits a hint that cannot be checked, such as a type variable.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind: Any = origin or hint
    if kind is Annotated:
        return fits(value, inner[0]) and all(rule.holds(value) for rule in inner[1:] if isinstance(rule, Rule))
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if kind in (None, types.NoneType):
        return value is None
    if typing.is_typeddict(kind):
        known = typing.get_type_hints(kind, include_extras=True)
        complete = isinstance(value, Mapping) and kind.__required_keys__ <= value.keys() <= known.keys()
        return complete and all(fits(one, known[name]) for name, one in value.items())
    if kind in _UNCHECKED or not isinstance(kind, type):
        return True
    if kind in (int, float):
        number = real(value)
        right = kind is float or (number is not None and number % 1 == 0 and -_BEYOND <= number < _BEYOND)
        return number is not None and abs(number) <= sys.float_info.max and right  # neither NaN nor infinite
    if kind in (str, Path):
        return isinstance(value, str | Path) and bool(str(value).strip())
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and (not inner or all(all(map(fits, item, inner)) for item in value.items()))
    if kind in (tuple, list, Sequence, Iterable):
        if not isinstance(value, list | tuple):
            return False
        each = inner if kind is tuple and inner[-1:] != (...,) else inner[:1] * len(value)
        return not inner or (len(value) == len(each) and all(map(fits, value, each)))
    return callable(value) if kind is Callable else isinstance(native(value), kind)


def words(hint: Any) -> str:
    """How messages describe what a hint allows, after "must be"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind: Any = origin or hint
    if kind is Annotated:
        return next((rule.words for rule in inner[1:] if isinstance(rule, Rule)), words(inner[0]))
    if kind in (typing.Union, types.UnionType):
        names = [name for one in inner if typing.get_origin(one) is Literal for name in typing.get_args(one)]
        others = [one for one in inner if typing.get_origin(one) is not Literal]
        said = list(dict.fromkeys(words(one) for one in [*([Literal[tuple(names)]] if names else []), *others]))
        return " or ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    if kind is Literal:
        return choice_words(inner)
    if kind in (None, types.NoneType):
        return "null"
    if typing.is_typeddict(kind):
        known = typing.get_type_hints(kind, include_extras=True)
        return f"settings {{{', '.join(f'{name}: {words(one)}' for name, one in known.items())}}}"
    simple = {int: INTEGER, float: "a finite number", bool: FLAG, str: "text", Path: "a path"}
    if kind in simple:
        return simple[kind]
    if kind is Callable:
        return "a function (in Python)"
    if kind in _UNCHECKED or not inspect.isclass(kind) or issubclass(kind, Mapping):
        return "settings {KEY: VALUE}"
    if kind in (tuple, list, Sequence, Iterable):
        fixed = kind is tuple and inner[-1:] != (...,)
        each = re.sub(r"^an? ((?:\w+ )*?(?:number|integer))\b", r"\1s", words(inner[0])) if inner else ""
        return f"a list of {f'{len(inner)} ' if fixed else ''}{each}" if each else "a list"
    return f"of class {kind.__name__}, {{_target_: CLASS, ...}}"


def check(key: str, value: Any, hint: Any) -> None:
    """Check that a value fits a hint.

    Raises:
        UserError: If it does not; the message has the key, what is allowed, and the value.
    """
    if fits(value, hint):
        return
    for one in (hint, *typing.get_args(hint)):
        if typing.is_typeddict(one) and isinstance(value, Mapping):
            known = typing.get_type_hints(one, include_extras=True)
            for name in [*value, *known]:
                if name not in known:
                    raise UserError(f"unknown key {key}.{name}{did_you_mean(name, known)}; allowed: {', '.join(known)}")
                if name in one.__required_keys__ and name not in value:
                    raise UserError(f"{key}.{name} must be given: add {key}.{name}=VALUE")
                check(f"{key}.{name}", value.get(name), known[name])
    note = did_you_mean(value, _names(hint)) if isinstance(value, str) else ""
    if real(value) is not None and fits("text", hint):
        note = f" (text made of digits needs quotes: {setting(key, str(value))})"
    raise UserError(f"{key} must be {words(hint)}; got {key}={_typed(value)}{note}")


def _names(hint: Any) -> list[str]:
    """The names that a hint allows."""
    if typing.get_origin(hint) is Literal:
        return [name for name in typing.get_args(hint) if isinstance(name, str)]
    return [name for one in typing.get_args(hint) for name in _names(one)]


def expect(what: str, value: Any, hint: Any) -> None:
    """Check that a value in a file fits a hint.

    Args:
        what: The file and the entry, for the message.
        value: The value.
        hint: The hint.

    Raises:
        UserError: If it does not; the message has what is allowed, and the value.
    """
    if not fits(value, hint):
        raise UserError(f"{what} must be {words(hint)}; got {_typed(value)}")


def _typed(value: Any) -> str:
    """A value as it is typed, but without quotes, and no longer than fits into a message."""
    text = hydra_value(value) if isinstance(value, list | tuple | Mapping | bool | None) else ""
    return value if isinstance(value, str) else text if 0 < len(text) <= 60 else shown(value)


@cache
def arguments_of(cls: type) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The arguments of a constructor.

    Returns:
        (hints by argument, defaults by argument, whether any other argument is allowed). If a subclass passes keyword
        arguments on, declared as `**arguments: Unpack[TypedDict]`, those of the TypedDict are included.
    """
    try:
        hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    except (NameError, TypeError):  # names that exist only for type checkers: the types are unknown
        hints = {}
    found, defaults, open_ = {}, {}, False
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            passed = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Unpack else None
            open_ = passed is None
            found.update({} if passed is None else typing.get_type_hints(passed, include_extras=True))
            defaults.update(dict.fromkeys([] if passed is None else typing.get_type_hints(passed), ...))
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = hint
            if parameter.default is not parameter.empty:
                defaults[name] = parameter.default
    return found, defaults, open_


def check_arguments(
    cls: type,
    arguments: Mapping[str, Any],
    where: str = "",
    rules: Mapping[str, Any] | None = None,
    reserved: tuple[str, ...] = (),
) -> None:
    """Check that a constructor takes these arguments, that none is missing, and that they fit its hints or defaults.

    Args:
        cls: The class.
        arguments: The arguments by name.
        where: The key that holds the arguments.
        rules: Hints that replace those of the constructor.
        reserved: Arguments that are supplied otherwise, and must not be among these.

    Raises:
        UserError: If they do not.
    """
    hints, defaults, more = arguments_of(cls)
    rules = rules or {}
    hints = {name: hint for name, hint in {**hints, **rules}.items() if name not in reserved}
    for name, value in arguments.items():
        key = f"{where}.{name}" if where else name
        if name not in hints and not more:
            takes = f"it takes {', '.join(hints)}" if hints else "it takes no arguments"
            raise UserError(f"{key}: {cls.__name__} takes no {name}{did_you_mean(name, hints)}; {takes}")
        default = defaults.get(name, ...) if name not in rules else ...
        if not (type(value) is type(default) and value == default):
            check(key, value, hints.get(name, Any))
    for name in hints:
        if name not in arguments and name not in defaults:
            key = f"{where}.{name}" if where else name
            raise UserError(f"{key} must be given: add {key}=VALUE")


def as_integers(value: Any, hint: Any) -> Any:
    """A value that fits a hint, with 10 in place of 10.0 where only integers are allowed, also in nested containers."""
    for one in (hint, *typing.get_args(hint)):
        if typing.is_typeddict(one) and isinstance(value, Mapping):
            known = typing.get_type_hints(one, include_extras=True)
            return {name: as_integers(entry, known.get(name, Any)) for name, entry in value.items()}
    if isinstance(value, list):
        return value if fits([0.5] * len(value), hint) else [as_integers(one, int) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and not fits(0.5, hint) else value
