"""What `sde_diffusion.restore` is given: the operator, and measurements from files or of the model's own data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.checks.reprs import few
from sde_diffusion.commands.loading import load_data, random_order
from sde_diffusion.config import build_around
from sde_diffusion.data.images import SUFFIXES, ImageFiles, Reading, headers
from sde_diffusion.data.tree import find_images
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import Operator
from sde_diffusion.modality import Modality, modality_of, pictures
from sde_diffusion.modality.levels import from_levels
from sde_diffusion.storage.npz import read_arrays_of

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_THREADS = 4


@dataclass(frozen=True)
class Measurements:
    """What is known of some pictures.

    Attributes:
        y: [N, *out], on the scale of [-1, 1].
        names: The name of each.
        truth: The pictures that were measured, [N, C, H, W]; None if they are not known.
    """

    y: Tensor
    names: list[str]
    truth: Tensor | None = None


def build_operator(node: Mapping[str, Any], dims: Sequence[int]) -> Operator:
    """The operator that a configuration describes, for data of shape dims.

    Raises:
        UserError: If a value is not allowed, or data of this shape cannot be measured.
    """
    found = build_around(node, "operator", any_library=True, shape=list(dims))
    if not isinstance(found, Operator):
        raise UserError(f"operator must describe an object of class Operator; got {node['_target_']}")
    try:
        found.output_shape(dims)
    except ValueError as error:
        raise UserError(f"operator: {error}; the model's pictures are {list(dims)}") from error
    return found


def measurements(cfg: DictConfig, model: GenerativeModel, operator: Operator) -> Measurements:
    """The measurements that a configuration names.

    Raises:
        UserError: If there are none, they cannot be read, or do not fit the operator.
    """
    if (cfg.images is None) == (cfg.split is None):
        raise UserError(
            "give either images=, a picture, a folder or an .npz of measurements, or split=test, which measures items "
            "of the model's own data"
        )
    found = _of_split(cfg, model, operator) if cfg.images is None else _of_files(Path(cfg.images), model, operator)
    wrong = (~found.y.flatten(1).isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise UserError(f"the measurements {few([found.names[row] for row in wrong])} have NaN or infinite values")
    far = float(found.y.abs().max())
    if far > 2 + 6 * cfg.noise:
        raise UserError(
            f"the measurements have values up to {far:.3g}, and the data lie on [-1, 1]: give pictures, uint8 on "
            "0 ... 255, or floats in the units of the model's data"
        )
    return found


def _of_split(cfg: DictConfig, model: GenerativeModel, operator: Operator) -> Measurements:
    data = load_data(cfg, model)
    if list(data.shape) != list(model.data["shape"]):
        raise UserError(f"{data.name} has items of shape {list(data.shape)}, and the model {model.data['shape']}")
    split = data.split(cfg.split)
    rows = random_order(len(split))[: cfg["items"]]
    truth, y = split.tensor(rows), []
    for number, x in enumerate(truth):
        exact = operator(x[None])
        noise = torch.Generator().manual_seed((cfg.seed + number) % 2**63)  # one for each: the same however many
        y.append(exact + cfg.noise * torch.randn(exact.shape, generator=noise))
    return Measurements(torch.cat(y), [f"{cfg.split} {row}" for row in rows.tolist()], truth)


def _of_files(path: Path, model: GenerativeModel, operator: Operator) -> Measurements:
    """Measurements in files; if the operator gives no pictures, full pictures, which it is applied to."""
    dims = tuple(model.data["shape"])
    out = operator.output_shape(dims)
    whole = len(out) != len(dims)
    shape = dims if whole else out
    kind = modality_of({**model.data, "shape": list(shape)})
    wanted = (
        f"the model's are {pictures.size_in_words(dims)}"
        if whole
        else f"{operator} of the model's {pictures.size_in_words(dims)} is {pictures.size_in_words(out)}"
    )
    read = _arrays if path.suffix.lower() in (".npz", ".npy") else _pictures
    x, names = read(path, kind, wanted)
    return Measurements(operator(x) if whole else x, names)


def _enlarged(found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """How to enlarge a picture to the wanted size (width, height), as the end of a message; "" if it is no multiple."""
    factor = wanted[0] // found[0]
    if factor < 2 or wanted != (factor * found[0], factor * found[1]):
        return ""
    return f", or enlarge it by operator=downsample operator.factor={factor}"


def _arrays(path: Path, kind: Modality, wanted: str) -> tuple[Tensor, list[str]]:
    def choose(names: list[str]) -> list[str]:
        found = [kind.unit] if kind.unit in names else names
        if len(found) != 1:
            raise UserError(f"{path} must have one array, or one named {kind.unit}; it holds {few(names) or 'none'}")
        return found

    (array,) = read_arrays_of(path, choose, kind.unit).values()
    fits = array.ndim and len(array) and (array.dtype == np.uint8 or array.dtype.kind == "f")
    arranged = kind.arrange(array) if fits else None
    if arranged is None:
        layout = f"[N, {', '.join(map(str, kind.shape))}] or channels last"
        raise UserError(
            f"{path}: measurements must be {layout}, uint8 on 0 ... 255 or floats; got {array.dtype} "
            f"{list(array.shape)} ({wanted})"
        )
    numbers = torch.from_numpy(np.ascontiguousarray(arranged))
    if not numbers.is_floating_point():
        x = from_levels(numbers, 256)
    else:
        x = numbers.float() if kind.levels is not None else kind.encode(numbers)
    return x, [f"{path.name} {row}" for row in range(len(x))]


def _pictures(path: Path, kind: Modality, wanted: str) -> tuple[Tensor, list[str]]:
    channels, height, width = kind.shape
    if not kind.in_pictures:
        raise UserError(f"pictures have 1 or 3 channels: give an .npz in place of {path} ({wanted})")
    paths = [path]
    if path.is_dir():
        tree = find_images(path)
        tree.report()
        paths = tree.images
    if not paths:
        raise UserError(f"{path} has no pictures; they end in {' '.join(SUFFIXES)}")
    for one, header in zip(paths, headers(paths, _THREADS), strict=True):
        if header.size != (width, height):
            raise UserError(
                f"{one} is {header.size[0]}x{header.size[1]}, and must be {width}x{height} ({wanted}): nothing is "
                f"resized in silence; crop or resize it yourself{_enlarged(header.size, (width, height))}"
            )
        if header.grey and channels == 3:
            raise UserError(f"{one} is grey, and must be in colour ({wanted}); operator=grey colours pictures")
    pixels = ImageFiles(paths, Reading(None, "none", "RGB"), (3, height, width), _THREADS)[:]
    if channels == 1 and not bool((pixels == pixels[:, :1]).all()):
        coloured = paths[int((pixels != pixels[:, :1]).flatten(1).any(1).nonzero()[0])]
        raise UserError(f"{coloured} has colours, and must be grey ({wanted})")
    names = [str(one.relative_to(path)) if path.is_dir() else one.name for one in paths]
    return from_levels(pixels[:, :channels], 256), names
