"""Resuming a training run: its own configuration, changed where the command line says so."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, OverrideType
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion.checks.overrides import setting
from sde_diffusion.checks.reprs import few
from sde_diffusion.commands import own_classes, schema
from sde_diffusion.commands.app import is_given, overrides, plain, typed
from sde_diffusion.commands.configurations import parse
from sde_diffusion.commands.messages import unknown_key
from sde_diffusion.commands.resumed_changes import literal
from sde_diffusion.config import with_public_paths
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sde_diffusion.data import DataModule

log = logging.getLogger(__name__)

KEPT_GROUPS = (
    *("sde", "network", "denoiser", "objective", "data", "model", "sampler", "guidance", "trainer"),
    *("seed", "conditional"),
)
"""What of a run's configuration its checkpoint keeps, and a resumed run takes from there."""

FIXED_GROUPS = ("sde", "network", "denoiser", "conditional", "experiment")
"""What shapes the weights, and cannot change on the way."""


def accepting(arguments: Sequence[str]) -> list[str]:
    """Arguments, changed so that Hydra accepts keys that the resumed run has and a new run would not.

    A run of data=moons has `data.n_train`, and a new one, of the digits, would not: with `ckpt=` such keys are let
    pass, and looked up in the run's own configuration by `resumed`.
    """
    read = [parse(argument) for argument in arguments]
    if not any(override and override.key_or_group == "ckpt" and override.value() is not None for override in read):
        return list(arguments)
    return [
        f"++{argument}" if override and override.type is OverrideType.CHANGE and _is_below_kept(override) else argument
        for argument, override in zip(arguments, read, strict=True)
    ]


def _is_below_kept(override: Override) -> bool:
    group, dot, _ = override.key_or_group.partition(".")
    return bool(dot) and group in KEPT_GROUPS


def read_run(ckpt: str) -> dict[str, Any]:
    """A checkpoint that a run can be resumed from.

    Raises:
        UserError: If it cannot be read, or was not written by a run.
    """
    from sde_diffusion.training.checkpoint import expect_resumable, read_checkpoint

    checkpoint = read_checkpoint(ckpt)
    if not checkpoint["sde_diffusion"].get("run"):
        raise UserError(f"{ckpt} keeps no configuration of its run: it was not written by sde_diffusion.train")
    expect_resumable(checkpoint, ckpt)
    return checkpoint


def resumed(cfg: DictConfig, checkpoint: dict[str, Any]) -> DictConfig:
    """The configuration of the checkpoint's run, changed where the command line says so.

    Raises:
        UserError: If a setting is one that cannot change, or there is no such key.
    """
    kept = literal(with_public_paths(checkpoint["sde_diffusion"]["run"]))
    hydra = HydraConfig.get()
    found = cfg.copy()
    with open_dict(found):
        for key in KEPT_GROUPS:
            found[key] = kept.get(key)  # null: of runs that knew no guidance
        if "seed" in kept["data"] and kept["data"]["seed"] == kept["seed"]:
            found.data.seed = "${seed}"  # as in a new run
        _follow_trainer(found)
        _follow_callbacks(found, kept.get("callbacks", {}))
        for override in overrides():
            key = override.key_or_group
            group = key.split(".")[0]
            if group in FIXED_GROUPS:
                raise UserError(
                    f"{typed(override)}: a resumed run keeps its model: {', '.join(FIXED_GROUPS)} cannot change; "
                    "leave it out, or start a new run without ckpt="
                )
            if group not in (*KEPT_GROUPS, "callbacks"):
                continue
            if override.is_delete():
                OmegaConf.update(found, key, None)
            elif key in hydra.runtime.choices:  # another choice of a group, in place of the run's own
                OmegaConf.update(found, key, OmegaConf.select(cfg, key), merge=False)
            else:
                if not override.is_add() or override.is_force_add():
                    _expect_key(found, key)
                OmegaConf.update(found, key, override.value(), force_add=True)
    own_classes.take(found, overrides())
    schema.check("train", found, resumed=True)
    return found


def _follow_trainer(found: DictConfig) -> None:
    """Leave out of the run's trainer what is not about training: where, and with whose code."""
    from lightning.pytorch import Trainer

    of_this_machine = {"default_root_dir", "logger", "callbacks", "plugins", "profiler", "model_registry"}
    known = set(inspect.signature(Trainer).parameters) - of_this_machine
    _tell_passed([f"trainer.{key}" for key in found.trainer if key not in known])
    found.trainer = {key: value for key, value in found.trainer.items() if key in known}


