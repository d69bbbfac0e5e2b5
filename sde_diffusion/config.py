"""Building objects from plain configurations, of this package's own classes only."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sde_diffusion.errors import UserError
from sde_diffusion.hints import arguments_of, check_arguments
from sde_diffusion.storage.memory import ran_out

PACKAGE = "sde_diffusion"
BUILDABLE = tuple(
    f"{PACKAGE}.{part}"
    for part in (
        *("sde", "denoiser", "guidance", "nn", "sampling", "data", "metrics"),
        *("training.objective", "training.weighting", "training.time_sampling"),
    )
)
"""Where the classes live that a configuration may name: none of these writes files or talks to a network."""

NOT_BUILDABLE = (f"{PACKAGE}.metrics.pretrained",)
"""But for these, which may fetch weights."""


def build(node: Any, where: str = "", /, **overrides: Any) -> Any:
    """Build the object that a configuration describes.

    A mapping with a `_target_` names a class of this package by its dotted path; its other entries, built first where
    they are configurations themselves, are the constructor's arguments. A configuration may come out of a checkpoint:
    it is data, so nothing outside this package is ever imported or called for it.

    Args:
        node: Plain containers: mappings, sequences, numbers, strings, None.
        where: The dotted key of the configuration that the node stands under, for messages.
        **overrides: Arguments added to the outermost constructor call.

    Returns:
        The object; containers without a `_target_` come back as plain dict and list.

    Raises:
        UserError: If a target is not a class of this package, does not take an argument, or refuses its value.
    """
    if isinstance(node, Mapping):
        values = {key: build(value, _inside(where, key)) for key, value in node.items() if key != "_target_"}
        if "_target_" not in node:
            return values
        return call(find_class(str(node["_target_"]), where), {**values, **overrides}, where)
    if isinstance(node, list | tuple):
        return [build(value, f"{where}[{number}]") for number, value in enumerate(node)]
    return node


def build_around(node: Mapping[str, Any], where: str = "", /, **offered: Any) -> Any:
    """`build`, with those objects for which the class has an argument of that name that the configuration leaves out.

    Args:
        node: Plain containers, with a `_target_`.
        where: See `build`.
        **offered: The objects.

    Raises:
        UserError: See `build`.
    """
    names = arguments_of(find_class(str(node.get("_target_")), where))[0]
    return build(node, where, **{name: value for name, value in offered.items() if name in names and name not in node})


def plain_containers(value: Any) -> Any:
    """Mappings and sequences, OmegaConf's among them, as dict and list."""
    if isinstance(value, Mapping):
        return {key: plain_containers(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_containers(entry) for entry in value]
    return value


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def find_class(target: str, where: str = "") -> type:
    """The class of this package that a `_target_` names.

    Raises:
        UserError: If it is none, or not one that a configuration may name.
    """
    module_name, _, name = target.rpartition(".")
    if module_name == PACKAGE or module_name.startswith(PACKAGE + "."):
        try:
            found = getattr(importlib.import_module(module_name), name, None)
        except ImportError:
            found = None
        home = f"{found.__module__}." if inspect.isclass(found) else ""
        inside, outside = (any(home.startswith(f"{part}.") for part in parts) for parts in (BUILDABLE, NOT_BUILDABLE))
        if inspect.isclass(found) and inside and not outside:
            return found
    raise UserError(
        f"{_inside(where, '_target_')}: {target!r} is not a class of {PACKAGE} that a configuration may name; those "
        f"live in {', '.join(BUILDABLE)}"
    )


def call(cls: type, arguments: Mapping[str, Any], where: str = "") -> Any:
    """Build an object of a class from arguments that fit its hints.

    Raises:
        UserError: If they do not, or the constructor refuses them; with the key of the argument, below `where`.
    """
    check_arguments(cls, arguments, where)
    try:
        return cls(**arguments)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if ran_out(error):  # which is no fault of one argument
            raise
        raise UserError(at_key(where, str(error) or type(error).__name__, arguments_of(cls)[0])) from error


def at_key(where: str, message: str, names: Iterable[str]) -> str:
    """A constructor's message with the key of the configuration in place of the argument that it begins with.

    Args:
        where: The key that the constructor's settings stand under; "": none.
        message: The message, such as "steps must be positive".
        names: The constructor's arguments.
    """
    first = re.match(r"\w*", message)
    if not where:
        return message
    return f"{where}.{message}" if first and first[0] in names else f"{where}: {message}"
