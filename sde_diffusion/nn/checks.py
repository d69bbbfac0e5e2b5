"""Checks of the arguments of networks of images and signals, with messages that say what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sde_diffusion.checks import as_number, check_sizes


def check_image_or_signal_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample.

    Raises:
        ValueError: If it is not [C, length] or [C, height, width].
    """
    found = check_sizes("shape", shape, "2 or 3 positive sizes, [C, length] or [C, height, width]", least=1, most=3)
    if len(found) == 1:
        raise ValueError(
            "this network is for images [C, height, width] and signals [C, length], and the data are vectors of shape "
            f"{list(found)}: network=mlp (MLP) takes them"
        )
    return found


def check_dropout(value: float) -> float:
    """A probability below 1.

    Raises:
        ValueError: If it is not one.
    """
    dropout = as_number("dropout", value)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout}")
    return dropout


def check_resolutions(resolutions: int, **lists: Any) -> None:
    """Check lists of resolutions.

    Raises:
        ValueError: If one is not a list of numbers of resolutions.
    """
    for name, listed in lists.items():
        if not isinstance(listed, list | tuple) or not all(one in range(resolutions) for one in listed):
            raise ValueError(f"{name} must list resolutions in 0 ... {resolutions - 1}; got {listed!r}")


def check_fits(size: Sequence[int], patch: int, halvings: int, any_size: bool) -> None:
    """Check that a size can be halved exactly, where resampling needs that.

    Raises:
        ValueError: If it cannot; the message names sizes that can.
    """
    factor = patch * 2**halvings
    if any_size or all(-(-side // patch) % 2**halvings == 0 for side in size):
        return
    near = [[max(factor, side // factor * factor), -(-side // factor) * factor] for side in size]
    smaller, larger = ("x".join(str(side) for side in sides) for sides in zip(*near, strict=True))
    what = f"{smaller} or {larger}" if smaller != larger else larger
    raise ValueError(
        f"this U-Net halves its input {halvings} times, exactly, so that each side must be a multiple of {factor}; got "
        f"{'x'.join(map(str, size))}: resize the data to {what}, or take fewer channel_mult; resampling=block, "
        "resample_filter=[1,1] and encoder_type=standard together fit any size"
    )


def check_shape_beside(shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> None:
    """Check the shapes of conditions that are further inputs.

    Raises:
        ValueError: If one has another number of dimensions than the data.
    """
    if wrong := [beside for beside in shapes if len(beside) != len(shape)]:
        what, form = ("pictures", "[C, height, width]") if len(shape) == 3 else ("signals", "[C, length]")
        raise ValueError(f"conditions beside {what} must be {form}; got {list(wrong[0])}")
