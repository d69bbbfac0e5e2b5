"""Objects that show what they were made of, and values in messages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ShowsArguments:
    """`Name(argument=value, ...)` for a class that keeps its constructor's arguments under their own names."""

    always_shown: tuple[str, ...] | None = None
    """Arguments that are shown at their defaults too, unless None; None: all are."""

    def __repr__(self) -> str:
        words = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            always = self.always_shown is None or (name in self.always_shown and value is not None)
            if hasattr(self, name) and (always or value != parameter.default):
                words.append(f"{name}={shown(value, math.inf)}")
        return f"{type(self).__name__}({', '.join(words)})"


def shown(value: Any, most: float = 60) -> str:
    """A value in a repr or a message: a large tensor by its shape, a shape as a list, cut off after `most` letters."""
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"tensor{list(value.shape)}"
    if isinstance(value, Tensor) and not value.ndim:
        return repr(value.item())
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= most else f"{type(value).__name__} {text[:50]}..."


def few(items: Sequence[object], most: int = 10) -> str:
    """The first of some items, for messages."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
