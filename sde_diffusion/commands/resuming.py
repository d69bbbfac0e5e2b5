"""Resuming a training run: its stored configuration, with the changes of the command line."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion.checks.overrides import setting
from sde_diffusion.checks.reprs import few
from sde_diffusion.commands import schema, user_classes
from sde_diffusion.commands.app import as_typed, is_overridden, overrides, resolved
from sde_diffusion.commands.configurations import parse
from sde_diffusion.commands.messages import unknown_key
from sde_diffusion.commands.resumed_changes import escape_interpolations
from sde_diffusion.config import find_class, with_public_paths
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sde_diffusion.data import DataModule

log = logging.getLogger(__name__)

STORED_GROUPS = (
    "sde",
    "network",
    "denoiser",
    "first_stage",
    "objective",
    "data",
    "text",
    "model",
    "sampler",
    "guidance",
    "trainer",
    "seed",
    "conditional",
)
"""The parts of a run's configuration that its checkpoint stores, and a resumed run uses."""

FIXED_GROUPS = ("sde", "network", "denoiser", "first_stage", "text", "captions", "conditional", "experiment")
"""The parts that determine the weights' shapes and meaning, and cannot change when a run is resumed."""

CHANGEABLE = ("denoiser.compute_dtype", "denoiser.channels_last")
"""Settings of the fixed parts that can change: they affect the speed and the rounding of the network alone."""


def allow_stored_keys(arguments: Sequence[str]) -> list[str]:
    """The arguments, changed so that Hydra accepts keys that the resumed run has and a new run does not.

    A run with data=moons has a key `data.n_train`; a new run, with the default digits, has not. With `ckpt=` such keys
    are accepted here, and checked against the stored configuration by `resumed`.
    """
    read = [parse(argument) for argument in arguments]
    if not any(override and override.key_or_group == "ckpt" and override.value() is not None for override in read):
        return list(arguments)
    return [
        f"++{argument}" if override and override.type is OverrideType.CHANGE and _is_stored(override) else argument
        for argument, override in zip(arguments, read, strict=True)
    ]


def _is_stored(override: Override) -> bool:
    group, dot, _ = override.key_or_group.partition(".")
    return bool(dot) and group in STORED_GROUPS


def read_run(ckpt: str) -> dict[str, Any]:
    """Read a checkpoint from which a run can be resumed.

    Raises:
        UserError: If it cannot be read, or was not written by a training run.
    """
    from sde_diffusion.training.checkpoint import expect_resumable, read_checkpoint

    checkpoint = read_checkpoint(ckpt)
    if not checkpoint["sde_diffusion"].get("run"):
        raise UserError(f"{ckpt} has no configuration of its run: it was not written by sde_diffusion.train")
    expect_resumable(checkpoint, ckpt)
    return checkpoint


def resumed(cfg: DictConfig, checkpoint: dict[str, Any]) -> DictConfig:
    """The configuration of the checkpoint's run, with the changes of the command line.

    Raises:
        UserError: If a setting cannot change, or a key does not exist.
    """
    stored = escape_interpolations(with_public_paths(checkpoint["sde_diffusion"]["run"]))
    hydra = HydraConfig.get()
    found = cfg.copy()
    with open_dict(found):
        for key in STORED_GROUPS:
            found[key] = stored.get(key)  # runs of earlier versions have no guidance or first_stage
        if "seed" in stored["data"] and stored["data"]["seed"] == stored["seed"]:
            found.data.seed = "${seed}"  # as in a new run
        _restrict_trainer(found)
        _restore_callbacks(found, stored.get("callbacks", {}))
        for override in overrides():
            key = override.key_or_group
            group = key.split(".")[0]
            if group in FIXED_GROUPS and key not in CHANGEABLE:
                raise UserError(
                    f"{as_typed(override)}: a resumed run keeps its model: {', '.join(FIXED_GROUPS)} cannot change, "
                    f"but for {' and '.join(CHANGEABLE)}; leave it out, or start a new run without ckpt="
                )
            if group not in (*STORED_GROUPS, "callbacks"):
                continue
            if override.is_delete():
                OmegaConf.update(found, key, None)
            elif key in hydra.runtime.choices:  # another choice of a group
                OmegaConf.update(found, key, OmegaConf.select(cfg, key), merge=False)
            else:
                if key not in CHANGEABLE and (not override.is_add() or override.is_force_add()):
                    _expect_key(found, key)
                OmegaConf.update(found, key, override.value(), force_add=True)
    user_classes.apply(found, overrides())
    schema.check("train", found, resumed=True)
    return found


def _restrict_trainer(found: DictConfig) -> None:
    """Remove settings of the stored trainer that name folders or classes."""
    from lightning.pytorch import Trainer

    of_this_machine = {"default_root_dir", "logger", "callbacks", "plugins", "profiler", "model_registry"}
    known = set(inspect.signature(Trainer).parameters) - of_this_machine
    _warn_ignored([f"trainer.{key}" for key in found.trainer if key not in known])
    found.trainer = {key: value for key, value in found.trainer.items() if key in known}


