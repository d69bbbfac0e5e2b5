"""Further models that a guidance needs, named by their checkpoints: `guidance.weak=BAD.ckpt`."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sde_diffusion.checks.hints import arguments_of, fits
from sde_diffusion.checks.overrides import setting
from sde_diffusion.config import find_class
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from sde_diffusion.conditions import Condition
    from sde_diffusion.training.base import BaseModel
    from sde_diffusion.training.generative import GenerativeModel
    from sde_diffusion.variational import FirstStage

Load = Callable[[str, str, str], Any]
"""Function from the key of an argument, the path of a checkpoint and the name of a part of its model to that part."""


def with_models(
    guidance: Mapping[str, Any], load: Load, offered: Collection[str], where: str = "guidance"
) -> dict[str, Any]:
    """A guidance's settings, in which the paths of checkpoints are replaced by parts of their models.

    An argument may be a path if its type hint allows a denoiser or a function, and no text. A list of paths is allowed
    if the hint allows a list of denoisers. The part is the model's denoiser if the hint allows one, or else its
    attribute of the argument's name, such as `classifier`.

    Args:
        guidance: Settings {_target_: a class of guidance/, ...}.
        load: Loads a part of a checkpoint.
        offered: Arguments that have a value if they are left out.
        where: Key that holds the settings.

    Raises:
        UserError: If such an argument must be given and is null, or a checkpoint cannot be loaded.
    """
    hints, defaults, _ = arguments_of(find_class(str(guidance.get("_target_")), where))
    found = dict(guidance)
    for name, hint in hints.items():
        key, value, part = f"{where}.{name}", guidance.get(name), _part(name, hint)
        if part is None or fits(value, hint):
            continue
        if value is None and name in offered:
            found.pop(name, None)
        elif value is None and name not in defaults:
            raise UserError(f"{key} must be the path of a checkpoint: add {key}=PATH")
        elif isinstance(value, str):
            found[name] = load(key, value, part)
        elif isinstance(value, list) and _several(hint) and all(isinstance(one, str | Mapping) for one in value):
            found[name] = [
                load(f"{key}[{i}]", one, part) if isinstance(one, str) else one for i, one in enumerate(value)
            ]
        elif not isinstance(value, Mapping):
            also = ", or a list of them" if _several(hint) else ""
            raise UserError(f"{key} must be the path of a checkpoint{also}; got {setting(key, value)}")
    return found


class Parts:
    """Loads parts of further models, which guide a model.

    Args:
        model: The model that is guided.

    Attributes:
        conditions: Conditions of the further models that the model does not have.
        digests: SHA-256 of their checkpoints, by path.
        models: The further models by their denoisers.
    """

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.conditions: dict[str, Condition] = {}
        self.digests: dict[str, str] = {}
        self.models: dict[Denoiser, BaseModel] = {}

    def __call__(self, key: str, path: str, part: str) -> Any:
        """A part of a checkpoint's model, on the device of the model that is guided.

        Raises:
            UserError: If the checkpoint cannot be loaded, has no such part, or is of other data.
        """
        model = self.model
        try:
            other = load_model(path, next(model.parameters()).device)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        found = getattr(other, part, None)
        if found is None:
            raise UserError(f"{key}={path} is a checkpoint of a {type(other).__name__}, which has no {part}")
        for name in ("shape", "levels", "units"):
            own, its = model.data.get(name), other.data.get(name)
            if model.data and other.data and own != its:
                raise UserError(f"{key}={path} is a model of other data: their {name} is {its}, here it is {own}")
        if not _same_space(model.first_stage, other.first_stage):
            raise UserError(f"{key}={path} does not walk on the same latent variables: both need the same first stage")
        if isinstance(found, Denoiser):
            self.models[found] = other
        for name, kind in other.conditions.items():
            if name in model.conditions and model.conditions[name].describe() != kind.describe():
                own = model.conditions[name]
                raise UserError(f"{key}={path} has another condition {name} than the model: {kind}, here {own}")
            if name not in model.conditions:
                self.conditions[name] = kind
        self.digests[path] = other.digest
        return found


def load_model(path: str, device: torch.device) -> GenerativeModel:
    """The model of a checkpoint; read once as long as the file does not change.

    Raises:
        UserError: If it cannot be loaded.
    """
    from sde_diffusion.training.digested import identity

    return _loaded(path, device, identity(path))


@functools.lru_cache(maxsize=8)
def _loaded(path: str, device: torch.device, file: tuple[int, int, int] | None) -> GenerativeModel:
    from sde_diffusion.training.digested import load_with_digest

    return load_with_digest(path, device)


def _same_space(first: FirstStage | None, second: FirstStage | None) -> bool:
    """Whether two denoisers walk on the same variables: the data, or latent variables on the same scale."""
    if first is None or second is None:
        return first is second
    own, its = first.state_dict(), second.state_dict()
    return own.keys() == its.keys() and all(
        own[name].shape == its[name].shape and torch.allclose(own[name], its[name]) for name in own
    )


def _several(hint: Any) -> bool:
    """Whether an argument may be a list of denoisers."""
    return any(typing.get_origin(kind) is Sequence for kind in (hint, *typing.get_args(hint)))


def _part(name: str, hint: Any) -> str | None:
    """Which part of a checkpoint's model an argument takes; None if it takes none."""
    if any(isinstance(kind, type) and issubclass(kind, Denoiser) for kind in (hint, *typing.get_args(hint))):
        return "denoiser"
    return name if typing.get_origin(hint) is Callable else None
