"""The conditions that a command's model gets: values from the command line, from the data's items, or all in turn."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.messages import unknown_key
from sde_diffusion.conditions import Conditions
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.storage.files import opened

if TYPE_CHECKING:
    from sde_diffusion.data import Split
    from sde_diffusion.training.base import BaseModel

log = logging.getLogger(__name__)

_TRAINING = {
    "label": "conditional=true, on data with classes",
    "text": "conditional=true, and captions=table for images in a folder or captions=rendered for handwritten digits",
}
"""Settings of `train` for the usual conditions."""


def requested_conditions(cfg: DictConfig, model: BaseModel) -> dict[str, Any]:
    """The conditions that a configuration sets, by name, as they were typed; None stands for "without it".

    Args:
        cfg: A configuration with `conditions`. Paths of .npy files are replaced by their arrays, and those of .txt
            files by their lines.
        model: The model.

    Raises:
        UserError: If the model has no such condition, or a file cannot be read.
    """
    kinds, found = model.conditions, dict(resolved(cfg.conditions) or {})
    for name in found:
        if name not in kinds and name in set_by_guidance(cfg):
            raise UserError(f"{name} is set by guidance.conditions, for each of the weights: leave {name}= out")
        if name not in kinds and (name in (model.data.get("conditions") or {}) or name in _TRAINING):
            own = f" (its conditions: {', '.join(kinds)})" if kinds else ""
            how = _TRAINING.get(name, "conditional=true")
            raise UserError(f"this model was trained without {name}{own}: leave {name}= out, or train one with {how}")
        if name not in kinds:
            takes = f"{', '.join(kinds)}{did_you_mean(name, kinds)}" if kinds else "none"
            bare = OmegaConf.create({**cfg, "conditions": {}})
            raise UserError(f"{unknown_key(str(name), bare)}; conditions of the model: {takes}")
    return {name: None if kinds[name].is_none(value) else _from_file(name, value) for name, value in found.items()}


def set_by_guidance(cfg: DictConfig) -> list[str]:
    """The names of the conditions that `guidance.conditions` of a composition sets."""
    several = (resolved(cfg.guidance) or {}).get("conditions")
    each = [one for one in several if isinstance(one, Mapping)] if isinstance(several, list) else []
    return list(dict.fromkeys(str(name) for one in each for name in one))


def _from_file(name: str, value: Any) -> Any:
    """What was typed; if it is the path of an .npy or .txt file, the array in that file, or its lines."""
    if not isinstance(value, str) or not value.lower().endswith((".npy", ".txt")):
        return value
    with opened(Path(value)) as file:
        if value.lower().endswith(".txt"):
            lines = file.read().decode(errors="replace").splitlines()
            return [line for line in lines if line.strip()]
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{name}={value} is not an .npy file of numbers, or is damaged: {error}") from error


def for_samples(model: BaseModel, requested: Mapping[str, Any], n: int) -> dict[str, Tensor]:
    """Conditions for drawing n samples, [n, *] each; conditions that the samples are drawn without are left out.

    Requested conditions have the requested values. The others take all their values in turn, such as the classes. If
    none is requested and one of them is not countable, the samples are drawn without any.

    Raises:
        UserError: If a value is not allowed, or the model was not trained without a condition that is missing.
    """
    kinds = model.conditions
    turns: dict[str, Tensor | None] = {name: kind.in_turn(n) for name, kind in kinds.items() if name not in requested}
    if not requested and any(values is None for values in turns.values()):
        log.info("drawn without %s: set them with NAME=VALUE", " and ".join(kinds))
        turns = dict.fromkeys(turns)
    return _checked(model, {**turns, **_read(kinds, requested, n)})


def requested_only(
    cfg: DictConfig, model: BaseModel, n: int, given: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """The requested conditions for n samples, and those that are given, [n, *] each; the others are left out.

    Raises:
        UserError: If a value is not allowed, or the model was not trained without a condition that is missing.
    """
    return _checked(model, {**_read(model.conditions, requested_conditions(cfg, model), n), **given})


def for_items(model: BaseModel, requested: Mapping[str, Any], split: Split, n: int) -> dict[str, Tensor]:
    """Conditions for drawing n samples that are compared with a split, [n, *] each; see `for_samples`.

    Requested conditions have the requested values. The others are taken from the split's items: for each sample, all
    from the same item, in a fixed random order. Conditions that the split lacks take all their values in turn.

    Raises:
        UserError: If a value is not allowed, no item has the requested values, or a condition is missing.
    """
    kinds = model.conditions
    rows = items_with(split, matching(kinds, requested))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    chosen = rows[order][torch.arange(n) % len(rows)]
    own = split.conditions
    rest = {
        name: own[name][chosen] if name in own else kind.in_turn(n)
        for name, kind in kinds.items()
        if name not in requested
    }
    try:
        checked = {name: value if value is None else kinds[name].read(name, value, n) for name, value in rest.items()}
    except UserError as error:
        raise UserError(f"the data's conditions are not those that the model was trained on: {error}") from error
    return _checked(model, {**checked, **_read(kinds, requested, n)})


def matching(kinds: Conditions, requested: Mapping[str, Any]) -> dict[str, Tensor]:
    """The requested values that items of a split must match, one for each condition, [*shape].

    Raises:
        UserError: If a value is not allowed, or there are several for one condition.
    """
    return {name: kinds[name].read(name, value, 1)[0] for name, value in requested.items() if value is not None}


def items_with(split: Split, wanted: Mapping[str, Tensor]) -> Tensor:
    """Indices of the items of a split that have these values; conditions that the split lacks are ignored.

    Raises:
        UserError: If there are none.
    """
    rows = torch.arange(len(split))
    for name, value in wanted.items():
        if (own := split.conditions.get(name)) is not None:
            rows = rows[(own[rows] == value).reshape(len(rows), -1).all(1)]
    if not len(rows):
        values = ", ".join(f"{name}={value.cpu().numpy()}" for name, value in wanted.items())
        raise UserError(
            f"no item to compare with has exactly {values}: leave it out to draw with the conditions of the items"
        )
    return rows


def digests(values: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of the values of each condition, for plans of runs that may be resumed."""
    return {
        name: hashlib.sha256(value.contiguous().cpu().numpy().tobytes()).hexdigest() for name, value in values.items()
    }


