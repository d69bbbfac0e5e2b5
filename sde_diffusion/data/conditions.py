"""The conditions that a data set has for its items: labels, measurements and others, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sde_diffusion.conditions import Conditions, kind_by_values
from sde_diffusion.data.split import Split
from sde_diffusion.errors import UserError


def kinds_of(splits: Mapping[str, Split], names: Mapping[str, Sequence[str] | None]) -> tuple[Conditions, str]:
    """The conditions that both training and validation items have, with the kinds of their values.

    Args:
        splits: The splits by name.
        names: Names of the classes, for conditions whose values are named classes.

    Returns:
        (conditions, why existing labels are not among them: the end of a message, or "").

    Raises:
        UserError: If the values of a condition other than `label` are of no known kind.
    """
    found, why = {}, ""
    train, others = splits["train"].conditions, [splits[name].conditions for name in splits if name != "train"]
    for name, values in train.items():
        if name not in splits["val"].conditions:
            continue
        parts = [values, *(other[name] for other in others if name in other)]
        kind = kind_by_values(parts, names.get(name))
        if kind is not None:
            found[name] = kind
        elif name == "label":  # for instance running numbers of the items, which are not classes
            largest = max(int(part.max()) for part in parts)
            why = f" that could be classes: they run to {largest}; number the classes 0, 1, 2, ..."
        else:
            raise UserError(
                f"{name} is {values.dtype} {list(values.shape)}: conditions are floats, or class numbers [N] from 0 up "
                "to 100,000"
            )
    return Conditions(found), why
