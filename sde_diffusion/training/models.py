"""The kinds of model that a configuration or a checkpoint may name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sde_diffusion import plugins
from sde_diffusion.config import public_path
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

MODELS = tuple(
    f"sde_diffusion.training.{name}" for name in ("ScoreModel", "Classifier", "VariationalModel", "LatentModel")
)
"""The models of this package, by public path. The first is that of checkpoints of version 0.1, which name none."""


def model_class(target: str = MODELS[0], where: str = "model._target_ is") -> type[GenerativeModel]:
    """The class that a `_target_` names: one of `MODELS`, or a `GenerativeModel` of a plugin.

    Args:
        target: Path of the class.
        where: Where it is named, for messages.

    Raises:
        UserError: If it is neither.
    """
    from sde_diffusion.training.generative import GenerativeModel

    package, _, name = (path := public_path(target)).rpartition(".")
    found = getattr(import_module(package), name) if path in MODELS else None
    if found is None and plugins.may_be(package):
        found = plugins.find_class(f"{where} {target!r}", package, name)
    if isinstance(found, type) and issubclass(found, GenerativeModel):
        return found
    raise UserError(f"{where} {target!r}, which is neither {' nor '.join(MODELS)} nor a GenerativeModel of a plugin")
