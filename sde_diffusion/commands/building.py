"""Build the model and the trainer that a configuration describes."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion import plugins
from sde_diffusion.checks.hints import arguments_of
from sde_diffusion.commands.app import is_overridden, override_hint, resolved
from sde_diffusion.commands.configurations import settings_of_choices
from sde_diffusion.commands.loading import build_data
from sde_diffusion.commands.resuming import STORED_GROUPS, callback_settings
from sde_diffusion.conditions import Conditions
from sde_diffusion.config import build, call, find_class, takes
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sde_diffusion.data import DataModule
    from sde_diffusion.denoiser import Denoiser
    from sde_diffusion.training.base import BaseModel
    from sde_diffusion.training.generative import GenerativeModel
    from sde_diffusion.variational import FirstStage

log = logging.getLogger(__name__)

_LARGE = 24
"""Height and width from which a perceptron learns images much worse than a U-Net."""


def build_model(cfg: DictConfig) -> tuple[DataModule, GenerativeModel]:
    """Build the data module and the model of a configuration.

    Args:
        cfg: The composed configuration. The values that depend on the data or the first stage are filled in: `shape`,
            `conditions` and `levels` of path, network and objective if they take them, `denoiser.sigma_data` if it is
            null, and `first_stage.autoencoder`.

    Returns:
        (data module, model).

    Raises:
        UserError: If the configuration or the data do not allow it.
    """
    from sde_diffusion.training.guided_denoiser import check_pictures
    from sde_diffusion.training.models import MODELS, model_class

    data = build_data(resolved(cfg.data))
    settings = resolved(cfg.model)
    cls = model_class(settings.pop("_target_", MODELS[0]))
    taken = arguments_of(cls)[0]
    stage = _first_stage(cfg, data) if "first_stage" in taken else None
    if stage is None and OmegaConf.select(cfg, "first_stage.ckpt") is not None:
        raise UserError(f"first_stage.ckpt is for latent diffusion, and this is a {cls.__name__}: add model=latent")
    if cfg.conditional and "conditions" not in taken:
        models = settings_of_choices("model")
        able = [
            name
            for name, one in models.items()
            if {"conditions", "denoiser"} <= {*arguments_of(model_class(one["_target_"]))[0]}
        ]
        raise UserError(
            f"conditional=true is for models that can be told conditions, such as classes: model={', '.join(able)}. A "
            f"{cls.__name__} cannot: leave conditional= out"
        )
    conditions = _conditions(cfg, data, data.shape if stage is None else stage.latent_shape)
    told = _of_augmentation(cfg)
    _fill_in(cfg, data, {**conditions, **told}, stage)
    offered = {"denoiser": resolved(cfg.denoiser), "objective": resolved(cfg.objective), "data": data.describe()}
    offered |= {"conditions": conditions, "seed": cfg.seed, "first_stage": stage}
    if (conditions or told) and "denoiser" in taken and not takes(cfg.network, "conditions"):
        asking = "conditional=true" if conditions else "model.augmentation"
        raise UserError(f"{asking} needs a network with an argument conditions; {cfg.network._target_} has none")
    if "denoiser" in taken and stage is None:
        _warn_of_perceptron(cfg, data)
    parts = () if "denoiser" in taken else ("sde", "network", "denoiser")
    if unused := [key for key in (*parts, *offered) if key not in taken and is_overridden(key)]:
        log.warning("a %s has no %s: %s", cls.__name__, " or ".join(unused), "these settings have no effect")
    try:
        model: GenerativeModel = call(
            cls, {**{name: value for name, value in offered.items() if name in taken}, **settings}, "model"
        )
    except UserError as error:  # `denoiser` contains copies of network and sde: use the names of these groups
        raise UserError(re.sub(r"^denoiser\.(network|sde)\b", r"\1", str(error))) from error
    check_pictures(model, resolved(cfg.guidance))  # raises its errors now
    model.run = {key: resolved(cfg[key]) for key in STORED_GROUPS}
    model.run["callbacks"] = {name: callback_settings(node) for name, node in cfg.callbacks.items()}
    return data, model


def _warn_of_perceptron(cfg: DictConfig, data: DataModule) -> None:
    """Warn if a new run has the default perceptron because no network was named, and learns larger images."""
    if not HydraConfig.initialized() or cfg.ckpt is not None or is_overridden("network"):
        return
    large = len(data.shape) == 3 and min(data.shape[1:]) >= _LARGE
    if large and HydraConfig.get().runtime.choices.get("network") == "mlp":
        log.warning(
            "network=mlp, which is taken if none is named, treats an image of %s as %d unrelated numbers, and learns "
            "such images badly: take network=unet_small, or network=unet on a GPU, or a preset (experiment=, see "
            "--help); network=mlp asks for it without this warning",
            "x".join(map(str, data.shape[1:])),
            math.prod(data.shape),
        )


def _first_stage(cfg: DictConfig, data: DataModule) -> FirstStage:
    """The autoencoder of `first_stage.ckpt`; of a resumed run without its weights, which are in the run's checkpoint.

    Raises:
        UserError: If there is none, or it is not one for these data.
    """
    from sde_diffusion.training.first_stage import from_checkpoint, from_description

    known = OmegaConf.select(cfg, "first_stage.autoencoder")
    if known is not None:
        return from_description(resolved(known), data.describe())
    return from_checkpoint(OmegaConf.select(cfg, "first_stage.ckpt"), data.describe())


def _conditions(cfg: DictConfig, data: DataModule, dims: Sequence[int]) -> dict[str, Any]:
    """Descriptions of the conditions that the model will have; those of its network if a run is resumed.

    Those that only training sets are not among them.

    Args:
        cfg: The composed configuration.
        data: The data.
        dims: Shape of what the network takes, for these data.

    Raises:
        UserError: If the data have none, or others than the network of the resumed run.
    """
    conditions = data.conditions.describe() if cfg.conditional else {}
    for name, kind in conditions.items():
        kind |= {argument: resolved(cfg[group]) for argument, group in data.conditions[name].groups.items()}
    measurements = _measurements(cfg, data)
    if not cfg.conditional and (unused := [name for name in data.conditions if name != "label"]):
        log.warning("the model will not depend on %s: add conditional=true", " and ".join(unused))
    elif is_overridden("text") and not any("text" in kind.groups.values() for kind in data.conditions.values()):
        log.warning(
            "text= has no effect, as %s has no texts: add conditional=true, and captions=table (images in a folder) or "
            "captions=rendered (handwritten digits)",
            data.name,
        )
    if cfg.conditional and not conditions:
        raise UserError(f"conditional=true needs labels, and {data.name} has none{data.why_no_labels}")
    conditions = {**conditions, **measurements}
    if (shape := OmegaConf.select(cfg, "network.shape")) is None:
        return conditions
    own = resolved(cfg.network.get("conditions")) or {}  # their means and ranges are part of the network
    told = _of_augmentation(cfg)
    if {name for name, kind in Conditions(own).items() if kind.training_only} != set(told):
        raise UserError(
            f"the network was built {'for no' * bool(told) or 'for an'} augmentation: leave out model.augmentation"
        )
    both = ((shape, own), (dims, {**conditions, **told}))
    built, has = (f"items of shape {list(size)} and {_in_words(kinds)}" for size, kinds in both)
    if built != has:
        raise UserError(
            f"the network was built for {built}, and {data.name} has {has}: use data like those that the model was "
            "trained on, or leave out ckpt= (or network.shape=) to train a new model on these"
        )
    return {name: kind for name, kind in own.items() if name not in told}


def _of_augmentation(cfg: DictConfig) -> dict[str, Any]:
    """Descriptions of the conditions that say how training images were augmented."""
    augmentation = build(resolved(cfg.model).get("augmentation"), "model.augmentation")
    return {} if augmentation is None else Conditions(augmentation.conditions()).describe()


def _measurements(cfg: DictConfig, data: DataModule) -> dict[str, Any]:
    """Descriptions of the measurements of the data that the model is given.

    Raises:
        UserError: If the data cannot be measured in this way.
    """
    measured = build(resolved(cfg.model).get("measured"), "model.measured")
    try:
        return {} if measured is None else Conditions(measured.conditions(data.shape)).describe()
    except ValueError as error:
        raise UserError(f"model.measured.operator: {error}; {data.name} has items {list(data.shape)}") from error


def _in_words(described: Mapping[str, Any]) -> str:
    """Conditions in words: "label: 10 classes, rate: a number"."""
    return ", ".join(f"{name}: {kind.what}" for name, kind in Conditions(described).items()) or "no conditions"


def _fill_in(cfg: DictConfig, data: DataModule, conditions: Mapping[str, Any], stage: FirstStage | None) -> None:
    """Fill in the values that depend on the data, or on the first stage, whose latent variables have unit variance."""
    dims, std, levels = (data.shape, data.std, data.levels) if stage is None else (stage.latent_shape, 1.0, None)
    if resolved(cfg.model).get("dequantise"):
        levels = None  # the values are between the levels
    with open_dict(cfg):
        if stage is not None:
            cfg.first_stage.autoencoder = stage.description
        for name, value in (("shape", list(dims)), ("conditions", conditions)):
            if takes(cfg.network, name):  # user-defined networks may have a fixed shape
                cfg.network[name] = value
        for group in ("sde", "network", "objective"):
            known = arguments_of(find_class(str(cfg[group].get("_target_")), group))[0]
            for name, found in (("levels", levels), ("shape", list(dims))):
                if name in known and cfg[group].get(name) is None:
                    cfg[group][name] = found
        if cfg.denoiser.get("sigma_data") is None and takes(cfg.denoiser, "sigma_data"):
            cfg.denoiser.sigma_data = float(f"{std:.4g}")


def build_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """Build Lightning's trainer, with the callbacks and loggers of a configuration.

    Raises:
        UserError: If the settings do not allow it.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    from sde_diffusion.config import build_around
    from sde_diffusion.training.checkpoint_io import SealedCheckpointIO
    from sde_diffusion.training.precision import check_precision
    from sde_diffusion.training.stopping import StopBetweenSteps

    named = plugins.settings().get("+plugins", [])
    offered = {
        "sampler": build(resolved(cfg.sampler), "sampler"),
        "denoiser_of": functools.partial(_guided, guidance=resolved(cfg.guidance), modules=named),
    }
    callbacks, loggers = (
        [
            build_around(node, f"{key}.{name}", any_library=True, **offered)
            for name, node in resolved(cfg[key]).items()
            if node is not None
        ]
        for key in ("callbacks", "logger")
    )
    options = {"max_epochs": -1, **resolved(cfg.trainer)}  # Lightning's default, without max_steps, is 1000 epochs
    if not any(isinstance(callback, StopBetweenSteps) for callback in callbacks):  # without LastCheckpoint
        callbacks.append(StopBetweenSteps())
    if 0 < options["max_steps"] < (options.get("min_steps") or 0):
        raise UserError(
            f"trainer.min_steps={options['min_steps']} is more than trainer.max_steps={options['max_steps']}"
        )
    try:
        trainer = Trainer(
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
            plugins=[*(options.pop("plugins", None) or []), SealedCheckpointIO()],
            **options,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException, ImportError) as error:
        if "gpu backend" in str(error) or "CUDAAccelerator" in str(error):
            raise UserError(
                f"trainer.accelerator={options['accelerator']}: torch finds no GPU on this machine; take "
                "trainer.accelerator=cpu, for which experiment=mnist_cpu and experiment=cifar10_cpu are made"
            ) from error
        raise UserError(f"trainer: {error}{override_hint('trainer')}") from error
    check_precision(str(trainer.precision))
    return trainer


def _guided(model: BaseModel, guidance: Any, modules: Sequence[str]) -> Denoiser | None:
    """See `guided_denoiser`; loads the user's modules first, for processes that ddp_spawn has started."""
    from sde_diffusion.training.guided_denoiser import guided_denoiser

    for module in modules:
        plugins.load(module)
    return guided_denoiser(model, guidance)
