"""From the description of data in a checkpoint to their modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.modality.base import Modality
from sde_diffusion.modality.images import Images
from sde_diffusion.modality.points import Points
from sde_diffusion.modality.signals import Signals
from sde_diffusion.modality.units import Units

KINDS: tuple[type[Modality], ...] = (Images, Points, Signals)
"""The kinds of data of this package."""


def kind_by_shape(shape: Sequence[int]) -> type[Modality]:
    """The kind of data of a shape: [D] are points, [C, L] signals, [C, H, W] images, and others points."""
    return {len(kind.axes): kind for kind in KINDS}.get(len(shape), Points)


def modality_of(data: Mapping[str, Any]) -> Modality:
    """The modality of a description of data.

    Args:
        data: As returned by `DataModule.describe()`: shape, and if known levels, units and modality. In checkpoints of
            version 0.1, which have no entry `modality`, the shape decides; images without an entry `units` are then
            stored as uint8.

    Raises:
        UserError: If the entry `modality` is not a kind of data.
    """
    shape, levels, units = list(data["shape"]), data.get("levels"), Units.of(data.get("units"))
    node = data.get("modality")
    if node is None:
        kind = kind_by_shape(shape)
        if kind is Images and "units" not in data:
            return Images(shape, levels, eight_bits=True)
        return kind(shape, levels, units)
    found = build(node, "data.modality", shape=shape, levels=levels, units=units)
    if not isinstance(found, Modality):
        raise UserError(f"data.modality: {node.get('_target_')!r} is not a kind of data; they are in {__package__}")
    return found
