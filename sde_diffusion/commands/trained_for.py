"""Train a model for another one, such as a classifier with the path, the times and the data of the model it guides."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion.checks.overrides import setting
from sde_diffusion.commands import schema, user_classes
from sde_diffusion.commands.app import as_typed, overrides
from sde_diffusion.commands.configurations import config_folder, parse
from sde_diffusion.commands.resumed_changes import escape_interpolations
from sde_diffusion.commands.resuming import read_run
from sde_diffusion.config import public_path, with_public_paths
from sde_diffusion.errors import UserError
from sde_diffusion.training.models import MODELS

TAKEN = ("sde", "objective", "data")
"""The parts of the other model's configuration that are used; those of the data may be changed, such as their place."""


def name_other_model(arguments: Sequence[str]) -> list[str]:
    """The arguments, with ckpt=PATH replaced by model.of=PATH beside a kind of model that has this setting.

    Without model=, ckpt= resumes a run; the kind of model is then known.
    """
    read = [parse(argument) for argument in arguments]
    kinds = [override.value() for override in read if override is not None and override.key_or_group == "model"]
    settings = config_folder() / "model" / f"{kinds[-1] if kinds else ''}.yaml"
    if not settings.is_file() or "of" not in OmegaConf.load(settings):
        return list(arguments)
    is_ckpt = [override is not None and override.key_or_group == "ckpt" for override in read]
    return [
        f"model.of={argument.partition('=')[2]}" if other else argument
        for argument, other in zip(arguments, is_ckpt, strict=True)
    ]


def with_other_model(cfg: DictConfig) -> DictConfig:
    """The configuration, with the path, the times and the data of the model in `model.of`, if there is one.

    Raises:
        UserError: If its checkpoint cannot be read, is of the same kind of model, or a part of it is to be changed.
    """
    of = cfg.model.get("of")
    if of is None:
        return cfg
    about = read_run(of)["sde_diffusion"]
    if (its := about.get("model", MODELS[0])) == public_path(cfg.model._target_):
        kind = its.rpartition(".")[2]
        raise UserError(f"{of} contains a {kind} itself: leave model= out to resume it with {setting('ckpt', of)}")
    stored = escape_interpolations(with_public_paths(about["run"]))
    if (stored.get("first_stage") or {}).get("ckpt"):
        raise UserError(f"{of} is a model of latent variables: classifiers are for models of the data themselves")
    choices, found = HydraConfig.get().runtime.choices, cfg.copy()
    with open_dict(found):
        for key in TAKEN:
            found[key] = stored[key]
        found.denoiser.sigma_data = stored["denoiser"].get("sigma_data")
        found.conditional = True
        for override in overrides():
            key = override.key_or_group
            if key == "experiment":
                raise UserError(f"{as_typed(override)}: presets are for models of their own: leave it out")
            if key.split(".")[0] not in TAKEN:
                continue
            if not key.startswith("data"):
                raise UserError(f"{as_typed(override)}: this is that of the model in model.of={of}: leave it out")
            value = OmegaConf.select(cfg, key) if key in choices else override.value()
            OmegaConf.update(found, key, value, merge=False, force_add=True)
    user_classes.apply(found, overrides())
    schema.check("train", found, resumed=True)
    return found
