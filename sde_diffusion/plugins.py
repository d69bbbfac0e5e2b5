"""Modules of one's own, of which a configuration may name classes: those alone that the user has named.

On the command line: `+plugins=[my_module]`; in Python: `load("my_module")`. A checkpoint, a configuration or a sweep
file can name a class of such a module, but never a module.
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
    """A module of one's own, or a class of it, cannot be used: it is not named, not there, or raises an error."""


def may_be(module: str) -> bool:
    """Whether a module's name can be one of somebody's own: neither Python's nor this package's."""
    words = module.split(".")
    own = words[0] == __package__ or words[0] in sys.stdlib_module_names
    return not own and all(word.isidentifier() for word in words)


def load(name: str) -> None:
    """Import a module, so that configurations may name the classes that it defines.

    Args:
        name: As in `import name`. The module is looked for where Python looks, and in the current folder.

    Raises:
        PluginError: If there is no such module, it may not be named, or it raises an error when it is imported.
    """
    if name in _named:
        return
    if not may_be(name):
        raise PluginError(f"plugins: {name!r} is not the name of a module of one's own, as in import my_module")
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
                f"plugins: there is no module {error.name}{hint}, neither in this folder, {here}, nor where Python "
                "looks for installed ones"
            ) from error
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise PluginError(f"plugins: {name} cannot be imported: {_place(error)}{what}") from error
    _named.append(name)


def _place(error: BaseException) -> str:
    """The line of a plugin, or of a module of one's own that it imports, in which an error was raised."""
    if isinstance(error, SyntaxError):  # whose message names file and line
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
    """A class that a named module defines.

    Args:
        key: Where it is wanted, for messages.
        module: Its module.
        name: Its name there.

    Raises:
        PluginError: If the user has not named the module, with the setting that does; or it has no such class.
    """
    found = sys.modules.get(module) if _is_named(module) else None
    if found is None:
        raise PluginError(
            f"{key}: {module}.{name} is not a class of {__package__}; to use the class {name} of the module {module}, "
            f"which you must trust, add {setting('+plugins', [*_named, module])}"
        )
    cls = getattr(found, name, None)
    if isinstance(cls, type) and _is_named(cls.__module__):  # not what the module has imported from elsewhere
        return cls
    classes = [own for own, one in vars(found).items() if isinstance(one, type) and _is_named(one.__module__)]
    there = f"it has {', '.join(classes)}" if classes else "it has none"
    raise PluginError(f"{key}: {module} has no class {name} of its own{did_you_mean(name, classes)}; {there}")


def _is_named(module: str) -> bool:
    """Whether the user has named a module, or a package that it lies in."""
    return any(f"{module}.".startswith(f"{name}.") for name in _named)


def settings() -> dict[str, Any]:
    """What another command line needs to find the same classes: {"+plugins": names}, or {} where none are named."""
    return {"+plugins": list(_named)} if _named else {}
