"""The data that `sde_diffusion.likelihood` scores: a model's own, another set, or artificial ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.commands.loading import check_label, load_data, load_named, random_order, take_units
from sde_diffusion.commands.scored_rows import read_rows
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
        label: None, own (each item's), or one for all.
        n_classes: Of the model.

    Raises:
        UserError: If the label is none that the model knows.
    """

    def __init__(
        self, name: str, role: str, parts: dict[str, Split], limit: int | None, label: Any, n_classes: int
    ) -> None:
        self.name, self.role, self.parts, self.limit = name, role, parts, limit
        self.splits = list(parts)
        self.label, self.n_classes = label, n_classes
        first = next(iter(parts.values()))
        self.levels = first.levels
        self.size = math.prod(first.x.shape[1:])
        if label is not None:
            check_label(0 if label == "own" else label, n_classes, "own (each item's), or null")
        if label == "own" and any(part.label is None for part in parts.values()):
            raise UserError(f"label=own needs labels, and {name} has none")

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
        """Items [B] with their conditions."""
        batch = self.parts[split].batch(items)
        conditions: dict[str, Tensor] = {}
        if self.label is not None:
            label = batch["label"] if self.label == "own" else torch.full((len(items),), int(self.label))
            conditions["label"] = label.to(device)
        return batch["x"].to(device), conditions

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
    return ScoredData(data.name, "own", data.splits, cfg.n, cfg.label, model.hparams["n_classes"]), splits


def row_data(cfg: DictConfig, model: ScoreModel) -> ScoredData:
    """The rows of the file `cfg.x`.

    Raises:
        UserError: If it cannot be read, or the rows do not fit the model.
    """
    if not isinstance(cfg.x, str):
        raise UserError(f"x must be a file of rows, .npy, .npz or .csv; got x={cfg.x}")
    path = Path(cfg.x)
    return ScoredData(
        path.name, "rows", {"rows": read_rows(path, model.data)}, cfg.n, cfg.label, model.hparams["n_classes"]
    )


def against_data(cfg: DictConfig, model: ScoreModel, own: ScoredData) -> ScoredData | None:
    """The data set that the model is asked to tell from its own; None if there is none.

    Raises:
        UserError: If there is no such data set, or it does not fit the model.
    """
    from sde_diffusion.data.artificial import ARTIFICIAL, artificial

    if cfg.against is None:
        return None
    name, label = str(cfg.against), None if cfg.label == "own" else cfg.label
    n_classes = model.hparams["n_classes"]
    if name in ARTIFICIAL:
        split = artificial(name, cfg.n or min(own.count("test"), 1000), own.parts["train"])
        return ScoredData(name, "against", {"test": split}, None, label, n_classes)
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
    return ScoredData(name, "against", {"test": data.split("test")}, cfg.n, label, n_classes)


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
