"""Objects that show what they were made of."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


class ShowsArguments:
    """`Name(argument=value, ...)` for a class that keeps its constructor's arguments under their own names."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments(self)})"


def arguments(made: Any) -> str:
    """`argument=value, ...` of an object's constructor, as far as it keeps them under their own names."""
    kept = vars(made)
    names = [name for name in inspect.signature(type(made)).parameters if name in kept]
    return ", ".join(f"{name}={shown(kept[name])}" for name in names)


def shown(value: Any) -> str:
    """A value in a repr: a large tensor by its shape, a shape as a list."""
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"tensor{list(value.shape)}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
