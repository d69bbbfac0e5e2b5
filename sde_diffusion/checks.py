"""One way to check an argument, for all that Python calls take: numbers, counts, tensors of floats."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import torch
from torch import Tensor


def as_number(name: str, value: Any) -> float:
    """An argument that must be a real number, as a float: of Python, NumPy or torch ([]), but no bool.

    Raises:
        ValueError: If it is none.
    """
    number = _real(value)
    if number is None:
        raise ValueError(f"{name} must be a number; got {_shown(value)}")
    return float(number)


def as_whole(name: str, value: Any) -> int:
    """An argument that must be a whole number, as an int: of Python, NumPy or torch ([]), but no bool.

    Raises:
        ValueError: If it is none.
    """
    number = _real(value)
    if number is None or number % 1 != 0:  # infinity % 1 is NaN, and so not 0
        raise ValueError(f"{name} must be a whole number; got {_shown(value)}")
    return int(number)


def check_count(name: str, value: Any, least: int = 1, also: str = "") -> int:
    """An argument that must be a whole number of at least `least`, as an int; see `as_whole`.

    Args:
        name: The argument's.
        value: What was given.
        least: The least allowed.
        also: What else the message says is allowed.

    Raises:
        ValueError: If it is none, or less than `least`.
    """
    number = _real(value)
    if number is None or not number >= least or number % 1 != 0:
        raise ValueError(f"{name} must be a whole number of at least {least}{also}; got {_shown(value)}")
    return int(number)


def as_numbers(name: str, value: Any) -> Tensor:
    """Finite numbers, in any form that torch reads, as a float64 tensor; integers too, which are as exact.

    Raises:
        TypeError: If they are none.
        ValueError: If one is NaN or infinite.
    """
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers or a tensor; got {_shown(value)}") from None
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name} must be finite; got NaN or infinite numbers")
    return found


def check_sizes(name: str, value: Any, allowed: str = "a list of positive sizes") -> tuple[int, ...]:
    """A shape, as a tuple of positive ints.

    Raises:
        ValueError: If it is none, or a size is not a positive integer.
    """
    try:
        sizes = [_real(size) for size in value]
    except TypeError:  # not a sequence
        sizes = [None]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name} must be {allowed}; got {_shown(value)}")
    return tuple(int(size) for size in sizes if size is not None)


def check_fields(settings: Any) -> None:
    """Bring a dataclass's fields that are declared float or int to Python's own numbers (None stays, if the default).

    Raises:
        ValueError: If one is no number, or a whole number is wanted and it is none.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type not in ("float", "int", float, int) or (value is None and field.default is None):
            continue
        name = f"{field.name} of {type(settings).__name__}"
        read = as_whole if field.type in ("int", int) else as_number
        object.__setattr__(settings, field.name, read(name, value))


def check_floats(name: str, x: Any) -> None:
    """See that an argument is a tensor of floats.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch tensor; got {_shown(x)}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} holds {str(x.dtype).removeprefix('torch.')}, and models take floats on [-1, 1]: "
            "sde_diffusion.data.from_levels(x, levels) turns levels into them"
        )


def check_batch(name: str, x: Any) -> None:
    """See that an argument is a batch of data: floats [B, *dims], B >= 1, none NaN or infinite.

    Raises:
        TypeError: If it is not a tensor of floats.
        ValueError: If its shape is another, or a number is NaN or infinite.
    """
    check_floats(name, x)
    if x.ndim < 2 or not len(x):
        raise ValueError(f"{name} must have shape [B, *dims] with B >= 1; got {list(x.shape)}")
    check_finite(name, x)


def check_finite(name: str, x: Tensor) -> None:
    """See that a tensor holds no NaN and nothing infinite; waits for the device.

    Raises:
        ValueError: If it does.
    """
    if not bool(torch.isfinite(x).all()):
        lost = (~torch.isfinite(x.flatten(1) if x.ndim > 1 else x.reshape(len(x), -1)).all(1)).nonzero().flatten()
        raise ValueError(
            f"{name} holds numbers that are not finite (NaN or infinite): {len(lost)} of {len(x)} samples, first "
            f"number {int(lost[0])}"
        )


def _real(value: Any) -> int | float | None:
    """Python's own number for a real one of any library; None for anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of NumPy or torch
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _shown(value: Any) -> str:
    """A value in a message: short."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}" if value.ndim else repr(value.item())
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, list | tuple | torch.Size):
        value = list(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
