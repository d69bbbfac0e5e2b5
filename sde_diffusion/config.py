"""Building objects from plain configurations, of this package's own classes only."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from sde_diffusion.errors import UserError, did_you_mean

PACKAGE = "sde_diffusion"
BUILDABLE = tuple(
    f"{PACKAGE}.{part}"
    for part in (
        *("sde", "denoiser", "nn", "sampling", "data", "metrics"),
        *("training.objective", "training.weighting", "training.time_sampling"),
    )
)
"""Where the classes live that a configuration may name: none of these writes files or talks to a network."""

NOT_BUILDABLE = (f"{PACKAGE}.metrics.pretrained",)
"""But for these, which may fetch weights."""


def build(node: Any, **overrides: Any) -> Any:
    """Build the object that a configuration describes.

    A mapping with a `_target_` names a class of this package by its dotted path; its other entries, built first where
    they are configurations themselves, are the constructor's arguments. A configuration may come out of a checkpoint:
    it is data, so nothing outside this package is ever imported or called for it.

    Args:
        node: Plain containers: mappings, sequences, numbers, strings, None.
        **overrides: Arguments added to the outermost constructor call.

    Returns:
        The object; containers without a `_target_` come back as plain dict and list.

    Raises:
        UserError: If a target is not a class of this package, or does not take an argument.
    """
    if isinstance(node, Mapping):
        values = {key: build(value) for key, value in node.items() if key != "_target_"}
        if "_target_" not in node:
            return values
        return _call(_find(str(node["_target_"])), {**values, **overrides})
    if isinstance(node, list | tuple):
        return [build(value) for value in node]
    return node


def plain_containers(value: Any) -> Any:
    """Mappings and sequences, OmegaConf's among them, as dict and list."""
    if isinstance(value, Mapping):
        return {key: plain_containers(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_containers(entry) for entry in value]
    return value


def _find(target: str) -> type:
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
        f"_target_: {target!r} is not a class of {PACKAGE} that a configuration may name; those live in "
        f"{', '.join(BUILDABLE)}"
    )


def _call(cls: type, arguments: dict[str, Any]) -> Any:
    parameters = inspect.signature(cls).parameters
    allowed = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    unknown = [name for name in arguments if name not in allowed]
    if unknown and len(allowed) == len(parameters):
        hint = did_you_mean(unknown[0], allowed)
        raise UserError(f"{cls.__name__} takes no {', '.join(unknown)}{hint}; it takes {', '.join(allowed)}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
    except TypeError as error:  # a value of another kind, such as a word for a number
        values = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if not hasattr(value, "__dict__"))
        raise UserError(f"{cls.__name__}({values}): {error}; look at the values' types") from error
