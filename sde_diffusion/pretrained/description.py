"""What a checkpoint of another program contains, in this program's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Description:
    """A denoiser as settings, and what is known of its data.

    Attributes:
        source: The program and kind of network, such as "diffusers UNet2DModel".
        denoiser: Settings of a `NetworkDenoiser`, from which `build` makes it: path, network, prediction, noise
            conditioning, input scale.
        data: Description of the data, as `DataModule.describe()` returns it: name, shape, levels, modality, ...
        conditions: The conditions' descriptions by name.
        drops_conditions: Whether the network was also trained without its conditions, for classifier-free guidance.
        grid: Settings of the grid on which the source's own sampler walks; None if it has none.
    """

    source: str
    denoiser: Settings
    data: Settings
    conditions: Settings = field(default_factory=dict)
    drops_conditions: bool = False
    grid: Settings | None = None


def network_denoiser(
    sde: Mapping[str, Any], network: Mapping[str, Any], prediction: str, noise_conditioning: Mapping[str, Any]
) -> Settings:
    """Settings of a denoiser whose network sees x_t itself, as all of these do."""
    return {
        "_target_": "sde_diffusion.denoiser.NetworkDenoiser",
        "sde": dict(sde),
        "network": dict(network),
        "prediction": prediction,
        "noise_conditioning": dict(noise_conditioning),
        "input_scale": "none",
    }


def labels(n_classes: int) -> Settings:
    """The conditions of a network with so many classes; none for 0."""
    return {"label": {"_target_": "sde_diffusion.conditions.Label", "n_classes": n_classes}} if n_classes else {}


def data_of(path: Path, shape: Sequence[int]) -> Settings:
    """The data of a network of images [C, H, W]: on 256 levels for 1 or 3 channels, else latent variables."""
    return {
        "name": path.absolute().stem,
        "shape": list(shape),
        "levels": 256 if shape[0] in (1, 3) else None,
        "units": None,
        "modality": {"_target_": "sde_diffusion.modality.Images"},
        "conditions": {},
        "config": None,
    }
