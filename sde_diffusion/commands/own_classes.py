"""Classes of one's own on the command line: the modules that it names, and what it puts in another class's place."""

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
_Modules = Annotated[str | list[str], Rule(bool, "the name of a module, or a list of them: +plugins=[my_module]")]


def adding(arguments: Sequence[str]) -> list[str]:
    """Arguments, changed so that Hydra accepts keys that no configuration has.

    These are plugins, and the settings of a class of one's own that is named in the place of another:
    sde._target_=my_module.MyPath sde.power=3.
    """
    read = [parse(argument) for argument in arguments]
    named = [
        f"{str(one.key_or_group).rpartition('.')[0]}."
        for one in read
        if one and str(one.key_or_group).endswith("._target_") and not str(one.value()).startswith(f"{PACKAGE}.")
    ]

    def plus(override: Override | None) -> str:
        if override is None or override.type is not OverrideType.CHANGE:
            return ""
        below = str(override.key_or_group).startswith(tuple(named))
        return "+" if override.key_or_group == KEY else "++" if below else ""

    return [f"{plus(override)}{argument}" for argument, override in zip(arguments, read, strict=True)]


def take(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Import the modules that a command line names, and let the classes that it names take their places.

    Args:
        cfg: The composed configuration, which is changed.
        overrides: What was typed.

    Raises:
        UserError: See `plugins.load`.
    """
    typed = list(overrides)
    _load_named(typed)
    _take_places(cfg, typed)


def _load_named(overrides: Iterable[Override]) -> None:
    """Import the modules of `+plugins=[my_module]`; what a configuration says of plugins without that is not read."""
    for override in overrides:
        if override.key_or_group == KEY and not override.is_delete():
            modules: Any = override.value()
            check(KEY, modules, _Modules)
            for module in [modules] if isinstance(modules, str) else modules:
                plugins.load(module)


def _take_places(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Leave out what the class that stood in a configuration was given, where the command line names one of one's own.

    With `sde._target_=my_module.MyPath`, beta_min of the default path has no meaning, and its t_max may be another's.
    Left are settings that were typed, and those that refer to other parts or are filled in later, where the class takes
    them.
    """
    typed = [key for override in overrides if not override.is_delete() for key in _keys(override)]
    for key in typed:
        where, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, where, throw_on_resolution_failure=False) if where else None
        if last != "_target_" or not isinstance(node, DictConfig):
            continue
        try:
            cls: Any = find_class(str(node._target_), where)
        except UserError:  # told where the part is built
            continue
        if cls.__module__.startswith(f"{PACKAGE}."):
            continue
        with open_dict(node):
            for name in [str(name) for name in node if name != "_target_"]:
                given = any(f"{one}.".startswith(f"{where}.{name}.") for one in typed)
                linked = OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)
                if not given and not (linked and takes(node, name)):
                    del node[name]


def _keys(override: Override) -> list[str]:
    """The keys that an override sets, those of its value {KEY: VALUE} too."""
    key, value = str(override.key_or_group), override.value()
    return [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
