"""What a command's model is told: values that are given, those of the data's items, or all that there are in turn."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.commands.messages import unknown_key
from sde_diffusion.conditions import Conditions
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.storage.files import opened

if TYPE_CHECKING:
    from sde_diffusion.data import Split
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)


def given(cfg: DictConfig, kinds: Conditions) -> dict[str, Any]:
    """The conditions that a configuration gives, by name, as they were typed; None: without it.

    Args:
        cfg: A configuration with label (null: not given) and conditions, of which a file's path becomes its array.
        kinds: Those of the model.

    Raises:
        UserError: If the model has no such condition, one is given twice, or a file cannot be read.
    """
    found = dict(plain(cfg.conditions) or {})
    if cfg.label is not None:
        if "label" in found:
            raise UserError("label is given twice: leave label= or conditions.label= out")
        found = {"label": cfg.label, **found}
    for name in found:
        if name == "label" and name not in kinds:
            raise UserError("this model knows no classes: leave label out (train one with conditional=true)")
        if name not in kinds:
            takes = f"is told {', '.join(kinds)}{did_you_mean(name, kinds)}" if kinds else "has no conditions"
            bare = OmegaConf.create({**cfg, "conditions": {}})
            raise UserError(f"{unknown_key(str(name), bare)}; and the model {takes}")
    return {name: _from_file(name, value) for name, value in found.items()}


def _from_file(name: str, value: Any) -> Any:
    """What was typed, or in place of the path of an .npy file the array in it."""
    if not isinstance(value, str) or not value.lower().endswith(".npy"):
        return value
    with opened(Path(value)) as file:
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{name}={value} is not an .npy file of numbers, or is damaged: {error}") from error


def for_samples(model: ScoreModel, told: Mapping[str, Any], n: int) -> dict[str, Tensor]:
    """What n samples are drawn under, [n, *] each; what they are drawn without is left out.

    Those that are given; of others all that there are in turn. If one cannot be counted, and none is given, then
    the samples are drawn without any.

    Raises:
        UserError: If a value is none, or the model was not trained without what is not given.
    """
    kinds = model.conditions
    turns = {name: kind.in_turn(n) for name, kind in kinds.items() if name not in told}
    if not told and any(values is None for values in turns.values()):
        log.info("drawn without %s: give NAME=VALUE", " and ".join(kinds))
        turns = dict.fromkeys(turns)
    return _checked(model, {**turns, **_read(kinds, told, n)})


def for_items(model: ScoreModel, told: Mapping[str, Any], split: Split, n: int) -> dict[str, Tensor]:
    """What n samples are drawn under that are compared with a split, [n, *] each; see `for_samples`.

    Those that are given; the others are the split's own, all of a sample's from one and the same item, in a random
    order that is always the same. Where the split lacks one, all that there are in turn.

    Raises:
        UserError: If a value is none, no item has those given, or one is missing.
    """
    kinds = model.conditions
    rows = items_with(split, matching(kinds, told))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    chosen = rows[order][torch.arange(n) % len(rows)]
    own = split.conditions
    rest = {
        name: own[name][chosen] if name in own else kind.in_turn(n) for name, kind in kinds.items() if name not in told
    }
    try:
        checked = {name: value if value is None else kinds[name].read(name, value, n) for name, value in rest.items()}
    except UserError as error:
        raise UserError(f"the data's conditions are not those that the model was trained on: {error}") from error
    return _checked(model, {**checked, **_read(kinds, told, n)})


def matching(kinds: Conditions, told: Mapping[str, Any]) -> dict[str, Tensor]:
    """The given values that items are chosen by, one of each, [*shape].

    Raises:
        UserError: If one is none, or there are several.
    """
    return {name: kinds[name].read(name, value, 1)[0] for name, value in told.items() if value is not None}


def items_with(split: Split, wanted: Mapping[str, Tensor]) -> Tensor:
    """Numbers of the items of a split that have these values, where it knows the conditions.

    Raises:
        UserError: If there are none.
    """
    rows = torch.arange(len(split))
    for name, value in wanted.items():
        if (own := split.conditions.get(name)) is not None:
            rows = rows[(own[rows] == value).flatten(1).all(1) if own.ndim > 1 else own[rows] == value]
    if not len(rows):
        values = ", ".join(f"{name}={value.tolist()}" for name, value in wanted.items())
        raise UserError(
            f"no item to compare with has {values}: leave it out, and samples are drawn under the items' own"
        )
    return rows


def digests(values: Mapping[str, Tensor]) -> dict[str, str]:
    """What tells values from others, for plans of runs that may be resumed."""
    return {
        name: hashlib.sha256(value.contiguous().cpu().numpy().tobytes()).hexdigest() for name, value in values.items()
    }


def is_own(value: Any) -> bool:
    """Whether what was typed stands for each item's own value."""
    return isinstance(value, str) and value == "own"


def check_told(model: ScoreModel, told: Mapping[str, Any]) -> None:
    """See that a model was trained with these conditions and without the others; those that are None count as others.

    Raises:
        UserError: If it was not.
    """
    without = [name for name in model.conditions if told.get(name) is None]
    if why := model.dropout.untrained(without):
        raise UserError(f"{why}: give {' '.join(f'{name}=VALUE' for name in without)}")


def _read(kinds: Conditions, told: Mapping[str, Any], n: int) -> dict[str, Tensor | None]:
    found = {name: None if value is None else kinds[name].read(name, value, n) for name, value in told.items()}
    for name, value in told.items():
        if isinstance(value, str):
            log.info("%s=%s is class %d", name, value, int(found[name][0]))  # type: ignore[index]
    return found


def _checked(model: ScoreModel, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    check_told(model, values)
    return {name: value for name in model.conditions if (value := values.get(name)) is not None}
