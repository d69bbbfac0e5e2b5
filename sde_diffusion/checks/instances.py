"""Arguments that are either a name from a table or an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_diffusion.checks.reprs import shown, with_article
from sde_diffusion.errors import did_you_mean


def as_instance(name: str, value: Any, table: Mapping[str, Any], kind: Any, own: str = "") -> Any:
    """The object that an argument stands for: the argument itself, or the one with its name.

    Args:
        name: The argument's name.
        value: A name in the table, or an instance of `kind`.
        table: For each name the object, or a class or function that makes it.
        kind: The class of the objects; `collections.abc.Callable` for functions.
        own: What may be given in place of a name, for the message; "": an instance of `kind`.

    Raises:
        ValueError: If it is neither; the message lists the names.
    """
    if isinstance(value, str) and value in table:
        value = table[value]
        value = value() if isinstance(value, type) or not isinstance(value, kind) else value
    if isinstance(value, type) or not isinstance(value, kind):
        own = own or with_article(kind)
        hint = did_you_mean(value, table) if isinstance(value, str) else ""
        names = ", ".join(table)
        raise ValueError(f"{name} must be one of {names}; got {shown(value)}{hint}; or give {own} of your own")
    return value