def _follow_callbacks(found: DictConfig, stored: Mapping[str, Any]) -> None:
    """Give this run's callbacks the settings that the checkpoint's run had, where these name no place and no class.

    A setting is taken if the class that this run's configuration names has an argument of that name, for values of that
    kind. Where files go is this run's own: it follows from its folder, or is given on the command line.
    """
    passed = []
    for name, settings in stored.items():
        own = found.callbacks.get(name)
        if own is None:
            if settings is not None and name not in found.callbacks:
                passed.append(f"callbacks.{name}")
            continue
        if settings is None:  # left out in the checkpoint's run
            found.callbacks[name] = None
            continue
        arguments = inspect.signature(get_object(str(own.get("_target_")))).parameters
        for key, value in settings.items():
            if key in arguments and _is_setting(arguments[key], own.get(key), value):
                own[key] = value
            elif key != "_target_":
                passed.append(f"callbacks.{name}.{key}")
    _tell_passed(passed)


def _is_setting(argument: inspect.Parameter, now: Any, value: Any) -> bool:
    """Whether a value out of a checkpoint is one for an argument of a callback, and neither a place nor a class."""
    if argument.kind is argument.VAR_KEYWORD or argument.kind is argument.VAR_POSITIONAL:
        return False
    if "path" in str(argument.annotation).lower() or argument.name in ("folder", "dirpath"):
        return False
    if argument.name == "sampler":  # built as data are, by this package alone
        return value is None or isinstance(value, Mapping)
    usual = argument.default if now is None else now
    if value is None or _leads_away(value):
        return value is None
    return _kind(value) == _kind(usual) or (_kind(value) != "" and usual in (None, argument.empty))


def _kind(value: Any) -> str:
    kinds: dict[str, Any] = {"flag": bool, "number": int | float, "text": str}
    return next((kind for kind, of in kinds.items() if isinstance(value, of)), "")


def _leads_away(value: Any) -> bool:
    """Whether a text would be a path out of the folder that it is joined to."""
    if not isinstance(value, str):
        return False
    parts = value.replace("\\", "/").split("/")
    return bool(value) and (parts[0] in ("", "~") or ".." in parts or ":" in parts[0])


def _tell_passed(keys: Sequence[str]) -> None:
    """Say which settings of a checkpoint are not followed, unless they are given."""
    if left := [key for key in keys if not is_given(key)]:
        log.warning("Ignored from the checkpoint: %s; give them on the command line to use them", few(left))


def _expect_key(cfg: DictConfig, key: str) -> None:
    """See that the run has a key of this name.

    Raises:
        UserError: If it has not.
    """
    where, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, where) if where else cfg
    if not isinstance(parent, DictConfig) or name not in parent:
        raise UserError(unknown_key(key, parent if isinstance(parent, DictConfig) else cfg))


def expect_same_data(checkpoint: Mapping[str, Any], data: DataModule) -> None:
    """See that the data are those that the run was trained on, unless the command line names others.

    Raises:
        UserError: If they are not. Checkpoints of version 0.1 do not know.
    """
    changed = data.changed_since((checkpoint["hyper_parameters"].get("data") or {}).get("fingerprint"))
    if not changed:
        return
    from sde_diffusion.data.module import Common

    named = [o for o in overrides() if o.key_or_group.split(".")[0] == "data"]
    if any(override.key_or_group.removeprefix("data.") not in Common.__annotations__ for override in named):
        log.warning("Resumed with other data than the run's: %s", changed)
        return
    place = next((key for key in ("root", "path") if key in data.config), None)
    name = setting("data", data.name) if place is None else setting(f"data.{place}", data.config[place])
    raise UserError(
        f"{data.name}: these are not the data that the run was trained on ({changed}): bring those back, or add {name} "
        "to go on with these all the same"
    )


def limit_reached(checkpoint: dict[str, Any], trainer: Trainer) -> str:
    """Which limit of the trainer's a checkpoint's run has reached, and what to raise; empty where it has not."""
    from sde_diffusion.training.schedule import timer_of

    if not checkpoint:
        return ""
    step, timer = checkpoint["global_step"], timer_of(trainer)
    if 0 < trainer.max_steps <= step:
        return f"the run is at step {step} of trainer.max_steps={trainer.max_steps}; raise trainer.max_steps"
    used = checkpoint["callbacks"].get("Timer", {}).get("time_elapsed", {}).get("train", 0.0)
    if timer is not None and used >= (limit := timer.time_remaining() or 0.0):
        return f"{used:.0f} s of the {limit:.0f} s of trainer.max_time are used up; raise trainer.max_time"
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if 0 < (trainer.max_epochs or -1) <= epochs:
        return f"epoch {epochs} of trainer.max_epochs={trainer.max_epochs} is reached; raise trainer.max_epochs"
    return ""


def callback_settings(node: Any) -> Any:
    """Settings without classes and interpolations: what a checkpoint may say of callbacks, which Hydra builds.

    A sampler is kept as it is: it is built as data are, by this package alone.
    """
    if not isinstance(node, DictConfig):
        return plain(node)
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    own = {key for key, value in raw.items() if isinstance(value, str) and "${" in value}
    kept = {
        key: plain(node[key]) if key == "sampler" else callback_settings(node[key]) for key in raw if key not in own
    }
    return {key: value for key, value in kept.items() if key != "_target_"}
