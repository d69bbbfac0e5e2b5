"""Our own folders for exchange: `model.safetensors`, and `sde_diffusion.json` with the settings of the denoiser."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from sde_diffusion._version import __version__
from sde_diffusion.errors import UserError
from sde_diffusion.pretrained.description import Description
from sde_diffusion.pretrained.files import config_of, weights_in
from sde_diffusion.pretrained.names import Weights
from sde_diffusion.storage.files import writing

if TYPE_CHECKING:
    from sde_diffusion.pretrained.sources import Found

CONFIG = "sde_diffusion.json"
FORMAT = 1


def is_own(folder: Path) -> bool:
    """Whether a folder was written by `write`."""
    return (folder / CONFIG).is_file()


def read(folder: Path) -> Found:
    """Read such a folder.

    Raises:
        UserError: If it is damaged, or of a later version.
    """
    from sde_diffusion.pretrained.sources import Found

    config = config_of(folder, CONFIG)
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG} has format {config.get('format')}, and this version reads format {FORMAT}")
    try:
        description = Description(**config["description"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG} does not describe a denoiser ({error}): copy the whole folder again"
        ) from None
    weights, files = weights_in(folder)
    return Found(description, weights, None, files)


def write(folder: Path, description: Description, weights: Weights) -> None:
    """Write such a folder."""
    write_weights(folder / "model.safetensors", weights)
    content = {"format": FORMAT, "version": __version__, "description": asdict(description)}
    write_json(folder / CONFIG, content)


def write_weights(path: Path, weights: Weights) -> None:
    """Write safetensors atomically."""
    with writing(path) as part:
        part.write_bytes(save({name: value.contiguous() for name, value in weights.items()}, {"format": "pt"}))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with writing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
