"""Reading of other programs' files, as data alone."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import read_json, readable
from sde_diffusion.storage.memory import ran_out

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of files of weights in a folder, without their suffixes."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of another program.

    Raises:
        UserError: If it cannot be read.
    """
    return read_json(folder / name, "copy the whole folder again")


def weights_in(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The weights in a folder, also of several files with an index, and the files.

    Raises:
        UserError: If there are none, or they cannot be read.
    """
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            names = {str(name) for name in dict(config_of(folder, index.name).get("weight_map") or {}).values()}
            files = [folder / Path(name).name for name in sorted(names)]
            return {key: value for file in files for key, value in _tensors(file).items()}, files
        for suffix in SUFFIXES:
            if (file := folder / f"{stem}{suffix}").is_file():
                return _tensors(file), [file]
    raise UserError(f"{folder} has no weights: expected {STEMS[0]}.safetensors, or .bin")


def torch_file(path: Path) -> Any:
    """The contents of a file of torch.save, if they are tensors and plain containers; no code in it is run.

    Raises:
        UserError: If the file is missing or damaged, or contains code.
    """
    readable(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        if ran_out(error):
            raise
        raise UserError(
            f"{path} is not a file of weights alone: it is damaged, or it is a pickle of Python objects, such as "
            "EDM's network-snapshot-*.pkl, and reading those can run any code. Convert it where you trust it, with "
            "the program that wrote it: torch.save(network.state_dict(), 'weights.pt'), or safetensors; then load "
            "them into a network of sde_diffusion.nn, or wrap your own module in a NetworkDenoiser: docs/pretrained.md"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UserError: If it cannot be read, or has something else.
    """
    readable(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): copy it again") from error
    return tensors(torch_file(path), path)


def tensors(found: Any, path: Path) -> dict[str, Tensor]:
    """The contents of a file, if they are tensors by name.

    Raises:
        UserError: If they are not.
    """
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path} does not contain tensors by name, as torch.save(network.state_dict(), PATH) writes: "
            "docs/pretrained.md lists the files and folders that are known"
        )
    return dict(found)