def is_own(value: Any) -> bool:
    """Whether `own` was typed, which stands for each item's own value."""
    return isinstance(value, str) and value == "own"


def in_words(kinds: Conditions, values: Mapping[str, Tensor]) -> str:
    """Conditions of samples, [n, *] each, in words: "label=cat, rate=26.5"; those that vary: "label: 10 values"."""
    found = []
    for name, kind in kinds.items():
        some = torch.unique(values[name], dim=0) if name in values else kind.nulls(1)
        found.append(f"{name}={kind.words(some[0])}" if len(some) == 1 else f"{name}: {len(some)} values")
    return ", ".join(found)


def check_trained_for(model: BaseModel, values: Mapping[str, Any]) -> None:
    """Check that a model was trained with these conditions and without all others.

    A condition is left out if its value is None, or the null value for some sample.

    Raises:
        UserError: If it was not.
    """

    def left_out(name: str) -> bool:
        value = values.get(name)
        return value is None or (isinstance(value, Tensor) and bool(model.conditions[name].is_null(value).any()))

    without = [name for name in model.conditions if left_out(name)]
    if why := model.dropout.untrained(without):
        none = "" if model.dropout.untrained(list(model.conditions)) else ", or none for all of them"
        raise UserError(f"{why}: give {' '.join(f'{name}=VALUE' for name in without)}{none}")


def _read(kinds: Conditions, requested: Mapping[str, Any], n: int) -> dict[str, Tensor | None]:
    return {name: None if value is None else kinds[name].read(name, value, n) for name, value in requested.items()}


def _checked(model: BaseModel, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    check_trained_for(model, values)
    return {name: value for name in model.conditions if (value := values.get(name)) is not None}
