"""Masks for the command line: from a picture, or a named part of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.data.images import Reading, headers
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.guidance import Mask

PARTS: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "upper_half": ((0, 0.5), (0, 1)),
    "lower_half": ((0.5, 1), (0, 1)),
    "left_half": ((0, 1), (0, 0.5)),
    "right_half": ((0, 1), (0.5, 1)),
    "center": ((0.25, 0.75), (0.25, 0.75)),
}
"""Parts of a picture by name: where they begin and end, as shares of the height and of the width."""

_MEANING = "white is to be filled, black is known (operator.invert=true: the other way round)"


class PictureMask(Mask):
    """A `Mask` that is described by what is to be filled: the white of a picture, or a part; all channels alike.

    Args:
        shape: Shape of the data, [C, H, W].
        path: A picture of H x W pixels with two values; the lighter one is to be filled.
        part: In place of it, upper_half, lower_half, left_half, right_half or center (half of each side).
        invert: Whether the white, or the part, is known, and the rest is to be filled.

    Raises:
        UserError: If not exactly one of path and part is given, there is no such part, or the picture cannot be read,
            has another size, transparency, or other than two values.
    """

    def __init__(
        self, shape: Sequence[int], path: str | None = None, part: str | None = None, invert: bool = False
    ) -> None:
        height, width = shape[1:]
        if path is not None and part is None:
            filled = _white(Path(path), height, width)
        elif path is None and part is not None and part in PARTS:
            (top, bottom), (left, right) = PARTS[part]
            filled = torch.zeros(1, height, width, dtype=torch.bool)
            filled[:, int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
        elif path is None and part is not None:
            hint = did_you_mean(part, PARTS)
            raise UserError(f"operator.part must be one of {', '.join(PARTS)}; got operator.part={part}{hint}")
        else:
            raise UserError(
                "say what is to be filled: operator.path=MASK.png, a picture that is white there and black elsewhere, "
                f"or operator.part= one of {', '.join(PARTS)}"
            )
        super().__init__(filled if invert else ~filled, shape)


def _white(path: Path, height: int, width: int) -> Tensor:
    """Where a picture is white, bool [1, H, W]."""
    (header,) = headers([path], 1)
    if header.size != (width, height):
        size = f"{header.size[0]}x{header.size[1]}"
        raise UserError(f"the mask {path} is {size}, and must be {width}x{height}, as the model's pictures; {_MEANING}")
    if header.transparent:
        raise UserError(f"the mask {path} has an alpha channel: save it without transparency; {_MEANING}")
    found = Reading(None, "none", "RGB")(path)
    values = torch.unique(found.flatten(1), dim=1).T.tolist()
    if len(values) > 2 or any(len(set(value)) > 1 for value in values):
        raise UserError(
            f"the mask {path} must have two values, black and white, and has {len(values)}: threshold it, and save it "
            f"as PNG, since JPEG changes values; {_MEANING}"
        )
    if len(values) < 2:
        raise UserError(f"the mask {path} has one value only, so all pixels are known, or none; {_MEANING}")
    return found[:1].eq(max(value[0] for value in values))
