"""What is x conditioned on? Kinds of conditions, and those of a model or a data set by name.

A condition has a name, such as `label`, and a kind: what its values may be, what stands for none, how a value is read
from a command line, and by which module a network takes it in. To add a kind, write a subclass of `Condition`
and add it to `KINDS`; see there.
"""

from sde_diffusion.conditions.base import Condition
from sde_diffusion.conditions.label import Label
from sde_diffusion.conditions.measurement import Measurement
from sde_diffusion.conditions.named import KINDS, Conditions, kind_by_values

__all__ = ["KINDS", "Condition", "Conditions", "Label", "Measurement", "kind_by_values"]
