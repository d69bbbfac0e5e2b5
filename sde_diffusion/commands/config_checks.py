"""Checks of a composed configuration, key by key, before a command begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sde_diffusion.checks.hints import Described, arguments_of, as_integers, check, check_arguments, fits, words
from sde_diffusion.checks.overrides import hydra_value
from sde_diffusion.commands.app import override_hint, resolved
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.config import PACKAGE, build, build_around, call, find_class, is_description, takes
from sde_diffusion.errors import UserError


class ConfigChecks:
    """The checks that a command's schema consists of. Each raises UserError if a value is not allowed.

    Args:
        cfg: The configuration. An integer written as a float, such as n=10.0, is replaced by an int in it.

    Attributes:
        seen: The keys that have been checked.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.trial = cfg.copy()  # with placeholders for values that depend on the data
        self.seen: set[str] = set()
        self.filled: set[str] = set()

    def fill_in(self, key: str, value: Any) -> None:
        """Use a placeholder for a value that is missing or null until the data are known."""
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
        """The value of a key, with dicts and lists in place of OmegaConf's containers."""
        self.seen.add(key)
        where, _, name = key.rpartition(".")
        parent = self.trial[where] if where else self.trial
        if name not in parent or OmegaConf.is_missing(parent, name):
            raise UserError(f"{key} is needed: {choose(key) or f'give {key}=VALUE (see --help)'}")
        return resolved(parent[name])

    def has(self, key: str) -> bool:
        """Whether a key that may be left out has a value."""
        self.seen.add(key)
        return key in self.trial

    def keys(self, **hints: Any) -> dict[str, Any]:
        """Check values against type hints, and return them."""
        found = {}
        for key, hint in hints.items():
            value = self.value(key)
            check(key, value, hint)
            found[key] = self._with_integers(key, value, hint)
        return found

    def _with_integers(self, key: str, value: Any, hint: Any) -> Any:
        found = as_integers(value, hint)
        if repr(found) != repr(value):
            for cfg in (self.cfg, self.trial):
                OmegaConf.update(cfg, key, found)
        return found

    def settings(
        self, key: str, cls: type, rules: Mapping[str, Any] | None = None, reserved: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Check the arguments of a class, and return them.

        Args:
            key: The key that holds the arguments.
            cls: The class.
            rules: Hints that replace those of the constructor.
            reserved: Arguments that the command supplies, and that must not be set.
        """
        values = self.value(key)
        check(key, values, Mapping[str, Any])
        values = {name: value for name, value in values.items() if name != "_target_"}
        try:
            check_arguments(cls, values, key, rules, reserved)
        except UserError as error:  # perhaps of a key that a group of its own has set, such as observation=
            typed = [override_hint(name) for name in values if str(error).startswith(f"{key}.{name}:")]
            raise UserError(f"{error}{''.join(typed)}") from error
        hints = {**arguments_of(cls)[0], **(rules or {})}
        return {name: self._with_integers(f"{key}.{name}", value, hints[name]) for name, value in values.items()}

    def model(self, key: str, reserved: tuple[str, ...]) -> tuple[type, dict[str, Any]]:
        """Check the class and the settings of a model, and return them; older runs name no class.

        Args:
            key: The key that holds them.
            reserved: Arguments that the command supplies, and that must not be set.
        """
        from sde_diffusion.training.models import MODELS, model_class

        values = self.value(key)
        check(key, values, Mapping[str, Any])
        target = values.get("_target_", MODELS[0])
        check(f"{key}._target_", target, str)
        cls = model_class(target)
        return cls, self.settings(key, cls, reserved=reserved)

    def call(self, key: str, cls: type, **arguments: Any) -> None:
        """Check arguments by building an object of a class; `key` is for messages."""
        call(cls, arguments, key)

    def part(self, key: str, kind: type, prepare: Callable[[Any], Any] = lambda node: node, **built: Any) -> Any:
        """Check the description of an object by building it, and return the object.

        Args:
            key: The key that holds the description.
            kind: Required class of the object.
            prepare: Replaces parts of the description before it is built.
            **built: Objects to use in place of their descriptions, which have been checked under their own keys.
        """
        values = prepare(self.value(key))
        if not is_description(values):
            raise UserError(
                f"{key} must describe an object of class {kind.__name__}: {choose(key)}, or {{_target_: CLASS, ...}}"
            )
        built = {name: value for name, value in built.items() if values.get(name) == self.value(name)}
        found = build({name: value for name, value in values.items() if name not in built}, key, **built)
        _expect_kind(key, values, type(found), kind)
        return found

    def choice(
        self,
        key: str,
        kind: type,
        others: Any = None,
        prepare: Callable[[Any], Any] = lambda node: node,
        **offered: Any,
    ) -> Any:
        """Check the description of an object, or a value that stands for one, such as a name; returns either.

        Args:
            key: The key that holds it.
            kind: Required class of the object.
            others: Hint of the values that may be given in place of a description; null by default.
            prepare: Replaces parts of a description before it is built.
            **offered: Placeholders for the arguments that the object is offered; see `build_around`.
        """
        value = self.value(key)
        found = build_around(prepare(value) if is_description(value) else value, key, **offered)
        if is_description(value):
            _expect_kind(key, value, type(found), kind)
        elif not fits(value, others) and (choices := choose(key)):
            raise UserError(
                f"{key} must be {words(others)}, or describe an object: {choices}, or {{_target_: CLASS, ...}}"
            )
        else:
            check(key, value, others | Described)
        return found

    def parts(self, key: str, hint: Any, prepare: Callable[[Any], Any] = lambda node: node, **arguments: Any) -> None:
        """Check several descriptions under one key, by name; `prepare` as in `part`, `arguments` are added to each."""
        values = self.value(key)
        if not isinstance(values, Mapping) or not values:
            raise UserError(f"{key} must not be empty: {choose(key) or f'{key}={{NAME: ...}}'}; got {key}={values}")
        for name, node in values.items():
            check(f"{key}.{name}", node, hint)
            build(prepare(node), f"{key}.{name}", **arguments)

    def data(self, key: str, kind: type, location: Any) -> None:
        """Check the description of a data set, or else the new location of the model's own data."""
        values = self.value(key)
        check(key, values, Mapping[str, Any])
        if "_target_" not in values:
            check(key, values, location)
            return
        nulls = {name for name in location.__annotations__ if values.get(name, ...) is None}
        found = build({name: value for name, value in values.items() if name not in nulls}, key)
        _expect_kind(key, values, type(found), kind)

    def network(self, key: str) -> nn.Module:
        """Check a network by building it without memory for its weights.

        If it cannot be built for the placeholder shape, a placeholder network is returned: whether it can be built for
        the data's shape is known only when the data are.
        """
        with torch.device("meta"), _Unset():
            try:
                return self.part(key, nn.Module)  # type: ignore[no-any-return]
            except UserError as error:
                message = str(error)
                of_shape = f"{key}.shape" in message or not message.startswith(f"{key}.")
                if f"{key}.shape" not in self.filled or not of_shape:
                    raise
                return nn.Identity()

    def instances(self, key: str, kind: type, **offered: Any) -> None:
        """Check descriptions of objects of any library's classes; those of this package are built if any are `offered`.

        Args:
            key: The key that holds the descriptions, by name, or null.
            kind: Required class of the objects.
            **offered: See `build_around`.
        """
        values = self.value(key)
        check(key, values, Mapping[str, Any])
        for name, node in values.items():
            where = f"{key}.{name}"
            if node is None:
                continue
            if not is_description(node):
                raise UserError(
                    f"{where} must be null, or describe an object of class {kind.__name__}, "
                    f"{{_target_: CLASS, ...}}; got {where}={hydra_value(node)}"
                )
            cls = find_class(str(node["_target_"]), where, any_library=True)
            _expect_kind(where, node, cls, kind)
            if cls.__module__.startswith(f"{PACKAGE}.") and offered:
                build_around(node, where, any_library=True, **offered)
            else:
                check_arguments(cls, {name: value for name, value in node.items() if name != "_target_"}, where)


def _expect_kind(key: str, node: Mapping[str, Any], cls: type, kind: type) -> None:
    if not issubclass(cls, kind):
        key = f"{key}._target_"
        raise UserError(f"{key} must name a class that extends {kind.__name__}; got {key}={node['_target_']}")


class _Unset(TorchFunctionMode):
    """Skip operations that set a tensor's values, which are slow and useless on tensors without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensor = getattr(func, "__name__", ""), args[0] if args else (kwargs or {}).get("tensor")
        if name.endswith("_") and not name.endswith("__") and isinstance(tensor, Tensor):
            return tensor
        return func(*args, **(kwargs or {}))


def choose(key: str) -> str:
    """The choices of a group, for messages: "choose sde= from ve, vp"; "" if there are none."""
    choices = sorted(path.stem for path in (config_folder() / key).glob("*.yaml"))
    return f"choose {key}= from {', '.join(choices)}" if choices else ""
