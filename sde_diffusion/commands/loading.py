"""A command's checkpoint and data."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of
from sde_diffusion.modality.units import Units

if TYPE_CHECKING:
    from sde_diffusion.data import DataModule
    from sde_diffusion.denoiser import Denoiser
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)

_PLACES = ("root", "path")
"""Where data lie: null where the model's own data lie where they lay in training, or the data set has no such key."""


def load_model(cfg: DictConfig) -> tuple[ScoreModel, torch.device]:
    """The model of `cfg.ckpt` on `cfg.device` (auto: a GPU if there is one).

    Raises:
        UserError: If the checkpoint cannot be read, or the device is not there.
    """
    device = device_of(cfg)
    model = _load(cfg.ckpt, device)
    if lacking := [name for name in ("name", "shape", "levels") if name not in model.data]:
        raise UserError(
            f"{cfg.ckpt} does not say of its data: {', '.join(lacking)}. The commands need to know: give "
            "data=DataModule.describe() to ScoreModel before training, or use the model in Python"
        )
    modality_of(model.data)  # now and not after sampling
    return model, device


def denoiser_of(cfg: DictConfig, model: ScoreModel) -> Denoiser:
    """The denoiser that a command works with: the model's, as `cfg.guidance` steers it.

    Raises:
        UserError: If the model does not allow that.
    """
    from sde_diffusion.training.steering import steered

    return steered(model, plain(cfg.guidance))


def _load(ckpt: str, device: torch.device) -> ScoreModel:
    """A checkpoint's model and the digest of the file that it is of: a run that goes on may replace it at any time."""
    from sde_diffusion.training import GenerativeModel, ScoreModel

    for _ in range(5):
        before = _identity(ckpt)
        model = GenerativeModel.load_from_checkpoint(ckpt, map_location=device)
        if not isinstance(model, ScoreModel):
            raise UserError(f"{ckpt} holds a {type(model).__name__}, and this command takes models of a score")
        with Path(ckpt).open("rb") as file:
            model.digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _identity(ckpt) == before:
            return model
    raise UserError(f"{ckpt} is being replaced again and again: take a copy of it")


def _identity(ckpt: str) -> tuple[int, int, int] | None:
    try:
        found = Path(ckpt).stat()
    except (OSError, ValueError):  # told by who reads it
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def random_order(n: int) -> Tensor:
    """The numbers 0 ... n - 1 in a random order, always the same: files are often sorted, by class or by source."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def device_of(cfg: DictConfig) -> torch.device:
    """The device that `cfg.device` names (auto: a GPU if there is one).

    Raises:
        UserError: If it is not there.
    """
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here; take device=cpu, or device=auto") from error
    return device


def load_data(cfg: DictConfig, model: ScoreModel | None) -> DataModule:
    """The data set that `cfg.data` names: another than the model's own, or that one, perhaps in another place.

    Float data are mapped to [-1, 1] by the model's units.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    data = _load_data(cfg, model)
    if model is not None:
        take_units(data, model)
    return data


def take_units(data: DataModule, model: ScoreModel) -> None:
    """Have float data mapped to [-1, 1] by the units of a model of their shape; older checkpoints keep none."""
    if "units" not in model.data or data.levels is not None or list(data.shape) != list(model.data["shape"]):
        return
    units = Units.of(model.data["units"])
    if units != data.units:
        log.warning("%s: mapped to [-1, 1] as the model's data were, not by the range of its own", data.name)
    data.change_units(units)


def _load_data(cfg: DictConfig, model: ScoreModel | None) -> DataModule:
    chosen = plain(cfg.data)
    if chosen.get("_target_"):
        data = load_named({key: value for key, value in chosen.items() if value is not None or key not in _PLACES})
        if model is not None and data.name != model.data["name"]:
            log.warning("the model was trained on %s, and these are %s", model.data["name"], data.name)
        return data
    if model is None:
        raise UserError("without a checkpoint the data to compare with must be named: data=digits, data=mnist, ...")
    if not model.data.get("config"):
        raise UserError("the checkpoint does not say where its data come from: name them, data=digits, data=mnist, ...")
    data = load_named({**model.data["config"], **{key: value for key, value in chosen.items() if value is not None}})
    if changed := data.changed_since(model.data.get("fingerprint")):
        log.warning("%s: these are not the data that the model was trained on (%s)", data.name, changed)
    return data


def load_named(node: dict[str, Any]) -> DataModule:
    """The data set that a configuration describes, read.

    Raises:
        UserError: If it describes something else.
    """
    from sde_diffusion.data import DataModule

    data = build(node, "data")
    if not isinstance(data, DataModule):
        raise UserError(f"data: {node.get('_target_')!r} is not a data set; those live in sde_diffusion.data")
    return data.prepare()
