"""Checks of the arguments of Python calls: numbers, counts, tensors of floats."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import few, shown, with_article
from sde_diffusion.errors import did_you_mean

NUMBER, INTEGER, FLAG = "a number", "an integer", "true or false"
"""How messages describe what a value must be."""


def integer_words(least: float, most: float = math.inf) -> str:
    """How messages describe the integers from `least` to `most`, after "must be"."""
    return f"{INTEGER} {f'of at least {least}' if most == math.inf else f'from {least} to {most}'}"


def choice_words(names: Iterable[Any]) -> str:
    """How messages describe a choice of names, after "must be"."""
    known = list(map(str, names))
    return f"{'' if len(known) == 1 else 'one of '}{', '.join(known)}"


def as_number(name: str, value: Any) -> float:
    """Check that an argument is a real number of Python, NumPy or torch ([]), and return it as a float.

    Raises:
        ValueError: If it is not a real number, or is a bool.
    """
    number = real(value)
    if number is None:
        raise ValueError(f"{name} must be {NUMBER}; got {shown(value)}")
    return float(number)


def as_positive(name: str, value: Any, also: str = "") -> float:
    """Check that an argument is a positive number, and return it as a float; see `as_number`.

    Args:
        name: Name of the argument.
        value: The argument.
        also: Addition to the message.

    Raises:
        ValueError: If it is not a number, or not positive.
    """
    number = as_number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive{also}; got {shown(value)}")
    return number


def as_fraction(name: str, value: Any, also: str = "", inside: bool = False) -> float:
    """Check that an argument is a number from 0 to 1, or with `inside` between them; see `as_positive`.

    Raises:
        ValueError: If it is not.
    """
    number = as_number(name, value)
    if not (0 < number < 1 if inside else 0 <= number <= 1):
        raise ValueError(f"{name} must lie {'between 0 and 1' if inside else 'in [0, 1]'}{also}; got {shown(value)}")
    return number


def as_integer(name: str, value: Any) -> int:
    """Check that an argument is an integer of Python, NumPy or torch ([]), and return it as an int.

    Raises:
        ValueError: If it is not an integer, or is a bool.
    """
    number = _integer(value)
    if number is None:
        raise ValueError(f"{name} must be {INTEGER}; got {shown(value)}")
    return number


def check_count(name: str, value: Any, least: int = 1, most: float = math.inf, also: str = "") -> int:
    """Check that an argument is an integer from `least` to `most`, and return it as an int; see `as_integer`.

    Args:
        name: Name of the argument.
        value: The argument.
        least: Smallest allowed value.
        most: Largest allowed value.
        also: Further allowed values, for the message.

    Raises:
        ValueError: If it is not an integer, or out of this range.
    """
    number = _integer(value)
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} must be {integer_words(least, most)}{also}; got {shown(value)}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Check that an argument is a bool of Python, NumPy or torch ([]), and return it as a Python bool.

    Raises:
        ValueError: If it is not.
    """
    found = native(value)
    if not isinstance(found, bool):
        raise ValueError(f"{name} must be {FLAG}; got {shown(value)}")
    return found


def check_choice(name: str, value: Any, allowed: Iterable[str], also: str = "") -> str:
    """Check that an argument is one of some names, and return it.

    Raises:
        ValueError: If it is not; the message lists the names.
    """
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be {choice_words(names)}{also}; got {shown(value)}{hint}")
    return value


def check_kind(name: str, value: Any, kind: type, or_none: bool = False) -> None:
    """Check that an argument is an instance of a class, or with `or_none` None.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, kind) and not (or_none and value is None):
        what = with_article(kind)
        raise TypeError(f"{name} must be {what} (an instance, not a name or a class); got {shown(value)}")


def as_numbers(name: str, value: Any) -> Tensor:
    """Check that an argument has finite numbers, in any form that torch accepts, and return a float64 tensor.

    Raises:
        TypeError: If it has anything else than numbers.
        ValueError: If a number is NaN or infinite.
    """
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers or a tensor; got {shown(value)}") from None
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name} must be finite; got NaN or infinite numbers")
    return found


def check_sizes(
    name: str, value: Any, allowed: str = "a list of positive sizes", least: int = 1, most: float = math.inf
) -> tuple[int, ...]:
    """Check that an argument is a shape, and return it as a tuple of positive ints.

    Args:
        name: Name of the argument.
        value: The argument.
        allowed: What is allowed, for the message.
        least: Smallest allowed number of sizes.
        most: Largest allowed number of sizes.

    Raises:
        ValueError: If it is not a sequence of so many sizes, or a size is not a positive integer.
    """
    try:
        sizes = [_integer(size) for size in value]
    except TypeError:  # not a sequence
        sizes = [None]
    found = tuple(size for size in sizes if size is not None and size > 0)
    if len(found) < len(sizes) or not least <= len(sizes) <= most:
        raise ValueError(f"{name} must be {allowed}; got {shown(value)}")
    return found


def check_fields(settings: Any) -> None:
    """Convert a dataclass's fields of type float or int to Python's own numbers; None remains if it is the default.

    Raises:
        ValueError: If one is not a number, or not an integer where it must be.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type not in ("float", "int", float, int) or (value is None and field.default is None):
            continue
        name = f"{field.name} of {type(settings).__name__}"
        read = as_integer if field.type in ("int", int) else as_number
        object.__setattr__(settings, field.name, read(name, value))


def check_floats(name: str, x: Any) -> None:
    """Check that an argument is a tensor of floats.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch tensor; got {shown(x)}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} holds {str(x.dtype).removeprefix('torch.')}, and models take floats on [-1, 1]: "
            "sde_diffusion.data.from_levels(x, levels) turns levels into them"
        )


def check_batch(name: str, x: Any) -> None:
    """Check that an argument is a batch of data: floats [B, *dims], B >= 1, none NaN or infinite.

    Raises:
        TypeError: If it is not a tensor of floats.
        ValueError: If its shape is another, or a number is NaN or infinite.
    """
    check_floats(name, x)
    if x.ndim < 2 or not len(x):
        raise ValueError(f"{name} must have shape [B, *dims] with B >= 1; got {list(x.shape)}")
    check_finite(name, x)


def check_finite(
    name: str, x: Tensor, hint: str = "", error: type[Exception] = ValueError, indices: Sequence[int] | None = None
) -> None:
    """Check that a batch [B, ...] has no NaN or infinite numbers. Waits for the device.

    Args:
        name: Name of the batch, for the message.
        x: [B, ...].
        hint: End of the message.
        error: Class of the error.
        indices: Those of the samples, for the message; 0 ... B - 1 by default.

    Raises:
        ValueError: If it has (or `error`); the message lists the samples.
    """
    fine = torch.isfinite(x).reshape(len(x), -1).all(1)
    if not bool(fine.all()):
        lost = (~fine).nonzero().flatten().tolist()
        lost = lost if indices is None else [indices[i] for i in lost]
        raise error(f"{name} is not finite for {len(lost)} of {len(x)} samples (indices {few(lost, 8)}){hint}")


def native(value: Any) -> Any:
    """Convert a number or bool of NumPy or torch to Python's own; other values are returned as they are."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def real(value: Any) -> int | float | None:
    """Convert a real number of any library to Python's own; None for anything else, including bools."""
    value = native(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _integer(value: Any) -> int | None:
    """Convert an integer of any library to Python's int; None for anything else."""
    number = real(value)
    return None if number is None or number % 1 != 0 else int(number)  # infinity % 1 is NaN, and so not 0
