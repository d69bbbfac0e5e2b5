"""Representations of objects by their arguments, and of values in messages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ShowsArguments:
    """Gives a class that stores its constructor's arguments as attributes the repr `Name(argument=value, ...)`."""

    always_shown: tuple[str, ...] | None = None
    """Arguments that are shown even if they have their default, unless it is None; None: all arguments."""

    def __repr__(self) -> str:
        words = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            always = self.always_shown is None or (name in self.always_shown and value is not None)
            if hasattr(self, name) and (always or value != parameter.default):
                words.append(f"{name}={shown(value, math.inf)}")
        return f"{type(self).__name__}({', '.join(words)})"


def shown(value: Any, most: float = 60) -> str:
    """A value in a repr or a message: large tensors by their shape, tuples as lists, at most `most` characters long."""
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"tensor{list(value.shape)}"
    if isinstance(value, Tensor) and not value.ndim:
        return repr(value.item())
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= most else f"{type(value).__name__} {text[:50]}..."


def with_article(kind: type) -> str:
    """A class in a message: "a Trace", "an ODEMethod"."""
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def few(items: Sequence[object], most: int = 10) -> str:
    """The first of several items, for messages."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
