"""The data that `sde_diffusion.likelihood` scores: the model's own, another data set, or artificial data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import check_trained_for, is_own, requested_conditions
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.commands.loading import build_data, load_data, random_order, use_model_units
from sde_diffusion.commands.scored_rows import read_rows
from sde_diffusion.conditions import Conditions
from sde_diffusion.density import GaussianPrior, UniformDequantisation
from sde_diffusion.errors import UserError
from sde_diffusion.sde import SDE

if TYPE_CHECKING:
    from sde_diffusion.data import Split
    from sde_diffusion.training.generative import GenerativeModel

_MOMENT_ITEMS = 50_000
"""Maximum number of items from which the data's moments are estimated."""


class ScoredData:
    """Splits of a data set, and the conditions under which the model scores their items.

    Args:
        name: Name of the data.
        role: own (the model's data), rows (of a file) or against (other data).
        parts: The splits by name.
        limit: Maximum number of items of a split, chosen in a fixed random order; None: all.
        requested: For each condition "own" (the value of each item), or one value for all items, as it was typed.
        kinds: The model's conditions.

    Raises:
        UserError: If a value is not allowed, or the data lack a condition that is "own".
    """

    def __init__(
        self,
        name: str,
        role: str,
        parts: dict[str, Split],
        limit: int | None,
        requested: Mapping[str, Any],
        kinds: Conditions,
    ) -> None:
        self.name, self.role, self.parts, self.limit = name, role, parts, limit
        self.splits = list(parts)
        self.kinds = kinds
        first = next(iter(parts.values()))
        self.levels = first.levels
        self.size = math.prod(first.x.shape[1:])
        self.own = [condition for condition, value in requested.items() if is_own(value)]
        self.common = {
            condition: kinds[condition].read(condition, value, 1)
            for condition, value in requested.items()
            if value is not None and not is_own(value)
        }
        for condition in self.own:
            if any(condition not in part.conditions for part in parts.values()):
                raise UserError(f"{condition}=own needs {condition}s, and {name} has none")

    def reported(self, condition: str) -> Any:
        """The value of a condition, for reports: "own", one value, or None."""
        if condition in self.common:
            return self.common[condition][0].tolist()
        return "own" if condition in self.own else None

    def in_words(self) -> str:
        """The conditions for the log: "label=own, rate=26.5"."""
        values = {name: self.kinds[name].words(value[0]) for name, value in self.common.items()}
        found = [f"{name}={'own' if name in self.own else values.get(name, 'none')}" for name in self.kinds]
        hint = "; NAME=own uses each item's own value" if any(one.endswith("=none") for one in found) else ""
        return ", ".join(found) + hint

    def count(self, split: str) -> int:
        """Number of items of a split to score."""
        return len(self.parts[split]) if self.limit is None else min(self.limit, len(self.parts[split]))

    def items(self, split: str) -> Tensor:
        """Indices of the items to score, in order.

        Rows of a file are sorted by their largest absolute value, so that the items of a batch need similar steps.
        """
        chosen = random_order(len(self.parts[split]))[: self.count(split)]
        if self.role != "rows":
            return chosen
        far = [self.parts[split].tensor(some).flatten(1).abs().amax(1) for some in torch.split(chosen, 10_000)]
        return chosen[torch.cat(far).argsort(stable=True)]

    def batch(self, split: str, items: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """The items [B, *shape] and their conditions, [B, *] each."""
        batch, n = self.parts[split].batch(items), len(items)
        conditions = {name: value.expand(n, *value.shape[1:]) for name, value in self.common.items()}
        conditions |= {name: self.kinds[name].read(name, batch[name], n) for name in self.own}
        return batch["x"].to(device), {name: values.to(device) for name, values in conditions.items()}

    def some(self, split: str, most: int = _MOMENT_ITEMS) -> Tensor:
        """At most so many items of a split."""
        return self.parts[split].tensor(self.some_items(split, most))

    def some_items(self, split: str, most: int) -> Tensor:
        """Indices of at most so many items of a split, in a fixed random order."""
        return random_order(len(self.parts[split]))[:most]

    def matched_prior(self, sde: SDE) -> GaussianPrior:
        """The Gaussian with the moments of the (dequantised) training split at t_max."""
        x = self.some("train").double()
        bins = 0.0 if self.levels is None else UniformDequantisation(self.levels).width ** 2 / 12
        return GaussianPrior.matched(sde, x.mean(0), x.var(0, correction=0) + bins)


def own_data(cfg: DictConfig, model: GenerativeModel) -> tuple[ScoredData, list[str]]:
    """The data set to score, and the names of the splits to score.

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
        raise UserError(f"split=[] is empty: choose from {', '.join(data.splits)}, or all")
    for name in splits:
        data.split(name)
    return ScoredData(data.name, "own", data.splits, cfg.n, _requested(cfg, model), model.conditions), splits


def _requested(cfg: DictConfig, model: GenerativeModel) -> dict[str, Any]:
    """The requested conditions, as they were typed.

    Raises:
        UserError: If the model was not trained with these conditions and without the others.
    """
    requested = requested_conditions(cfg, model)
    check_trained_for(model, requested)
    return requested


def row_data(cfg: DictConfig, model: GenerativeModel) -> ScoredData:
    """The rows of the file `cfg.x`.

    Raises:
        UserError: If it cannot be read, or the rows do not fit the model.
    """
    if not isinstance(cfg.x, str):
        raise UserError(f"x must be a file of rows, .npy, .npz or .csv; got x={cfg.x}")
    path = Path(cfg.x)
    requested = _requested(cfg, model)
    own = {name: model.conditions[name] for name, value in requested.items() if is_own(value)}
    rows = {"rows": read_rows(path, model.data, own)}
    return ScoredData(path.name, "rows", rows, cfg.n, requested, model.conditions)


def against_data(cfg: DictConfig, model: GenerativeModel, own: ScoredData) -> ScoredData | None:
    """The other data of `against`, to compare with the model's own; None if `against` is null.

    Raises:
        UserError: If there is no such data set, or it does not fit the model.
    """
    from sde_diffusion.data.artificial import ARTIFICIAL, artificial

    if cfg.against is None:
        return None
    name, requested = str(cfg.against), _requested(cfg, model)
    if any(map(is_own, requested.values())):  # conditions of other data have another meaning
        requested = {}
    if name in ARTIFICIAL:
        split = artificial(name, cfg.n or min(own.count("test"), 1000), own.parts["train"])
        return ScoredData(name, "against", {"test": split}, None, requested, model.conditions)
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
        data = build_data(resolved(node)["data"])
    except UserError as error:
        raise UserError(f"against={name} (its data.root is against_root, data.path against_path): {error}") from error
    _check_shape(name, data.shape, data.levels, model)
    use_model_units(data, model)
    return ScoredData(name, "against", {"test": data.split("test")}, cfg.n, requested, model.conditions)


def _check_shape(name: str, shape: tuple[int, ...], levels: int | None, model: GenerativeModel) -> None:
    if list(shape) != list(model.data["shape"]):
        raise UserError(
            f"{name} has items of shape {list(shape)}, and the model was trained on items of shape "
            f"{model.data['shape']}: change the data to that shape (data.size for folders and idx files)"
        )
    if levels != model.data["levels"]:
        raise UserError(
            f"{name} has {levels or 'no'} levels, and the model was trained on data with "
            f"{model.data['levels'] or 'none'}: their likelihoods cannot be compared"
        )
