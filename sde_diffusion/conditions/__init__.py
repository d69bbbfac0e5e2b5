"""What is x conditioned on? Kinds of conditions, and the conditions of a model or a data set by name.

A condition has a name, such as `label`, and a kind, which defines its allowed values, its null value, how a value is
read from the command line, and the module that embeds it. To add a kind, write a subclass of `Condition`, and add it to
`KINDS` if it should be recognised in data sets.
"""

from sde_diffusion.conditions.augmentation import AugmentationLabels
from sde_diffusion.conditions.base import Condition
from sde_diffusion.conditions.label import Label, numbered
from sde_diffusion.conditions.measurement import Measurement
from sde_diffusion.conditions.named import KINDS, Conditions, kind_by_values
from sde_diffusion.conditions.picture import Picture
from sde_diffusion.conditions.text import Text

__all__ = [
    "KINDS",
    "AugmentationLabels",
    "Condition",
    "Conditions",
    "Label",
    "Measurement",
    "Picture",
    "Text",
    "kind_by_values",
    "numbered",
]
