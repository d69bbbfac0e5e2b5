"""What of a resumed run differs from the run that its checkpoint is of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sde_diffusion.checks.overrides import escaped
from sde_diffusion.checks.reprs import few, shown
from sde_diffusion.commands.app import plain
from sde_diffusion.config import with_public_paths

log = logging.getLogger(__name__)


def literal(node: Any) -> Any:
    """Plain containers in which OmegaConf looks nothing up: a checkpoint's text is text, `${oc.env:HOME}` too."""
    if isinstance(node, Mapping):
        return {key: literal(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [literal(value) for value in node]
    return escaped(node) if isinstance(node, str) else node


_EXACT = (
    *("seed", "model", "objective", "callbacks.ema.decay", "callbacks.ema.warmup", "callbacks.ema.start_step"),
    *(f"trainer.{key}" for key in ("precision", "accumulate_grad_batches", "deterministic", "limit_train_batches")),
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
)
"""What of a configuration decides every bit of the weights; the order of the data is told where they are loaded."""


def tell_changes(run: Mapping[str, Any], cfg: DictConfig, record: Mapping[str, Any]) -> None:
    """Say in one line what of a resumed run differs, so that its end is not that of the unbroken run bit for bit.

    Args:
        run: The configuration and record that the checkpoint keeps.
        cfg: The resumed run's configuration.
        record: The resumed run's record.
    """
    before, now = OmegaConf.create(literal(dict(run))), cfg
    ends = [f"trainer.{key}" for key in ("max_steps", "max_epochs", "max_time")]  # to which the cosine goes down
    keys = [*_EXACT, *(ends if cfg.model.get("schedule", "cosine") == "cosine" else [])]
    found = []
    for key in keys:
        old, new = (_dotted(with_public_paths(plain(OmegaConf.select(of, key))), key) for of in (before, now))
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        found += [f"{name} {shown(old.get(name))} -> {shown(new.get(name))}" for name in changed]
    earlier = run.get("record") or {}
    for part, names in (("hardware", ("device", "kind", "devices", "nodes", "threads")), ("versions", ("torch",))):
        old, new = earlier.get(part) or {}, record.get(part) or {}
        changed = [name for name in names if name in old and old[name] != new.get(name)]
        found += [f"{name} {shown(old[name])} -> {shown(new.get(name))}" for name in changed]
    if found:
        log.warning("Resumed with %s: its weights are not, bit for bit, the unbroken run's", few(found))


def _dotted(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {name: leaf for key, value in node.items() for name, leaf in _dotted(value, f"{prefix}.{key}").items()}
