"""Resuming a training run: its own configuration, changed where the command line says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion.commands import schema
from sde_diffusion.commands.app import overrides, plain, typed, unknown_key
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

KEPT_GROUPS = ("sde", "network", "denoiser", "objective", "data", "model", "sampler", "trainer", "seed", "conditional")
"""What of a run's configuration its checkpoint keeps, and a resumed run takes from there."""

FIXED_GROUPS = ("sde", "network", "denoiser", "conditional", "experiment")
"""What shapes the weights, and cannot change on the way."""


def accepting(arguments: Sequence[str]) -> list[str]:
    """Arguments of which Hydra refuses none for a key that the run has and a new run would not.

    A run of data=moons has `data.n_train`, and a new one, of the digits, would not: with `ckpt=` such keys are let
    pass, and looked up in the run's own configuration by `resumed`.
    """
    if not any(argument.startswith("ckpt=") for argument in arguments):
        return list(arguments)
    own = tuple(f"{group}." for group in KEPT_GROUPS)
    return [f"++{argument}" if argument.startswith(own) else argument for argument in arguments]


def read_run(ckpt: str) -> dict[str, Any]:
    """A checkpoint that a run can be resumed from.

    Raises:
        UserError: If it cannot be read, or was not written by a run.
    """
    from sde_diffusion.training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(ckpt)
    if not checkpoint["sde_diffusion"].get("run"):
        raise UserError(f"{ckpt} keeps no configuration of its run: it was not written by sde_diffusion.train")
    return checkpoint


def resumed(cfg: DictConfig, checkpoint: dict[str, Any]) -> DictConfig:
    """The configuration of the checkpoint's run, changed where the command line says so.

    Raises:
        UserError: If a setting is one that cannot change, or there is no such key.
    """
    kept = checkpoint["sde_diffusion"]["run"]
    hydra = HydraConfig.get()
    found = cfg.copy()
    with open_dict(found):
        for key in KEPT_GROUPS:
            found[key] = kept[key]
        if "seed" in kept["data"] and kept["data"]["seed"] == kept["seed"]:
            found.data.seed = "${seed}"  # as in a new run
        known = {name: values for name, values in kept.get("callbacks", {}).items() if found.callbacks.get(name)}
        found.callbacks = OmegaConf.merge(found.callbacks, known)
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
    schema.check("train", found, resumed=True)
    return found


def _expect_key(cfg: DictConfig, key: str) -> None:
    """See that the run has a key of this name.

    Raises:
        UserError: If it has not.
    """
    where, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, where) if where else cfg
    if not isinstance(parent, DictConfig) or name not in parent:
        raise UserError(unknown_key(key, parent if isinstance(parent, DictConfig) else cfg))


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
