"""Plugins: modules of the user, whose classes configurations may name.

They are loaded by `+plugins=[my_module]` on the command line, or `load("my_module")` in Python. A checkpoint, a
configuration or a sweep file can name classes of loaded modules, but cannot load a module.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from sde_diffusion.checks.overrides import setting
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.storage.signals import Stopped

_named: list[str] = []


class PluginError(UserError):
    """A plugin, or a class in it, cannot be used: it has not been loaded, does not exist, or raises an error."""


def may_be(module: str) -> bool:
    """Whether a module's name may be that of a plugin: neither of the standard library nor of this package."""
    words = module.split(".")
    own = words[0] == __package__ or words[0] in sys.stdlib_module_names
    return not own and all(word.isidentifier() for word in words)


def load(name: str) -> None:
    """Import a module, so that configurations may name the classes that it defines.

    Args:
        name: Name of the module, as in `import name`. It is searched on Python's path and in the current folder.

    Raises:
        PluginError: If there is no such module, the name is not allowed, or the import raises an error.
    """
    if name in _named:
        return
    if not may_be(name):
        raise PluginError(f"plugins: {name!r} is not the name of a user's module, as in import my_module")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, Stopped) or ran_out(error):
            raise
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            hint = did_you_mean(name, [path.stem for path in Path().glob("*.py")])
            raise PluginError(
                f"plugins: there is no module {error.name}{hint}, neither in this folder, {here}, nor on Python's path"
            ) from error
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise PluginError(f"plugins: {name} cannot be imported: {_place(error)}{what}") from error
    _named.append(name)


def _place(error: BaseException) -> str:
    """The line of a plugin, or of a module in its folder that it imports, in which an error was raised."""
    if isinstance(error, SyntaxError):  # its message has file and line
        return ""
    importing = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in importing and not frame.filename.startswith("<frozen")
    ]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(frames[0].filename).parent)]
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""


def find_class(key: str, module: str, name: str) -> type:
    """A class that a loaded plugin defines.

    Args:
        key: The key that names the class, for messages.
        module: Name of the module.
        name: Name of the class.

    Raises:
        PluginError: If the module has not been loaded (the message says how to), or has no such class.
    """
    found = sys.modules.get(module) if _is_named(module) else None
    if found is None:
        raise PluginError(
            f"{key}: {module}.{name} is not a class of {__package__}; to use the class {name} of the module {module}, "
            f"if you trust it, add {setting('+plugins', [*_named, module])}"
        )
    cls = getattr(found, name, None)
    if isinstance(cls, type) and _is_named(cls.__module__):  # not a class that the module imports from elsewhere
        return cls
    classes = [own for own, one in vars(found).items() if isinstance(one, type) and _is_named(one.__module__)]
    there = f"it has {', '.join(classes)}" if classes else "it has none"
    raise PluginError(f"{key}: {module} has no class {name} of its own{did_you_mean(name, classes)}; {there}")


def _is_named(module: str) -> bool:
    """Whether the user has loaded a module, or a package that contains it."""
    return any(f"{module}.".startswith(f"{name}.") for name in _named)


def settings() -> dict[str, Any]:
    """The settings that other commands need to load the same plugins: {"+plugins": names}, or {} without plugins."""
    return {"+plugins": list(_named)} if _named else {}
