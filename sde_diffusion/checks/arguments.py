"""One way to check an argument, for all that Python calls take: numbers, counts, tensors of floats."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import shown

NUMBER, WHOLE, FLAG = "a number", "an integer", "true or false"
"""What a value must be, as said after "must be": in every message, whoever checks."""


def integer_words(least: float, most: float = math.inf) -> str:
    """The integers from `least` to `most`, as said after "must be"."""
    return f"{WHOLE} {f'of at least {least}' if most == math.inf else f'from {least} to {most}'}"


def choice_words(names: Iterable[Any]) -> str:
    """One of some names, as said after "must be"."""
    known = list(map(str, names))
    return f"{'' if len(known) == 1 else 'one of '}{', '.join(known)}"


def as_number(name: str, value: Any) -> float:
    """An argument that must be a real number, as a float: of Python, NumPy or torch ([]), but no bool.

    Raises:
        ValueError: If it is not a real number.
    """
    number = real(value)
    if number is None:
        raise ValueError(f"{name} must be {NUMBER}; got {shown(value)}")
    return float(number)


def as_positive(name: str, value: Any, also: str = "") -> float:
    """An argument that must be a positive number, as a float; see `as_number`.

    Args:
        name: The argument's.
        value: What was given.
        also: What else the message says.

    Raises:
        ValueError: If it is not a number, or not positive.
    """
    number = as_number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive{also}; got {shown(value)}")
    return number


def as_integer(name: str, value: Any) -> int:
    """An argument that must be an integer, as an int: of Python, NumPy or torch ([]), but no bool.

    Raises:
        ValueError: If it is not an integer.
    """
    number = _whole(value)
    if number is None:
        raise ValueError(f"{name} must be {WHOLE}; got {shown(value)}")
    return number


def check_count(name: str, value: Any, least: int = 1, most: float = math.inf, also: str = "") -> int:
    """An argument that must be an integer of at least `least` and at most `most`, as an int; see `as_integer`.

    Args:
        name: The argument's.
        value: What was given.
        least: The least allowed.
        most: The most allowed.
        also: What else the message says is allowed.

    Raises:
        ValueError: If it is not an integer, or out of this range.
    """
    number = _whole(value)
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} must be {integer_words(least, most)}{also}; got {shown(value)}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """An argument that must be true or false, as a bool: of Python, NumPy or torch ([]).

    Raises:
        ValueError: If it is neither.
    """
    found = native(value)
    if not isinstance(found, bool):
        raise ValueError(f"{name} must be {FLAG}; got {shown(value)}")
    return found


def check_choice(name: str, value: Any, allowed: Iterable[str], also: str = "") -> str:
    """An argument that must be one of some names.

    Raises:
        ValueError: If it is not; with what there is.
    """
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be {choice_words(names)}{also}; got {shown(value)}")
    return value


def check_kind(name: str, value: Any, kind: type, or_none: bool = False) -> None:
    """Check that an argument is an object of a class, or with `or_none` None.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, kind) and not (or_none and value is None):
        what = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
        raise TypeError(f"{name} must be {what} (an instance, not a name or a class); got {shown(value)}")


def as_numbers(name: str, value: Any) -> Tensor:
    """Finite numbers, in any form that torch reads, as a float64 tensor; integers too, which are as exact.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If one is NaN or infinite.
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
    """A shape, as a tuple of positive ints.

    Args:
        name: The argument's.
        value: What was given.
        allowed: What is allowed, for the message.
        least: How many sizes there must be at least.
        most: And at most.

    Raises:
        ValueError: If it is not a sequence of so many sizes, or a size is not a positive integer.
    """
    try:
        sizes = [_whole(size) for size in value]
    except TypeError:  # not a sequence
        sizes = [None]
    found = tuple(size for size in sizes if size is not None and size > 0)
    if len(found) < len(sizes) or not least <= len(sizes) <= most:
        raise ValueError(f"{name} must be {allowed}; got {shown(value)}")
    return found


def check_fields(settings: Any) -> None:
    """Bring a dataclass's fields that are declared float or int to Python's own numbers (None stays, if the default).

    Raises:
        ValueError: If one is not a number, or not an integer where one is wanted.
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


def check_finite(name: str, x: Tensor, hint: str = "", error: type[Exception] = ValueError) -> None:
    """Check that a batch [B, ...] holds no NaN and nothing infinite; waits for the device.

    Args:
        name: What it is.
        x: [B, ...].
        hint: What the message says in the end.
        error: What to raise.

    Raises:
        ValueError: If it does (or the error that is asked for), with which samples.
    """
    fine = torch.isfinite(x).reshape(len(x), -1).all(1)
    if not bool(fine.all()):
        lost = (~fine).nonzero().flatten().tolist()
        raise error(
            f"{name} is not finite for {len(lost)} of {len(x)} samples (numbers {', '.join(map(str, lost[:8]))}"
            f"{', ...' if len(lost) > 8 else ''}){hint}"
        )


def native(value: Any) -> Any:
    """Python's own number or bool in place of one of NumPy or torch; other values as they are."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def real(value: Any) -> int | float | None:
    """Python's own number for a real one of any library; None for anything else, bools among them."""
    value = native(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _whole(value: Any) -> int | None:
    """Python's own int for an integer of any library; None for anything else."""
    number = real(value)
    return None if number is None or number % 1 != 0 else int(number)  # infinity % 1 is NaN, and so not 0
