"""What kind of thing x is: images, points, signals.

A modality knows its values and their units, how samples are stored and read, how they are drawn and what they are
called. To add one, write a subclass of `Modality`; see there.
"""

from sde_diffusion.modality.base import Modality
from sde_diffusion.modality.described import KINDS, kind_by_shape, modality_of
from sde_diffusion.modality.images import Images
from sde_diffusion.modality.points import Points
from sde_diffusion.modality.samples import Stored, read_samples, write_samples
from sde_diffusion.modality.signals import Signals

__all__ = [
    "KINDS",
    "Images",
    "Modality",
    "Points",
    "Signals",
    "Stored",
    "kind_by_shape",
    "modality_of",
    "read_samples",
    "write_samples",
]
