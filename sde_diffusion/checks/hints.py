"""Type hints as the rule for what a setting may be: whether a value fits one, and what one allows, in words.

The classes that a configuration names say in the hints of their constructors what they take. Commands state their own
keys in the same way, ranges as `Annotated[int, Rule(...)]`.
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
from sde_diffusion.checks.arguments import FLAG, WHOLE, choice_words, integer_words
from sde_diffusion.checks.overrides import setting
from sde_diffusion.checks.reprs import shown
from sde_diffusion.errors import UserError, did_you_mean

_BEYOND = 2**63
"""The least integer that no tensor holds."""

_UNTOLD: tuple[Any, ...] = (Any, object, Tensor)
"""Hints that say nothing of a value in a configuration; Tensors are checked by the constructors that take them."""


@dataclass(frozen=True)
class Rule:
    """What of a type is allowed: `Annotated[int, Rule(lambda n: n > 0, "a positive integer")]`.

    Args:
        holds: Whether a value of the type is allowed.
        words: What is allowed, as said after "must be".
    """

    holds: Callable[[Any], bool]
    words: str


def at_least(least: int, most: float = math.inf) -> Rule:
    """The integers from `least` to `most`."""
    return Rule(lambda n: least <= n <= most, integer_words(least, most))


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, Rule(lambda x: x > 0, "a positive number")]
BetweenZeroAndOne = Annotated[float, Rule(lambda x: 0 < x < 1, "a number between 0 and 1")]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a hint says.

    Numbers must be finite, and whole ones fit into 64 bits; 10.0 is an integer, true is none. A list is a sequence
    of any kind. Where a hint says nothing that can be looked at, such as a type variable, any value fits.
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
    if kind in _UNTOLD or not isinstance(kind, type):
        return True
    if kind in (int, float):
        number = real(value)
        whole = kind is float or (number is not None and number % 1 == 0 and -_BEYOND <= number < _BEYOND)
        return number is not None and abs(number) <= sys.float_info.max and whole  # neither NaN nor infinite
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
    """What a hint allows, as said after "must be"."""
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
    plain = {int: WHOLE, float: "a finite number", bool: FLAG, str: "text", Path: "a path"}
    if kind in plain:
        return plain[kind]
    if kind is Callable:
        return "a function (in Python)"
    if kind in _UNTOLD or not inspect.isclass(kind) or issubclass(kind, Mapping):
        return "settings {KEY: VALUE}"
    if kind in (tuple, list, Sequence, Iterable):
        fixed = kind is tuple and inner[-1:] != (...,)
        each = re.sub(r"^an? ((?:\w+ )*?number)\b", r"\1s", words(inner[0])) if inner else ""
        return f"a list of {f'{len(inner)} ' if fixed else ''}{each}" if each else "a list"
    return f"of class {kind.__name__}, {{_target_: CLASS, ...}}"


def check(key: str, value: Any, hint: Any) -> None:
    """Check that a value fits a hint.

    Raises:
        UserError: If it does not; with its key, what is allowed, and what to type in its place.
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
    number = real(value) is not None and fits("text", hint)
    quotes = f" (text made of digits needs quotes: {setting(key, str(value))})" if number else ""
    raise UserError(f"{key} must be {words(hint)}; got {key}={_typed(value)}{quotes}")


def expect(what: str, value: Any, hint: Any) -> None:
    """Check that a value that stands in a file fits a hint.

    Raises:
        UserError: If it does not; with what it is, what is allowed, and what is there.
    """
    if not fits(value, hint):
        raise UserError(f"{what} must be {words(hint)}; got {_typed(value)}")


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else "null" if value is None else shown(value)


@cache
def arguments_of(cls: type) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """What a constructor takes.

    Returns:
        (hints by argument, defaults by argument, whether it takes any other too). Where a subclass hands its keyword
        arguments on, and says so by `**arguments: Unpack[TypedDict]`, those of the TypedDict are among them.
    """
    try:
        hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    except (NameError, TypeError):  # names of typing time alone: nothing can be said of the types
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
    given: tuple[str, ...] = (),
) -> None:
    """Check that a constructor takes these arguments, that none is missing, and that they fit its hints or defaults.

    Args:
        cls: The class.
        arguments: By name.
        where: The key that they stand under.
        rules: Hints that take the place of the constructor's.
        given: Arguments that come from elsewhere, and must not be among these.

    Raises:
        UserError: If they do not.
    """
    hints, defaults, more = arguments_of(cls)
    rules = rules or {}
    hints = {name: hint for name, hint in {**hints, **rules}.items() if name not in given}
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
    """A value that fits a hint, with 10 in place of 10.0 where the hint allows no fractions, at each depth."""
    for one in (hint, *typing.get_args(hint)):
        if typing.is_typeddict(one) and isinstance(value, Mapping):
            known = typing.get_type_hints(one, include_extras=True)
            return {name: as_integers(entry, known.get(name, Any)) for name, entry in value.items()}
    if isinstance(value, list):
        return value if fits([0.5] * len(value), hint) else [as_integers(one, int) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and not fits(0.5, hint) else value
