"""Building objects from plain configurations, of this package's own classes and of modules that the user has named."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sde_diffusion import plugins
from sde_diffusion.checks.hints import arguments_of, check_arguments
from sde_diffusion.errors import UserError
from sde_diffusion.storage.memory import ran_out

PACKAGE = "sde_diffusion"
_ROOMS = ("sde", "denoiser", "guidance", "nn", "conditions", "sampling", "data", "metrics", "modality", "training")
BUILDABLE = tuple(f"{PACKAGE}.{room}" for room in _ROOMS)
"""The packages of which a configuration may name classes, each by package and name alone: `sde_diffusion.data.Moons`.

It may name those that the package exports, and those of its modules that extend an abstract class which it exports.
What writes files or talks to a network a package lists as `NOT_BUILDABLE`."""

_FORMER = {f"{PACKAGE}.training.Objective": f"{PACKAGE}.training.DenoisingScoreMatching"}
"""Public paths that earlier versions wrote, and what they stand for."""


def build(node: Any, where: str = "", /, **overrides: Any) -> Any:
    """Build the object that a configuration describes.

    A mapping with a `_target_` names a class of this package by its public path, or one of a module that the user has
    named (`plugins.load`); its other entries, built first where they are configurations themselves, are the
    constructor's arguments. A configuration may come out of a checkpoint: it is data, so nothing else is ever imported
    or called for it.

    Args:
        node: Plain containers: mappings, sequences, numbers, strings, None.
        where: The dotted key of the configuration that the node stands under, for messages.
        **overrides: Arguments added to the outermost constructor call.

    Returns:
        The object; containers without a `_target_` come back as plain dict and list.

    Raises:
        UserError: If a target is none of these classes, does not take an argument, or refuses its value.
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


def takes(node: Mapping[str, Any], argument: str, where: str = "") -> bool:
    """Whether the class that a configuration names has an argument of a name.

    Raises:
        UserError: If there is no such class.
    """
    known, _, more = arguments_of(find_class(str(node.get("_target_")), where))
    return more or argument in known


def to_containers(value: Any) -> Any:
    """Mappings and sequences, OmegaConf's among them, as dict and list."""
    if isinstance(value, Mapping):
        return {key: to_containers(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_containers(entry) for entry in value]
    return value


def settings_of(made: object, base: type) -> dict[str, Any]:
    """`_target_` and every constructor argument: what `build` rebuilds an object of, in plain containers.

    Args:
        made: The object, which keeps each argument in an attribute of the same name.
        base: The class up to which constructors hand arguments on as **keywords.
    """
    names = [
        name
        for cls in type(made).__mro__
        if issubclass(cls, base) and "__init__" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["__init__"]).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return {"_target_": public_path(type(made))} | {name: to_containers(getattr(made, name)) for name in names}


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def public_path(target: str | type) -> str:
    """The path by which a class is named in configurations, checkpoints and records: the package that exports it.

    It does not say in which file the class lies, so that files can be moved. A path that does, as earlier versions
    wrote them (`sde_diffusion.data.densities.Moons`), is understood by its package and name.

    Args:
        target: A class, or a dotted path to one.

    Returns:
        The path; that of a class which no package of this library exports is the one it has.
    """
    path = f"{target.__module__}.{target.__qualname__}" if isinstance(target, type) else target
    package, *inner = path.split(".")
    if package != PACKAGE or not inner:
        return path
    if len(inner) == 1:  # sde_diffusion.VPSDE
        home = str(getattr(getattr(importlib.import_module(PACKAGE), inner[0], None), "__module__", ""))
        inner = [*home.split(".")[1:2], *inner]
    found = f"{PACKAGE}.{inner[0]}.{inner[-1]}"
    found = _FORMER.get(found, found)
    package, _, name = found.rpartition(".")
    return found if name in _exported(package) or _extension(package, name) else path


def with_public_paths(node: Any) -> Any:
    """Plain containers in which each `_target_` of this package is a public path."""
    if isinstance(node, Mapping):
        return {
            key: public_path(value) if key == "_target_" and isinstance(value, str) else with_public_paths(value)
            for key, value in node.items()
        }
    return [with_public_paths(value) for value in node] if isinstance(node, list | tuple) else node


def _exported(package: str) -> Collection[str]:
    """Names that a package exports; none for what is not a package of this library that can be named."""
    return importlib.import_module(package).__all__ if package in (*BUILDABLE, f"{PACKAGE}.commands") else ()


def _extension(package: str, name: str) -> type | None:
    """A class that a package does not export, of a module of it, and that extends an abstract class which it exports.

    So a new path or data set needs its own file and a configuration, and no other file is changed.
    """
    if package not in BUILDABLE or name.startswith("_"):
        return None
    home = importlib.import_module(package)
    exported = [getattr(home, one) for one in home.__all__ if one not in getattr(home, "NOT_BUILDABLE", ())]
    bases = tuple(one for one in exported if inspect.isabstract(one))
    for module in pkgutil.iter_modules(home.__path__, f"{package}."):
        found = getattr(importlib.import_module(module.name), name, None)
        if isinstance(found, type) and found.__module__ == module.name and issubclass(found, bases):
            return found
    return None


def find_class(target: str, where: str = "") -> type:
    """The class that a `_target_` names: one that this package exports, or one of a module that the user has named.

    Raises:
        UserError: If there is no such class, or it is not one that a configuration may name; `plugins.PluginError`
            where it is of another module.
    """
    package, _, name = public_path(target).rpartition(".")
    if package in BUILDABLE:
        home = importlib.import_module(package)
        if name in home.__all__ and name not in getattr(home, "NOT_BUILDABLE", ()):
            found = getattr(home, name)
            if isinstance(found, type):
                return found
        if extension := _extension(package, name):
            return extension
    key = _inside(where, "_target_")
    if package.split(".")[0] == PACKAGE or not plugins.may_be(package):
        raise UserError(
            f"{key}: {target!r} is not a class of {PACKAGE} that a configuration may name; those are exported by "
            f"{', '.join(BUILDABLE)}"
        )
    return plugins.find_class(key, package, name)


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
