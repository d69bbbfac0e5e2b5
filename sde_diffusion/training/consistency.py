"""Whether the descriptions of a model in several places of a checkpoint agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_diffusion.checks.reprs import shown
from sde_diffusion.modality.units import Units
from sde_diffusion.training.augmentation import AUGMENT
from sde_diffusion.training.entries import ContentsError, leaves


def check_consistency(checkpoint: Mapping[str, Any]) -> None:
    """Check that the descriptions of the model agree, and that no size of its networks exceeds its number of weights.

    Raises:
        ContentsError: If they do not, or one does.
    """
    hyper_parameters, run = checkpoint["hyper_parameters"], checkpoint["sde_diffusion"].get("run") or {}
    data = hyper_parameters.get("data") or {}
    first_stage = hyper_parameters.get("first_stage") or {}
    if not isinstance(first_stage, dict):
        raise ContentsError(f"hyper_parameters.first_stage must be a mapping; got {shown(first_stage)}")
    shape = first_stage.get("latent_shape", data.get("shape", ()))
    most = max(10_000, sum(tensor.numel() for tensor in checkpoint["state_dict"].values()))
    _check_sizes("first stage", first_stage, most)
    for denoiser in (hyper_parameters.get("denoiser"), run.get("denoiser")):
        network = denoiser.get("network") if isinstance(denoiser, dict) else None
        if not isinstance(network, dict):
            continue
        _check_sizes("network", network, most)
        if "shape" in network and "shape" in data and list(network["shape"]) != list(shape):
            what = "latent variables" if first_stage else "data"
            raise ContentsError(f"its network is for shape {shown(network['shape'])}, its {what} have {shown(shape)}")
        told = {AUGMENT} if hyper_parameters.get("augmentation") else set()  # set in training only
        own = {name: kind for name, kind in _conditions(network).items() if name not in told}
        if own != _conditions(hyper_parameters):
            raise ContentsError("its network has other conditions than the model, or another number of classes")
    try:
        units = Units.of(data.get("units"))
    except ValueError as error:
        raise ContentsError(f"hyper_parameters.data: {error}") from error
    if units is not None and len(units.low) > 1 and [len(units.low)] != list(data.get("shape", ())):
        raise ContentsError(
            f"hyper_parameters.data has units for {len(units.low)} columns, and its shape is {shown(data.get('shape'))}"
        )


def _check_sizes(what: str, description: Mapping[str, Any], most: int) -> None:
    for key, value in leaves(description):
        if isinstance(value, int) and abs(value) > most:
            raise ContentsError(f"its {what}'s {key}={value} is too large for the weights in the file")


def _conditions(node: Mapping[str, Any]) -> dict[str, Any]:
    """The kind and the number of classes of each condition in a description."""
    short, kinds = node.get("n_classes"), node.get("conditions") or {}
    if not isinstance(kinds, dict) or not all(isinstance(kind, dict) for kind in kinds.values()):
        raise ContentsError("conditions must map names to settings")
    label = {"label": {"_target_": "sde_diffusion.conditions.Label", "n_classes": short}} if short else {}
    return {name: (kind.get("_target_"), kind.get("n_classes")) for name, kind in {**label, **kinds}.items()}
