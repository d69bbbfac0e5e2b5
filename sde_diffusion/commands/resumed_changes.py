"""Differences between a resumed run and the run that wrote its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sde_diffusion.checks.overrides import escaped
from sde_diffusion.checks.reprs import few, shown
from sde_diffusion.commands.app import resolved
from sde_diffusion.config import with_public_paths

log = logging.getLogger(__name__)


def escape_interpolations(node: Any) -> Any:
    """Dicts and lists whose text OmegaConf takes literally: `${oc.env:HOME}` in a checkpoint is not resolved."""
    if isinstance(node, Mapping):
        return {key: escape_interpolations(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [escape_interpolations(value) for value in node]
    return escaped(node) if isinstance(node, str) else node


_EXACT = (
    "seed",
    "model",
    "objective",
    "denoiser.channels_last",
    "denoiser.compute_dtype",
    "callbacks.ema.decay",
    "callbacks.ema.warmup",
    "callbacks.ema.start_step",
    "callbacks.ema.every_n_steps",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.deterministic",
    "trainer.limit_train_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
"""Keys that determine the exact weights; a changed order of the data is reported when the data are loaded."""

_WITHOUT_EFFECT = ("model.activation_checkpointing", "model.validation_draws")
"""Keys of the model that do not change its weights: the same steps in less memory; draws for validations alone."""


def warn_of_changes(run: Mapping[str, Any], cfg: DictConfig, record: Mapping[str, Any]) -> None:
    """Log in one line what has changed, so that a resumed run cannot end bit for bit like an uninterrupted one.

    Args:
        run: The configuration and record in the checkpoint.
        cfg: The resumed run's configuration.
        record: The resumed run's record.
    """
    before, now = OmegaConf.create(escape_interpolations(dict(run))), cfg
    ends = [f"trainer.{key}" for key in ("max_steps", "max_epochs", "max_time")]  # where the cosine schedule ends
    keys = [*_EXACT, *(ends if cfg.model.get("schedule", "cosine") == "cosine" else [])]
    found = []
    for key in keys:
        old, new = (_dotted(with_public_paths(resolved(OmegaConf.select(of, key))), key) for of in (before, now))
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        changed = [name for name in changed if name not in _WITHOUT_EFFECT]
        found += [f"{name} {shown(old.get(name))} -> {shown(new.get(name))}" for name in changed]
    earlier = run.get("record") or {}
    for part, names in (("hardware", ("device", "kind", "devices", "nodes", "threads")), ("versions", ("torch",))):
        old, new = earlier.get(part) or {}, record.get(part) or {}
        changed = [name for name in names if name in old and old[name] != new.get(name)]
        found += [f"{name} {shown(old[name])} -> {shown(new.get(name))}" for name in changed]
    if found:
        log.warning("Resumed with %s: the weights will differ from those of an uninterrupted run", few(found))


def _dotted(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {name: leaf for key, value in node.items() for name, leaf in _dotted(value, f"{prefix}.{key}").items()}
