"""The denoiser that commands and pictures use: a model's own, with guidance if there is any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_diffusion.conditions import Conditions
from sde_diffusion.config import build_around
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import UntrainedError
from sde_diffusion.training.base import BaseModel
from sde_diffusion.training.dropout import ConditionDropout
from sde_diffusion.training.guidance_models import Parts, with_models


def guided_denoiser(model: BaseModel, guidance: Mapping[str, Any] | None) -> Denoiser | None:
    """A model's denoiser, wrapped by a guidance.

    Args:
        model: The model. If the constructor of the guidance has arguments `denoiser` or `null` that its settings leave
            out, they are the model's denoiser, and the null values of the conditions that were dropped in training.
        guidance: Settings {_target_: a class of guidance/, ...}; None: no guidance. Arguments that are denoisers or
            functions may be paths of checkpoints, and values of conditions may be given as on the command line.

    Returns:
        The denoiser; None if the model has none.

    Raises:
        UserError: If the model or its path does not support the guidance.
    """
    return model.denoiser if guidance is None else _guided(model, guidance, Parts(model))


def check_pictures(model: BaseModel, guidance: Mapping[str, Any] | None) -> None:
    """Check that the pictures during training can be drawn with a guidance.

    Raises:
        UserError: If the model does not support it, or it needs a condition that the model does not have.
    """
    guided = guided_denoiser(model, guidance)
    taken = () if guided is None else guided.conditions or ()
    if lacking := [name for name in taken if name not in model.conditions]:
        raise UserError(
            f"guidance by {', '.join(lacking)} is for models that are trained: leave guidance= out of this command"
        )


def guide(model: BaseModel, guidance: Mapping[str, Any] | None) -> None:
    """Replace a model's denoiser by the guided one, and its conditions by those that this one takes.

    A condition that comes from another model, such as the label of a classifier, may be left out.

    Args:
        model: The model.
        guidance: See `guided_denoiser`.

    Raises:
        UserError: See `guided_denoiser`.
    """
    if guidance is None:
        return
    parts = Parts(model)
    guided = _guided(model, guidance, parts)
    kinds = {**model.conditions, **parts.conditions}
    taken = kinds if guided.conditions is None else guided.conditions
    free = {name: 1.0 for name in parts.conditions if name in taken}
    separate = {name: p for name, p in model.dropout.separate.items() if name in taken}
    model.guides = parts.digests
    model.denoiser, model.conditions = guided, Conditions({name: kinds[name] for name in kinds if name in taken})
    model.dropout = ConditionDropout(model.conditions, model.dropout.probability, {**separate, **free})


def _guided(model: BaseModel, guidance: Mapping[str, Any], parts: Parts) -> Denoiser:
    if model.denoiser is None:
        raise UserError(f"guidance= needs a denoiser, and a {type(model).__name__} has none: leave it out")
    null = {name: model.conditions[name].null for name in model.dropout.dropped}
    try:
        offered: dict[str, Any] = {"denoiser": model.denoiser, "denoisers": model.denoiser, "null": null}
        settings = _with_values(model.conditions, with_models(guidance, parts, offered))
        found: Denoiser = build_around(settings, "guidance", **offered)
        _check_trained(model, parts, settings, found)
    except UserError as error:
        if isinstance(error.__cause__, UntrainedError):
            raise UserError(_lacking(model)) from error
        raise
    return found


def _check_trained(model: BaseModel, parts: Parts, settings: Mapping[str, Any], guided: Denoiser) -> None:
    """Check that each model was trained without those of its conditions that it gets neither from a call nor fixed.

    Raises:
        UserError: If one was not.
    """
    models: dict[Any, BaseModel] = {model.denoiser: model, **parts.models}
    fixed = settings.get("conditions") or []
    experts = settings.get("denoisers") or [model.denoiser] * len(fixed)
    others = [one for one in parts.models if one not in experts]
    for denoiser, own in [*zip(experts, fixed or [{}] * len(experts), strict=False), *((one, {}) for one in others)]:
        used = models[denoiser]
        taken = used.conditions if guided.conditions is None else guided.conditions
        without = [name for name in used.conditions if name not in taken and own.get(name) is None]
        if why := used.dropout.untrained(without):
            names = " and ".join(without)
            raise UserError(f"guidance= uses a model without {names}, and {why}: train it with model.label_dropout=0.1")


def _with_values(kinds: Conditions, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with values of conditions, as they were typed, in the form that denoisers take.

    These are the arguments `negative`, by name of the condition, and `conditions`, a list of such mappings.
    """

    def read(key: str, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            name: kinds[name].read(f"{key}.{name}", value, 1)[0] if name in kinds and value is not None else value
            for name, value in values.items()
        }

    found = dict(settings)
    found["negative"] = read("guidance.negative", settings.get("negative"))
    if isinstance(several := settings.get("conditions"), list):
        found["conditions"] = [read(f"guidance.conditions[{i}]", one) for i, one in enumerate(several)]
    return {name: value for name, value in found.items() if name in settings}


def _lacking(model: BaseModel) -> str:
    """Why classifier-free guidance of a model is not possible."""
    if not model.conditions:
        return (
            "this guidance strengthens a condition, such as a class or a text, and the model was trained without any: "
            "train one with conditional=true, or leave guidance= out"
        )
    names = " and ".join(model.conditions)
    return (
        f"this guidance compares the model with {names} and without, and it was never trained without "
        "(model.label_dropout=0): train one with model.label_dropout=0.1"
    )
