"""The data that `sde_diffusion.likelihood` scores: a model's own, another set, or artificial ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.commands.conditions import check_told, given, is_own
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.commands.loading import load_data, load_named, random_order, take_units
from sde_diffusion.commands.scored_rows import read_rows
from sde_diffusion.conditions import Conditions
from sde_diffusion.density import GaussianPrior, UniformDequantisation
from sde_diffusion.errors import UserError
from sde_diffusion.sde import SDE

if TYPE_CHECKING:
    from sde_diffusion.data import Split
    from sde_diffusion.training.module import ScoreModel

_MOMENT_ITEMS = 50_000
"""Items, at most, of which the data's moments are taken."""


class ScoredData:
    """Splits of a data set, and what a model is told of their items.

    Args:
        name: Of the data.
        role: own, rows (of one's own) or against.
        parts: The splits by name.
        limit: Most items of a split, chosen at random, always the same; None: all.
        told: What the model is told, by condition: own (each item's), or one value for all, as it was typed.
        kinds: The model's conditions.

    Raises:
        UserError: If a value is none, or the data do not know a condition that is to be each item's own.
    """

    def __init__(
        self,
        name: str,
        role: str,
        parts: dict[str, Split],
        limit: int | None,
        told: Mapping[str, Any],
        kinds: Conditions,
    ) -> None:
        self.name, self.role, self.parts, self.limit = name, role, parts, limit
        self.splits = list(parts)
        self.kinds = kinds
        first = next(iter(parts.values()))
        self.levels = first.levels
        self.size = math.prod(first.x.shape[1:])
        self.own = [condition for condition, value in told.items() if is_own(value)]
        self.common = {
            condition: kinds[condition].read(condition, value, 1)
            for condition, value in told.items()
            if value is not None and not is_own(value)
        }
        for condition in self.own:
            if any(condition not in part.conditions for part in parts.values()):
                raise UserError(f"{condition}=own needs {condition}s, and {name} has none")

    def said(self, condition: str) -> Any:
        """What the model is told of a condition, for reports: own, a value, or None."""
        if condition in self.common:
            return self.common[condition][0].tolist()
        return "own" if condition in self.own else None

    def count(self, split: str) -> int:
        """Items of a split that are scored."""
        return len(self.parts[split]) if self.limit is None else min(self.limit, len(self.parts[split]))

    def items(self, split: str) -> Tensor:
        """Indices of the items to score, in order; rows of a user's file by distance from the data's middle, so that
        those in a batch need similar steps.
        """
        chosen = random_order(len(self.parts[split]))[: self.count(split)]
        if self.role != "rows":
            return chosen
        far = [self.parts[split].tensor(some).flatten(1).abs().amax(1) for some in torch.split(chosen, 10_000)]
        return chosen[torch.cat(far).argsort(stable=True)]

    def batch(self, split: str, items: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Items [B] with what the model is told of them, [B, *] each."""
        batch, n = self.parts[split].batch(items), len(items)
        conditions = {name: value.expand(n, *value.shape[1:]) for name, value in self.common.items()}
        conditions |= {name: self.kinds[name].read(name, batch[name], n) for name in self.own}
        return batch["x"].to(device), {name: values.to(device) for name, values in conditions.items()}

    def some(self, split: str, most: int = _MOMENT_ITEMS) -> Tensor:
        """Items of a split, at most so many."""
        return self.parts[split].tensor(self.some_items(split, most))

    def some_items(self, split: str, most: int) -> Tensor:
        """Indices of items of a split, at most so many, always the same."""
        return random_order(len(self.parts[split]))[:most]

    def matched_prior(self, sde: SDE) -> GaussianPrior:
        """The Gaussian with the training split's moments at t_max, dequantised if the data have levels."""
        x = self.some("train").double()
        bins = 0.0 if self.levels is None else UniformDequantisation(self.levels).width ** 2 / 12
        return GaussianPrior.matched(sde, x.mean(0), x.var(0, correction=0) + bins)


def own_data(cfg: DictConfig, model: ScoreModel) -> tuple[ScoredData, list[str]]:
    """The data set that is scored, and the names of its splits that are.

    Raises:
        UserError: If the data do not fit the model, or there is no such split.
    """
    data = load_data(cfg, model)
    _check_shape(data.name, data.shape, data.levels, model)
    wanted = cfg.split
    if wanted == "all":
        splits = list(data.splits)
    else:
        splits = [str(name) for name in wanted] if isinstance(wanted, ListConfig) else [str(wanted)]
    if not splits:
        raise UserError(f"split=[] names none: choose from {', '.join(data.splits)}, or all")
    for name in splits:
        data.split(name)
    return ScoredData(data.name, "own", data.splits, cfg.n, _told(cfg, model), model.conditions), splits


def _told(cfg: DictConfig, model: ScoreModel) -> dict[str, Any]:
    """What the model is told, as it was typed.

    Raises:
        UserError: If it was not trained to be told this alone.
    """
    told = given(cfg, model.conditions)
    check_told(model, told)
    return told


def row_data(cfg: DictConfig, model: ScoreModel) -> ScoredData:
    """The rows of the file `cfg.x`.

    Raises:
        UserError: If it cannot be read, or the rows do not fit the model.
    """
    if not isinstance(cfg.x, str):
        raise UserError(f"x must be a file of rows, .npy, .npz or .csv; got x={cfg.x}")
    path = Path(cfg.x)
    told = _told(cfg, model)
    others = [name for name, value in told.items() if is_own(value) and name != "label"]
    rows = {"rows": read_rows(path, model.data, others)}
    return ScoredData(path.name, "rows", rows, cfg.n, told, model.conditions)


def against_data(cfg: DictConfig, model: ScoreModel, own: ScoredData) -> ScoredData | None:
    """The data set that the model is asked to tell from its own; None if there is none.

    Raises:
        UserError: If there is no such data set, or it does not fit the model.
    """
    from sde_diffusion.data.artificial import ARTIFICIAL, artificial

    if cfg.against is None:
        return None
    name, told = str(cfg.against), _told(cfg, model)
    if any(map(is_own, told.values())):  # other data's own are of other classes
        told = {}
    if name in ARTIFICIAL:
        split = artificial(name, cfg.n or min(own.count("test"), 1000), own.parts["train"])
        return ScoredData(name, "against", {"test": split}, None, told, model.conditions)
    file = config_folder() / "data" / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.yaml"))
        raise UserError(f"against={name} is not a data set; choose from {', '.join([*ARTIFICIAL, *known])}")
    node = OmegaConf.merge({"seed": 0}, {"data": OmegaConf.load(file)})
    for key in ("root", "path"):
        if cfg[f"against_{key}"] is not None:
            node.data[key] = cfg[f"against_{key}"]
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise UserError(" ".join(f"against={name} needs against_{key.split('.')[-1]}=VALUE" for key in missing))
    try:
        data = load_named(plain(node)["data"])
    except UserError as error:
        raise UserError(f"against={name} (its data.root is against_root, data.path against_path): {error}") from error
    _check_shape(name, data.shape, data.levels, model)
    take_units(data, model)
    return ScoredData(name, "against", {"test": data.split("test")}, cfg.n, told, model.conditions)


def _check_shape(name: str, shape: tuple[int, ...], levels: int | None, model: ScoreModel) -> None:
    if list(shape) != list(model.data["shape"]):
        raise UserError(
            f"{name} has items of shape {list(shape)}, and the model was trained on {model.data['name']} of shape "
            f"{model.data['shape']}: bring the data to that shape (data.size for folders and idx files)"
        )
    if levels != model.data["levels"]:
        raise UserError(
            f"{name} has {levels or 'no'} levels, and the model was trained on {model.data['name']} with "
            f"{model.data['levels'] or 'none'}: their likelihoods cannot be compared"
        )
