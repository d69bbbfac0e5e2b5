"""A look at a composed configuration, key by key, before a command begins."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sde_diffusion.checks.hints import arguments_of, check, check_arguments, whole_numbers
from sde_diffusion.commands.app import plain
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.config import PACKAGE, build, build_around, call, takes
from sde_diffusion.errors import UserError


class Look:
    """The checks that a command's schema is made of. Each raises UserError where a value does not fit.

    Args:
        cfg: The configuration. A whole number that is written as a fraction, such as n=10.0, becomes whole in it.

    Attributes:
        seen: The keys at the top that have been looked at.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.trial = cfg.copy()  # with stand-ins for what the data decide
        self.seen: set[str] = set()
        self.filled: set[str] = set()

    def fill_in(self, key: str, value: Any) -> None:
        """Let a value stand in for one that is missing or null until the data are known."""
        where, _, name = key.rpartition(".")
        parent = self.trial.get(where)
        if not isinstance(parent, DictConfig) or not parent.get("_target_"):
            return
        empty = name not in parent or (not OmegaConf.is_interpolation(parent, name) and parent.get(name) is None)
        if (empty or OmegaConf.is_missing(parent, name)) and takes(parent, name, where):
            with open_dict(parent):
                parent[name] = value
            self.filled.add(key)

    def value(self, key: str) -> Any:
        """A key's value in plain containers."""
        self.seen.add(key)
        if key not in self.trial or OmegaConf.is_missing(self.trial, key):
            raise UserError(f"{key} is needed: {_choose(key) or f'give {key}=VALUE (see --help)'}")
        return plain(self.trial[key])

    def keys(self, **hints: Any) -> dict[str, Any]:
        """Look at values by their hints."""
        found = {}
        for key, hint in hints.items():
            value = self.value(key)
            check(key, value, hint)
            found[key] = self._whole(key, value, hint)
        return found

    def _whole(self, key: str, value: Any, hint: Any) -> Any:
        found = whole_numbers(value, hint)
        if repr(found) != repr(value):
            for cfg in (self.cfg, self.trial):
                OmegaConf.update(cfg, key, found)
        return found

    def settings(
        self, key: str, cls: type, rules: Mapping[str, Any] | None = None, given: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Look at the arguments of one class, but for those that the command gives.

        Args:
            key: Where they stand.
            cls: The class.
            rules: Hints that take the place of the constructor's.
            given: Arguments that cannot be set.
        """
        values = self.value(key)
        check(key, values, Mapping[str, Any])
        values = {name: value for name, value in values.items() if name != "_target_"}
        check_arguments(cls, values, key, rules, given)
        hints = {**arguments_of(cls)[0], **(rules or {})}
        return {name: self._whole(f"{key}.{name}", value, hints[name]) for name, value in values.items()}

    def model(self, key: str, given: tuple[str, ...]) -> tuple[type, dict[str, Any]]:
        """Look at the class and the settings of a model, but for those that the command gives; a run of before has one.

        Args:
            key: Where they stand.
            given: Arguments that cannot be set.
        """
        from sde_diffusion.training.models import MODELS, model_class

        values = self.value(key)
        check(key, values, Mapping[str, Any])
        target = values.get("_target_", MODELS[0])
        check(f"{key}._target_", target, str)
        cls = model_class(target)
        return cls, self.settings(key, cls, given=given)

    def call(self, key: str, cls: type, **arguments: Any) -> None:
        """Build an object on trial, of settings that stand under a key."""
        call(cls, arguments, key)

    def part(self, key: str, kind: type, **given: Any) -> Any:
        """Look at a description of an object by building it.

        Args:
            key: Where it stands.
            kind: The class that it must be of.
            **given: Objects in place of what describes them, which has been looked at where it stands itself.
        """
        values = self.value(key)
        if not isinstance(values, Mapping) or "_target_" not in values:
            raise UserError(
                f"{key} must describe an object of class {kind.__name__}: {_choose(key)}, or {{_target_: CLASS, ...}}"
            )
        given = {name: value for name, value in given.items() if values.get(name) == self.value(name)}
        found = build({name: value for name, value in values.items() if name not in given}, key, **given)
        check(key, found, kind)
        return found

    def wrapper(self, key: str, kind: type, **offered: Any) -> None:
        """Look at a description of an object that is made around others, or null.

        Args:
            key: Where it stands.
            kind: The class that it must be of.
            **offered: Stand-ins for what is offered to it.
        """
        values = self.value(key)
        if values is None:
            return
        if not isinstance(values, Mapping) or "_target_" not in values:
            raise UserError(f"{key} must be null, or describe an object: {_choose(key)}, or {{_target_: CLASS, ...}}")
        check(key, build_around(values, key, **offered), kind)

    def parts(self, key: str, hint: Any, **given: Any) -> None:
        """Look at several descriptions, each under a name of its own."""
        values = self.value(key)
        if not isinstance(values, Mapping) or not values:
            raise UserError(f"{key} must name some: {_choose(key) or f'{key}={{NAME: ...}}'}; got {key}={values}")
        for name, node in values.items():
            check(f"{key}.{name}", node, hint)
            build(node, f"{key}.{name}", **given)

    def places(self, key: str, kind: type, places: Any) -> None:
        """Look at another data set than the model's own, or at where that one lies now."""
        values = self.value(key)
        check(key, values, Mapping[str, Any])
        if "_target_" not in values:
            check(key, values, places)
            return
        nulls = {name for name in places.__annotations__ if values.get(name, ...) is None}
        check(key, build({name: value for name, value in values.items() if name not in nulls}, key), kind)

    def network(self, key: str) -> nn.Module:
        """Look at a network, without memory for its weights; a stand-in where it cannot be built for a stand-in shape.

        What it refuses in the shape alone cannot be told before the data are known.
        """
        with torch.device("meta"), _Unset():
            try:
                return self.part(key, nn.Module)  # type: ignore[no-any-return]
            except UserError as error:
                told = str(error)
                if f"{key}.shape" not in self.filled or (told.startswith(f"{key}.") and f"{key}.shape" not in told):
                    raise
                return nn.Identity()

    def instances(self, key: str, kind: type, **fallbacks: Any) -> None:
        """Look at what Hydra builds, of any library's classes; those of this package that keep to themselves are built.

        Args:
            key: Where they stand, each under a name of its own, or null.
            kind: The class that they must be of.
            **fallbacks: Arguments in place of null.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        values = self.value(key)
        check(key, values, Mapping[str, Any])
        for name, node in values.items():
            where = f"{key}.{name}"
            if node is None:
                continue
            if not isinstance(node, Mapping) or "_target_" not in node:
                raise UserError(
                    f"{where} must be null, or describe an object of class {kind.__name__}, "
                    f"{{_target_: CLASS, ...}}; got {where}={node}"
                )
            cls = _find_class(f"{where}._target_", str(node["_target_"]))
            arguments = {name: value for name, value in node.items() if not name.startswith("_")}
            for argument, fallback in fallbacks.items():
                if argument in arguments:
                    node = arguments[argument]
                    arguments[argument] = fallback if node is None else build(node, f"{where}.{argument}")
            check_arguments(cls, arguments, where)
            if cls.__module__.startswith(f"{PACKAGE}.") and fallbacks:
                try:
                    call(cls, arguments, where)
                except MisconfigurationException as error:  # of a class of Lightning's that it is made from
                    raise UserError(f"{where}: {error}") from error


def _find_class(key: str, target: str) -> type:
    """A class of any library, by its dotted path."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise UserError(f"{key}={target}: {error}") from error
    if not isinstance(found, type):
        raise UserError(f"{key} must name a class, MODULE.CLASS; got {key}={target}")
    return found


class _Unset(TorchFunctionMode):
    """Leaves out what sets a tensor's values, which is slow on tensors without memory, and of no use there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensor = getattr(func, "__name__", ""), args[0] if args else (kwargs or {}).get("tensor")
        if name.endswith("_") and not name.endswith("__") and isinstance(tensor, Tensor):
            return tensor
        return func(*args, **(kwargs or {}))


def _choose(key: str) -> str:
    choices = sorted(path.stem for path in (config_folder() / key).glob("*.yaml"))
    return f"choose {key}= from {', '.join(choices)}" if choices else ""
