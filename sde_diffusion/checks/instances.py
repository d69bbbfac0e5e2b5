"""Arguments that are either a name out of a table or an object of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_diffusion.checks.reprs import shown


def as_instance(name: str, value: Any, table: Mapping[str, Any], kind: type) -> Any:
    """The object that an argument stands for: the argument itself, or what its name stands for.

    Args:
        name: The argument's name.
        value: A name in the table, or an instance of `kind`.
        table: For each name the object, or a function that makes it.
        kind: The class of the objects.

    Raises:
        ValueError: If it is neither; the message lists the names.
    """
    if isinstance(value, str) and value in table:
        value = table[value]
        value = value if isinstance(value, kind) else value()
    if not isinstance(value, kind):
        names = ", ".join(table)
        raise ValueError(f"{name} must be one of {names}; got {shown(value)} (or give a {kind.__name__} of your own)")
    return value
