"""The denoiser that commands and pictures use: a model's own, with guidance if there is any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_diffusion.config import build_around
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import UntrainedError
from sde_diffusion.training.base import BaseModel


def guided_denoiser(model: BaseModel, guidance: Mapping[str, Any] | None) -> Denoiser | None:
    """A model's denoiser, wrapped by a guidance.

    Args:
        model: The model. If the constructor of the guidance has arguments `denoiser` or `null` that its settings leave
            out, they are the model's denoiser, and the null values of the conditions that were dropped in training.
        guidance: Settings {_target_: a class of guidance/, ...}; None: no guidance.

    Returns:
        The denoiser; None if the model has none.

    Raises:
        UserError: If the model or its path does not support the guidance.
    """
    if guidance is None:
        return model.denoiser
    if model.denoiser is None:
        raise UserError(f"guidance= needs a denoiser, and a {type(model).__name__} has none: leave it out")
    null = {name: model.conditions[name].null for name in model.dropout.dropped}
    try:
        found: Denoiser = build_around(guidance, "guidance", denoiser=model.denoiser, null=null)
    except UserError as error:
        if isinstance(error.__cause__, UntrainedError):
            names = " and ".join(model.conditions) or "conditions"
            raise UserError(f"this guidance also needs the model without its {names}, but {_lacking(model)}") from error
        raise
    return found


def _lacking(model: BaseModel) -> str:
    if not model.conditions:
        return "it has none: train one with conditional=true"
    return "it was never trained without (model.label_dropout=0): train one with model.label_dropout=0.1"
