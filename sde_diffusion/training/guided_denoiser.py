"""The one place where a model's denoiser becomes the one that commands and pictures use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_diffusion.config import build_around
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import UntrainedError
from sde_diffusion.training.module import ScoreModel


def guided_denoiser(model: ScoreModel, guidance: Mapping[str, Any] | None) -> Denoiser:
    """A model's denoiser, wrapped as the settings of a guidance say.

    Args:
        model: The model. Of what it offers, `denoiser` and `null` (the values that stand for "not given" of the
            conditions that training left out at times), a wrapper is given what its constructor names and the settings
            do not.
        guidance: {_target_: a class of guidance/, ...}; None: the denoiser as it is.

    Returns:
        The denoiser.

    Raises:
        UserError: If the model or its path does not allow the guidance.
    """
    if guidance is None:
        return model.denoiser
    null = {name: model.conditions[name].null for name in model.dropout.left_out}
    try:
        found: Denoiser = build_around(guidance, "guidance", denoiser=model.denoiser, null=null)
    except UserError as error:
        if isinstance(error.__cause__, UntrainedError):
            names = " and ".join(model.conditions) or "label"
            raise UserError(f"this guidance needs the model without its {names} too, and {_lacking(model)}") from error
        raise
    return found


def _lacking(model: ScoreModel) -> str:
    if not model.conditions:
        return "it knows no classes: train one with conditional=true"
    return "it was trained with model.label_dropout=0, never without: train one with model.label_dropout=0.1"
