"""What kind of data is x? Images, points, signals.

A `Modality` defines the range and units of the values, how samples are stored, read and drawn, and what they are called
in messages. To add a kind of data, write a subclass of `Modality`.
"""

from sde_diffusion.modality.base import Modality
from sde_diffusion.modality.described import KINDS, kind_by_shape, modality_of
from sde_diffusion.modality.images import Images
from sde_diffusion.modality.points import Points
from sde_diffusion.modality.samples import Stored, read_samples, write_latents, write_samples
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
    "write_latents",
    "write_samples",
]
