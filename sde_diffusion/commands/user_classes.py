"""User-defined classes on the command line: their modules (`+plugins=`), and the classes that they replace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion import plugins
from sde_diffusion.checks.hints import Rule, check
from sde_diffusion.commands.configurations import parse
from sde_diffusion.config import PACKAGE, find_class, takes
from sde_diffusion.errors import UserError

KEY = "plugins"
_Modules = Annotated[str | list[str], Rule("the name of a module, or a list of them: +plugins=[my_module]", bool)]


def allow_new_keys(arguments: Sequence[str]) -> list[str]:
    """The arguments, changed so that Hydra accepts keys that no configuration has.

    These are `plugins`, and the settings of a class that replaces another one, or a name:
    sde._target_=my_module.MyPath sde.power=3.
    """
    read = [parse(argument) for argument in arguments]
    named = [
        f"{str(one.key_or_group).rpartition('.')[0]}."
        for one in read
        if one and str(one.key_or_group).endswith("._target_")
    ]

    def plus(override: Override | None) -> str:
        if override is None or override.type is not OverrideType.CHANGE:
            return ""
        below = str(override.key_or_group).startswith(tuple(named))
        return "+" if override.key_or_group == KEY else "++" if below else ""

    return [f"{plus(override)}{argument}" for argument, override in zip(arguments, read, strict=True)]


def apply(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Import the modules that a command line names, and remove settings of the classes that its own classes replace.

    Args:
        cfg: The composed configuration; changed in place.
        overrides: The overrides of the command line.

    Raises:
        UserError: See `plugins.load`.
    """
    typed = list(overrides)
    _load_plugins(typed)
    _remove_replaced(cfg, typed)


def _load_plugins(overrides: Iterable[Override]) -> None:
    """Import the modules of `+plugins=[my_module]`; `plugins` in a configuration file is ignored."""
    for override in overrides:
        if override.key_or_group == KEY and not override.is_delete():
            modules: Any = override.value()
            check(KEY, modules, _Modules)
            for module in [modules] if isinstance(modules, str) else modules:
                plugins.load(module)


def _remove_replaced(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Remove the settings of a class that the command line replaces by a user-defined one.

    With `sde._target_=my_module.MyPath`, beta_min of the default path has no meaning, and the default t_max may be
    wrong. What remains are settings from the command line, and settings that refer to other parts or are filled in
    later, if the class takes them.
    """
    typed = [key for override in overrides if not override.is_delete() for key in _keys(override)]
    for key in typed:
        where, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, where, throw_on_resolution_failure=False) if where else None
        if last != "_target_" or not isinstance(node, DictConfig):
            continue
        try:
            cls: Any = find_class(str(node._target_), where)
        except UserError:  # reported when the object is built
            continue
        if cls.__module__.startswith(f"{PACKAGE}."):
            continue
        with open_dict(node):
            for name in [str(name) for name in node if name != "_target_"]:
                was_typed = any(f"{one}.".startswith(f"{where}.{name}.") for one in typed)
                linked = OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)
                if not was_typed and not (linked and takes(node, name)):
                    del node[name]


def _keys(override: Override) -> list[str]:
    """The keys that an override sets, including those of a value {KEY: VALUE}."""
    key, value = str(override.key_or_group), override.value()
    return [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