def _restore_callbacks(found: DictConfig, stored: Mapping[str, Any]) -> None:
    """Give the callbacks the settings stored in the checkpoint, except those that name folders or classes.

    A setting is used if the class in this run's configuration has an argument of that name that takes such a value.
    Folders of files are never taken from a checkpoint: they follow from the run's folder or the command line.
    """
    ignored = []
    for name, settings in stored.items():
        own = found.callbacks.get(name)
        if own is None:
            if settings is not None and name not in found.callbacks:
                ignored.append(f"callbacks.{name}")
            continue
        if settings is None:  # removed in the checkpoint's run
            found.callbacks[name] = None
            continue
        arguments = inspect.signature(find_class(str(own.get("_target_")), f"callbacks.{name}", True)).parameters
        for key, value in settings.items():
            if key in arguments and _is_setting(arguments[key], own.get(key), value):
                own[key] = value
            elif key != "_target_":
                ignored.append(f"callbacks.{name}.{key}")
    _warn_ignored(ignored)


def _is_setting(argument: inspect.Parameter, now: Any, value: Any) -> bool:
    """Whether a value from a checkpoint suits an argument of a callback, and names neither a folder nor a class."""
    if argument.kind is argument.VAR_KEYWORD or argument.kind is argument.VAR_POSITIONAL:
        return False
    if "path" in str(argument.annotation).lower() or argument.name in ("folder", "dirpath"):
        return False
    if argument.name == "sampler":  # built by `config.build`, of this package's classes only
        return value is None or isinstance(value, Mapping)
    usual = argument.default if now is None else now
    if value is None or _leaves_folder(value):
        return value is None
    return _kind(value) == _kind(usual) or (_kind(value) != "" and usual in (None, argument.empty))


def _kind(value: Any) -> str:
    kinds: dict[str, Any] = {"flag": bool, "number": int | float, "text": str}
    return next((kind for kind, of in kinds.items() if isinstance(value, of)), "")


def _leaves_folder(value: Any) -> bool:
    """Whether a text is a path that leads out of the folder that it is joined to."""
    if not isinstance(value, str):
        return False
    parts = value.replace("\\", "/").split("/")
    return bool(value) and (parts[0] in ("", "~") or ".." in parts or ":" in parts[0])


def _warn_ignored(keys: Sequence[str]) -> None:
    """Warn of settings in a checkpoint that are ignored, unless the command line sets them."""
    if left := [key for key in keys if not is_overridden(key)]:
        log.warning("Ignored in the checkpoint: %s; set them on the command line to use them", few(left))


def _expect_key(cfg: DictConfig, key: str) -> None:
    """Check that the run's configuration has this key.

    Raises:
        UserError: If it has not.
    """
    where, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, where) if where else cfg
    if not isinstance(parent, DictConfig) or name not in parent:
        raise UserError(unknown_key(key, parent if isinstance(parent, DictConfig) else cfg))


def expect_same_data(checkpoint: Mapping[str, Any], data: DataModule) -> None:
    """Check that the data are those that the run was trained on, unless the command line names others.

    Checkpoints of version 0.1 do not store what is needed for this check.

    Raises:
        UserError: If they are other data.
    """
    changed = data.changed_since((checkpoint["hyper_parameters"].get("data") or {}).get("fingerprint"))
    if not changed:
        return
    from sde_diffusion.data.common import Common

    named = [o for o in overrides() if o.key_or_group.split(".")[0] == "data"]
    if any(override.key_or_group.removeprefix("data.") not in Common.__annotations__ for override in named):
        log.warning("Resumed with other data: %s", changed)
        return
    place = next((key for key in ("root", "path") if key in data.config), None)
    name = setting("data", data.name) if place is None else setting(f"data.{place}", data.config[place])
    raise UserError(
        f"{data.name}: these are not the data that the run was trained on ({changed}): restore those, or add {name} "
        "to continue with these"
    )


def limit_reached(checkpoint: dict[str, Any], trainer: Trainer) -> str:
    """Which limit of the trainer a checkpoint's run has reached, and which setting to raise; "" if none."""
    from sde_diffusion.training.schedule import timer_of

    if not checkpoint:
        return ""
    step, timer = checkpoint["global_step"], timer_of(trainer)
    if 0 < trainer.max_steps <= step:
        return f"the run is at step {step} of trainer.max_steps={trainer.max_steps}; raise trainer.max_steps"
    used = checkpoint["callbacks"].get("Timer", {}).get("time_elapsed", {}).get("train", 0.0)
    if timer is not None and used >= (limit := timer.time_remaining() or 0.0):
        return f"{used:.0f} s of the {limit:.0f} s of trainer.max_time have been used; raise trainer.max_time"
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if 0 < (trainer.max_epochs or -1) <= epochs:
        return f"the run is at epoch {epochs} of trainer.max_epochs={trainer.max_epochs}; raise trainer.max_epochs"
    return ""


def callback_settings(node: Any) -> Any:
    """Settings of callbacks for a checkpoint: without their classes, which may be any, and without interpolations.

    A sampler is stored with its class: it is built by `config.build`, of this package's classes only.
    """
    if not isinstance(node, DictConfig):
        return resolved(node)
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    own = {key for key, value in raw.items() if isinstance(value, str) and "${" in value}
    kept = {
        key: resolved(node[key]) if key == "sampler" else callback_settings(node[key]) for key in raw if key not in own
    }
    return {key: value for key, value in kept.items() if key != "_target_"}
