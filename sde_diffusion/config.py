"""Building objects from configurations: of this package's classes, and of the user's plugins.

A configuration consists of plain Python containers: dicts, lists, numbers, strings, booleans and None. A dict with a
`_target_` describes an object of that class; its other entries are the constructor's arguments.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sde_diffusion import plugins
from sde_diffusion.checks.hints import arguments_of, check_arguments
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.storage.memory import ran_out

PACKAGE = "sde_diffusion"
_NAMES = (
    "sde",
    "denoiser",
    "guidance",
    "nn",
    "conditions",
    "sampling",
    "density",
    "variational",
    "text",
    "data",
    "metrics",
    "modality",
    "training",
)
BUILDABLE = tuple(f"{PACKAGE}.{name}" for name in _NAMES)
"""The packages whose classes a configuration may name, by package and name: `sde_diffusion.data.Moons`.

These are the classes that the package exports, and those in its modules that extend an abstract class which it exports.
Classes that write files or use the network are excluded: a package lists them as `NOT_BUILDABLE`."""

_RENAMED = {f"{PACKAGE}.training.Objective": f"{PACKAGE}.training.DenoisingScoreMatching"}
"""Public paths written by earlier versions, and the present ones."""


def build(node: Any, where: str = "", /, *, any_library: bool = False, **overrides: Any) -> Any:
    """Build the object that a configuration describes.

    A `_target_` names a class of this package by its public path, or a class of a module loaded by `plugins.load`. Its
    other entries are built first, and then passed to the constructor. Since a configuration may come from a checkpoint,
    nothing else is ever imported or called for it.

    Args:
        node: The configuration.
        where: Dotted key of the configuration, for messages.
        any_library: Whether the outermost `_target_` may name a class of any library: of a configuration that is not
            from a checkpoint.
        **overrides: Arguments added to the outermost constructor call.

    Returns:
        The object; dicts and lists without a `_target_` are returned with their entries built.

    Raises:
        UserError: If a target is not one of these classes, or its constructor does not take an argument or its value.
    """
    if isinstance(node, Mapping):
        values = {key: build(value, _inside(where, key)) for key, value in node.items() if key != "_target_"}
        if "_target_" not in node:
            return values
        return call(find_class(str(node["_target_"]), where, any_library), {**values, **overrides}, where)
    if isinstance(node, list | tuple):
        return [build(value, f"{where}[{number}]") for number, value in enumerate(node)]
    return node


def build_around(node: Any, where: str = "", /, *, any_library: bool = False, **offered: Any) -> Any:
    """Build an object, with further arguments if its constructor takes them and the configuration does not set them.

    Args:
        node: The configuration; one without a `_target_`, such as a name or null, is returned as it is.
        where: See `build`.
        any_library: See `build`.
        **offered: The further arguments.

    Raises:
        UserError: See `build`.
    """
    if not is_description(node):
        return node
    names = arguments_of(find_class(str(node["_target_"]), where, any_library))[0]
    offered = {name: value for name, value in offered.items() if name in names and node.get(name) is None}
    return build(node, where, any_library=any_library, **offered)


def is_description(node: Any) -> bool:
    """Whether a configuration describes an object."""
    return isinstance(node, Mapping) and "_target_" in node


def takes(node: Mapping[str, Any], argument: str, where: str = "") -> bool:
    """Whether the class that a configuration names takes an argument.

    Raises:
        UserError: If there is no such class.
    """
    known, _, more = arguments_of(find_class(str(node.get("_target_")), where))
    return more or argument in known


def to_containers(value: Any) -> Any:
    """Convert mappings and sequences, including OmegaConf's, to dicts and lists."""
    if isinstance(value, Mapping):
        return {key: to_containers(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_containers(entry) for entry in value]
    return value


def settings_of(made: object, base: type) -> dict[str, Any]:
    """The configuration of an object, from which `build` can rebuild it: `_target_` and all constructor arguments.

    Args:
        made: The object, which must store each argument in an attribute of the same name.
        base: The class up to which constructors pass on **keywords.
    """
    names: list[str] = []
    for cls in type(made).__mro__:
        if issubclass(cls, base) and "__init__" in vars(cls):
            parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())
            names += [one.name for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break  # its own base classes get no others
    return {"_target_": public_path(type(made))} | {name: to_containers(getattr(made, name)) for name in names}


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def public_path(target: str | type) -> str:
    """The path by which configurations, checkpoints and records name a class: exporting package and name.

    It does not depend on the file that defines the class, so that files can be moved. Paths that contain the file, as
    written by earlier versions (`sde_diffusion.data.densities.Moons`), are converted.

    Args:
        target: A class, or a dotted path to one.

    Returns:
        The public path; for classes that no package of this library exports, the path as it is.
    """
    path = f"{target.__module__}.{target.__qualname__}" if isinstance(target, type) else target
    package, *inner = path.split(".")
    if package != PACKAGE or not inner:
        return path
    if len(inner) == 1:  # sde_diffusion.VPSDE
        home = str(getattr(getattr(importlib.import_module(PACKAGE), inner[0], None), "__module__", ""))
        inner = [*home.split(".")[1:2], *inner]
    found = f"{PACKAGE}.{inner[0]}.{inner[-1]}"
    found = _RENAMED.get(found, found)
    package, _, name = found.rpartition(".")
    return found if name in _exported(package) or _extension(package, name) else path


def with_public_paths(node: Any) -> Any:
    """A configuration in which each `_target_` of this package is replaced by its public path."""
    if isinstance(node, Mapping):
        return {
            key: public_path(value) if key == "_target_" and isinstance(value, str) else with_public_paths(value)
            for key, value in node.items()
        }
    return [with_public_paths(value) for value in node] if isinstance(node, list | tuple) else node


def _exported(package: str) -> Collection[str]:
    """Names that a package exports; empty unless configurations may name its classes."""
    return importlib.import_module(package).__all__ if package in (*BUILDABLE, f"{PACKAGE}.commands") else ()


@cache
def _classes(package: str) -> list[str]:
    """Names of the exported classes of a package that configurations may name."""
    if package not in BUILDABLE:
        return []
    home = importlib.import_module(package)
    allowed = {*home.__all__} - {*getattr(home, "NOT_BUILDABLE", ())}
    return sorted(name for name in allowed if isinstance(getattr(home, name), type))


def _extension(package: str, name: str) -> type | None:
    """A class in a module of a package that extends an abstract class which the package exports; None if there is none.

    So a new path or data set needs only its own file and a configuration; no other file has to be changed.
    """
    if package not in BUILDABLE or name.startswith("_"):
        return None
    home = importlib.import_module(package)
    exported = [getattr(home, one) for one in _classes(package)]
    bases = tuple(one for one in exported if inspect.isabstract(one))
    for module in pkgutil.iter_modules(home.__path__, f"{package}."):
        found = getattr(importlib.import_module(module.name), name, None)
        if isinstance(found, type) and found.__module__ == module.name and issubclass(found, bases):
            return found
    return None


def find_class(target: str, where: str = "", any_library: bool = False) -> type:
    """The class that a `_target_` names: one that this package exports, one of a plugin, or one of any library.

    Args:
        target: Its dotted path.
        where: Dotted key of the configuration, for messages.
        any_library: See `build`.

    Raises:
        UserError: If there is no such class, or a configuration may not name it; `plugins.PluginError` if it is of
            another module.
    """
    package, _, name = public_path(target).rpartition(".")
    if package in BUILDABLE:
        if name in _classes(package):
            return getattr(importlib.import_module(package), name)  # type: ignore[no-any-return]
        if extension := _extension(package, name):
            return extension
    key = _inside(where, "_target_")
    if any_library:
        return _import_class(key, package, name)
    if package.split(".")[0] == PACKAGE or not plugins.may_be(package):
        those = _classes(package)
        there = f"{package} has {', '.join(those)}" if those else f"those are in {', '.join(BUILDABLE)}"
        hint = did_you_mean(name, those)
        raise UserError(f"{key}: {target!r} is not a class of {PACKAGE} that a configuration may name{hint}; {there}")
    return plugins.find_class(key, package, name)


def _import_class(key: str, module: str, name: str) -> type:
    try:
        home = importlib.import_module(module)
    except (ImportError, ValueError) as error:  # an empty name
        raise UserError(f"{key}={module}.{name}: {error}") from error
    found = getattr(home, name, None)
    if not isinstance(found, type):
        classes = [one for one in getattr(home, "__all__", vars(home)) if isinstance(getattr(home, one, None), type)]
        hint = did_you_mean(name, classes)
        raise UserError(f"{key} must name a class, MODULE.CLASS; got {key}={module}.{name}{hint}")
    return found


_MISTAKES = (ValueError, TypeError, ArithmeticError, RuntimeError, ImportError)
"""Errors by which constructors refuse their arguments, besides those that a library defines."""


def call(cls: type, arguments: Mapping[str, Any], where: str = "") -> Any:
    """Call a constructor, after checking that the arguments fit its type hints.

    Raises:
        UserError: If they do not, or the constructor raises an error; the message has the key of the argument.
    """
    check_arguments(cls, arguments, where)
    try:
        return cls(**arguments)
    except Exception as error:
        refused = isinstance(error, _MISTAKES) or type(error).__module__ != "builtins"
        if isinstance(error, UserError) or not refused or ran_out(error):  # memory is not the fault of one argument
            raise
        raise UserError(at_key(where, str(error) or type(error).__name__, arguments_of(cls)[0])) from error


def at_key(where: str, message: str, names: Iterable[str]) -> str:
    """A constructor's error message, with the dotted key in place of the argument's name at its beginning.

    Args:
        where: The key that holds the constructor's arguments; "": none.
        message: The message, such as "steps must be positive".
        names: Names of the constructor's arguments.
    """
    first = re.match(r"\w*", message)
    if not where:
        return message
    return f"{where}.{message}" if first and first[0] in names else f"{where}: {message}"
