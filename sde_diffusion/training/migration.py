"""Conversion of checkpoints written by earlier versions to the present layout."""

from __future__ import annotations

from typing import Any

_LABELS = "network.conditioning.labels."
"""Prefix of the label embedding's weights in version 0.1.0."""

_ADVERSARY = {"start": "start_step", "rise": "warmup_steps", "most": "max_weight"}
"""Arguments of `PatchAdversary`, by their earlier names."""


def migrate(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert the contents of a checkpoint to the present layout.

    Version 0.1.0 had labels as its only condition: `n_classes` of model, network and data, and `class_names` of the
    data, are replaced by `conditions`. Before its first release `PatchAdversary` had other names for some arguments.

    Args:
        checkpoint: Checked contents; changed in place.
    """
    model, run = checkpoint["hyper_parameters"], checkpoint["sde_diffusion"].get("run") or {}
    data = model.get("data") or {}
    names = data.get("class_names")
    denoisers = [node for node in (model.get("denoiser"), run.get("denoiser")) if isinstance(node, dict)]
    for node in (model, data, run.get("network"), *(denoiser.get("network") for denoiser in denoisers)):
        if isinstance(node, dict) and type(node.get("n_classes")) is int and "conditions" not in node:
            n_classes = node.pop("n_classes")
            label = {"_target_": "sde_diffusion.conditions.Label", "n_classes": n_classes, "names": names}
            node["conditions"] = {"label": label} if n_classes else {}
    data.pop("class_names", None)
    adversaries = [node.get("adversary") for node in (model, run.get("model")) if isinstance(node, dict)]
    for node in adversaries:
        if isinstance(node, dict):
            node.update({new: node.pop(old) for old, new in _ADVERSARY.items() if old in node})
    for key in ("state_dict", "current_model_state"):
        if key in checkpoint:
            weights = checkpoint[key].items()
            checkpoint[key] = {_renamed(name): value for name, value in weights}
    return checkpoint


def _renamed(name: str) -> str:
    return name.replace(_LABELS, "network.conditioning.embeddings.label.")
