"""Load a command's checkpoint and data."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of
from sde_diffusion.modality.units import Units

if TYPE_CHECKING:
    from sde_diffusion.data import DataModule
    from sde_diffusion.denoiser import Denoiser
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_PLACES = ("root", "path")
"""Keys for the location of the data; null if it has not changed since training, or the data set has no such key."""


def load_model(cfg: DictConfig) -> tuple[GenerativeModel, torch.device]:
    """The model of `cfg.ckpt` on `cfg.device` (auto: a GPU if there is one), guided by `cfg.guidance`.

    Its networks are compiled with `cfg.compile`, and recorded with `cfg.cuda_graphs`, if the command has these keys.

    Raises:
        UserError: If the checkpoint cannot be read, its model does not support this guidance, or the device is not
            available or has no CUDA graphs.
    """
    from sde_diffusion.training.guided_denoiser import guide

    device = device_of(cfg)
    model = load_unguided(cfg.ckpt, device)
    guide(model, resolved(cfg.guidance))
    speed_up(model, device, cfg)
    return model, device


def speed_up(model: GenerativeModel, device: torch.device, cfg: DictConfig) -> None:
    """Compile the networks of a model's denoisers if `cfg.compile`, and record their passes if `cfg.cuda_graphs`.

    Raises:
        UserError: If the device has no CUDA graphs.
    """
    from sde_diffusion.denoiser import CUDAGraphs, NetworkDenoiser

    chosen = [key for key in ("compile", "cuda_graphs") if cfg.get(key)]
    if "cuda_graphs" in chosen and device.type != "cuda":
        raise UserError(f"cuda_graphs=true needs a CUDA device, and this command runs on {device}: leave it out")
    denoisers = [part for part in model.modules() if isinstance(part, NetworkDenoiser)]
    if chosen and not denoisers:
        log.warning("%s: a %s has no denoiser that it would speed up", chosen[0], type(model).__name__)
    if denoisers and "compile" in chosen:
        log.info("compiling the network in the first batch, which can take minutes")
    for denoiser in denoisers:
        if "cuda_graphs" in chosen:
            denoiser.cuda_graphs = CUDAGraphs()
        if "compile" in chosen:
            denoiser.compile()


def load_unguided(ckpt: str, device: torch.device) -> GenerativeModel:
    """The model of a checkpoint, also one of another program, which has a description of its data.

    Raises:
        UserError: If the checkpoint cannot be read, or lacks the description.
    """
    from sde_diffusion.pretrained import Pretrained, recognises
    from sde_diffusion.training.digested import load_with_digest

    if recognises(ckpt):
        model: GenerativeModel = Pretrained.load(ckpt).model().to(device)
        log.info("%s: %s, %s", ckpt, model.denoiser.description.source, model.summary()["path"])  # type: ignore[union-attr]
    else:
        model = load_with_digest(ckpt, device)
    model.requires_grad_(False)  # nothing is trained, a learned path included
    if lacking := [name for name in ("name", "shape", "levels") if name not in model.data]:
        raise UserError(
            f"{ckpt} lacks a description of its data ({', '.join(lacking)}), which the commands need: pass "
            f"data=DataModule.describe() to {type(model).__name__} before training, or use the model in Python"
        )
    modality_of(model.data)  # raises its errors now, not after sampling
    return model


def denoiser_of(model: GenerativeModel) -> Denoiser:
    """The denoiser that a command uses: the model's, which `load_model` has guided."""
    assert model.denoiser is not None  # checked by `check_denoiser_space`
    return model.denoiser


def check_denoiser_space(what: str, ckpt: str, model: GenerativeModel, on_data: bool = False) -> None:
    """Check that a model has a denoiser.

    Args:
        what: What needs it, such as a command.
        ckpt: The model's checkpoint.
        model: The model.
        on_data: Whether it must walk on the data themselves, not on latent variables.

    Raises:
        UserError: If it has none, or not on the data.
    """
    if model.denoiser is None:
        contains = f"{ckpt} contains a {type(model).__name__} ({model.summary()['model']})"
        raise UserError(f"{contains}, and {what} needs a denoiser")
    if on_data and not walks_on_data(model):
        raise UserError(
            f"{ckpt} contains a {type(model).__name__}, which walks on latent variables of shape "
            f"{list(model.state_shape)}, and {what} needs a denoiser of the data"
        )


def walks_on_data(model: GenerativeModel) -> bool:
    """Whether a model has a denoiser of the data themselves, not of latent variables."""
    return model.denoiser is not None and list(model.state_shape) == list(model.data["shape"])


def random_order(n: int) -> Tensor:
    """The numbers 0 ... n - 1 in a fixed random order, since files are often sorted by class or by source."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def device_of(cfg: DictConfig) -> torch.device:
    """The device that `cfg.device` names (auto: a GPU if there is one).

    Raises:
        UserError: If it is not available.
    """
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here; use device=cpu or device=auto") from error
    return device


def load_data(cfg: DictConfig, model: GenerativeModel | None) -> DataModule:
    """The data set that `cfg.data` names, or else the model's own, perhaps at another location.

    Float data are mapped to [-1, 1] by the model's units.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    data = _load_data(cfg, model)
    if model is not None:
        use_model_units(data, model)
    return data


def use_model_units(data: DataModule, model: GenerativeModel) -> None:
    """Map float data to [-1, 1] by the units of a model of the same shape; older checkpoints store no units."""
    if "units" not in model.data or data.levels is not None or list(data.shape) != list(model.data["shape"]):
        return
    units = Units.of(model.data["units"])
    if units != data.units:
        log.warning("%s: mapped to [-1, 1] by the range of the model's training data, not by its own", data.name)
    data.change_units(units)


def _load_data(cfg: DictConfig, model: GenerativeModel | None) -> DataModule:
    chosen = resolved(cfg.data)
    if chosen.get("_target_"):
        data = build_data({key: value for key, value in chosen.items() if value is not None or key not in _PLACES})
        if model is not None and not model.data.get("config"):  # then its name is that of the checkpoint's file
            log.warning("the checkpoint does not say which data it was trained on; the data are %s", data.name)
        elif model is not None and data.name != model.data["name"]:
            log.warning("the model was trained on %s, but the data are %s", model.data["name"], data.name)
        return data
    if model is None:
        raise UserError("without a checkpoint, name the data to compare with: data=digits, data=mnist, ...")
    if not model.data.get("config"):
        raise UserError("the checkpoint does not say which data it was trained on: set data=digits, data=mnist, ...")
    data = build_data({**model.data["config"], **{key: value for key, value in chosen.items() if value is not None}})
    if changed := data.changed_since(model.data.get("fingerprint")):
        log.warning("%s: these are not the data that the model was trained on (%s)", data.name, changed)
    return data


def build_data(node: dict[str, Any]) -> DataModule:
    """Build and load the data set that a configuration describes.

    Raises:
        UserError: If the configuration describes something else, or the data cannot be read.
    """
    from sde_diffusion.data import DataModule

    data = build(node, "data")
    if not isinstance(data, DataModule):
        raise UserError(f"data: {node.get('_target_')!r} is not a data set; they are in sde_diffusion.data")
    return data.prepare()
