"""What `sde_diffusion.restore` is given: the operator, and measurements from files or of the model's own data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.checks.reprs import few
from sde_diffusion.commands.loading import load_data, random_order
from sde_diffusion.data.images import SUFFIXES, ImageFiles, Reading, headers
from sde_diffusion.data.tree import find_images
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import Operator
from sde_diffusion.modality import Modality, Points, modality_of, pictures
from sde_diffusion.modality.levels import from_levels
from sde_diffusion.modality.units import Units
from sde_diffusion.storage.npz import read_arrays_of

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_THREADS = 4
_OTHERS, _NUMBERS = 2000, 2 * 10**7  # training items, and numbers in them, at most


@dataclass(frozen=True)
class Measurements:
    """What is known of some data.

    Attributes:
        y: [N, *out], on the scale of [-1, 1].
        names: The name of each.
        truth: The data that were measured, [N, *dims]; None if they are not known.
        others: Some of the training data, for comparison with the truth, [M, *dims]; None without truth.
    """

    y: Tensor
    names: list[str]
    truth: Tensor | None = None
    others: Tensor | None = None


def measurements(
    cfg: DictConfig, model: GenerativeModel, operator: Operator, measure: Callable[[Tensor], Tensor] | None = None
) -> Measurements:
    """The measurements that a configuration names.

    Args:
        cfg: The configuration of `restore`.
        model: The model.
        operator: A.
        measure: What measures data of a split without noise, if it does more than A.

    Raises:
        UserError: If there are none, they cannot be read, or do not fit the operator.
    """
    files = [str(cfg[key]) for key in ("images", "y") if cfg[key] is not None]
    if len(files) + (cfg.split is not None) != 1:
        raise UserError(
            "give one of images=, a picture, a folder or an .npz of measurements; y=, the same for data of any kind; "
            "and split=test, which measures items of the model's own data"
        )
    found = (
        _of_files(Path(files[0]), model, operator, cfg.noise) if files else _of_split(cfg, model, measure or operator)
    )
    wrong = (~found.y.flatten(1).isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise UserError(f"the measurements {few([found.names[row] for row in wrong])} have NaN or infinite values")
    return found


def _of_split(cfg: DictConfig, model: GenerativeModel, measure: Callable[[Tensor], Tensor]) -> Measurements:
    data = load_data(cfg, model)
    if list(data.shape) != list(model.data["shape"]):
        raise UserError(f"{data.name} has items of shape {list(data.shape)}, and the model {model.data['shape']}")
    split = data.split(cfg.split)
    rows = random_order(len(split))[: cfg["items"]]
    truth, y = split.tensor(rows), []
    for number, x in enumerate(truth):
        exact = measure(x[None])
        noise = torch.Generator().manual_seed((cfg.seed + number) % 2**63)  # one for each: the same however many
        y.append(exact + cfg.noise * torch.randn(exact.shape, generator=noise))
    train = data.split("train")
    some = max(2, min(_OTHERS, _NUMBERS // truth[0].numel()))
    others = train.tensor(random_order(len(train))[:some])
    return Measurements(torch.cat(y), [f"{cfg.split} {row}" for row in rows.tolist()], truth, others)


def _of_files(path: Path, model: GenerativeModel, operator: Operator, noise: float) -> Measurements:
    """Measurements in files; if they are numbers of the data themselves, data, in which the other numbers may be any.

    Raises:
        UserError: If they cannot be read, do not fit the operator, or lie far outside the range of the data.
    """
    dims = tuple(model.data["shape"])
    if operator.part_of_data:
        x, names = read_items(path, modality_of(model.data), f"the model's are {_size(dims)}", enlarged=True)
        y = operator(x)
    else:
        out = operator.output_shape(dims)
        kind = _kind_of_measurements(model, operator, out)
        wanted = f"{operator} of the model's {_size(dims)} is {_size(out)}"
        y, names = read_items(path, Points(out) if kind is None else kind, wanted)
        if kind is None:
            return Measurements(y, names)  # of any scale
    far = float(y[y.isfinite()].abs().amax()) if bool(y.isfinite().any()) else 0.0
    if far > 2 + 6 * noise:
        units = modality_of(model.data).own
        own = "" if units is None else f", {units}"
        raise UserError(
            f"the measurements have values up to {far:.3g} on the model's scale, where its data lie on [-1, 1]: give "
            f"pictures, uint8 on 0 ... 255, or floats in the units of the model's data{own}"
        )
    return Measurements(y, names)


def _kind_of_measurements(model: GenerativeModel, operator: Operator, out: Sequence[int]) -> Modality | None:
    """The kind of data that measurements are, such as smaller pictures; None: just numbers, on the model's scale.

    They are data if they have as many axes, and if data of ones are measured as ones, so that units stay as they are.
    """
    dims = tuple(model.data["shape"])
    units = Units.of(model.data.get("units"))
    with torch.no_grad():
        ones = operator(torch.ones(1, *dims))
    if len(out) != len(dims) or not bool(((ones - 1).abs() < 1e-3).all()):
        return None
    if units is not None and len(units.low) > 1:  # a range for each column
        return None
    return modality_of({**model.data, "shape": list(out)})


def read_items(
    path: Path, kind: Modality, wanted: str, what: str = "measurements", enlarged: bool = False
) -> tuple[Tensor, list[str]]:
    """Items of a kind of data, from an .npz or .npy, a picture, or a folder of pictures.

    Args:
        path: The file or folder.
        kind: The kind of data, with the shape that the items must have.
        wanted: Why they must have it, for messages.
        what: What they are, for messages.
        enlarged: Whether smaller pictures can be enlarged by an operator, for messages.

    Returns:
        The items, [N, *shape] as models take them, and the name of each.

    Raises:
        UserError: If there are none, they cannot be read, or have another shape.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        return _arrays(path, kind, wanted, what)
    return _pictures(path, kind, wanted, what, enlarged)


def _size(shape: Sequence[int]) -> str:
    """Such as "8x8, grey"."""
    return pictures.size_in_words(shape) if len(shape) == 3 else f"shape {list(shape)}"


def _by_operator(found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """What an operator can do for a picture of another size (width, height), as the end of a message."""
    factor = wanted[0] // found[0]
    if factor > 1 and wanted == (factor * found[0], factor * found[1]):
        return f", or enlarge it by operator=downsample operator.factor={factor}"
    if max(found) > max(wanted) and not wanted[0] % 2 and not wanted[1] % 2:
        half = f"{wanted[0] // 2}x{wanted[1] // 2}"
        return f": no larger picture can be made; operator=downsample operator.factor=2 would enlarge one of {half}"
    return ""


def _arrays(path: Path, kind: Modality, wanted: str, what: str) -> tuple[Tensor, list[str]]:
    def choose(names: list[str]) -> list[str]:
        found = [kind.unit] if kind.unit in names else names
        if len(found) != 1:
            raise UserError(f"{path} must have one array, or one named {kind.unit}; it holds {few(names) or 'none'}")
        return found

    (array,) = read_arrays_of(path, choose, kind.unit).values()
    numeric = array.dtype == np.uint8 or array.dtype.kind == "f" if kind.bounded else array.dtype.kind in "buif"
    fits = array.ndim and len(array) and numeric
    arranged = kind.arrange(array) if fits else None
    if arranged is None:
        layout = f"[N, {', '.join(map(str, kind.shape))}]{' or channels last' if kind.bounded else ''}"
        kinds = "uint8 on 0 ... 255 or floats" if kind.bounded else "numbers"
        raise UserError(f"{path}: {what} must be {layout}, {kinds}; got {array.dtype} {list(array.shape)} ({wanted})")
    numbers = torch.from_numpy(np.ascontiguousarray(arranged))
    if kind.bounded and not numbers.is_floating_point():
        x = from_levels(numbers, 256)
    else:
        x = numbers.float() if kind.levels is not None else kind.encode(numbers)
    return x, [f"{path.name} {row}" for row in range(len(x))]


def _pictures(path: Path, kind: Modality, wanted: str, what: str, enlarged: bool) -> tuple[Tensor, list[str]]:
    if not kind.in_pictures:
        raise UserError(f"pictures cannot hold these {what}: give an .npz or .npy in place of {path} ({wanted})")
    channels, height, width = kind.shape
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
                f"resized in silence; crop or resize it yourself"
                + (_by_operator(header.size, (width, height)) if enlarged else "")
            )
        if header.deep:
            log.warning(
                "%s has 16 bits or more for each value, of which 0 ... 65,535 (floats: 0 ... 1) are read as 0 ... 255; "
                "for another range or more digits, give an .npy",
                one,
            )
        if header.grey and channels == 3:
            raise UserError(f"{one} is grey, and must be in colour ({wanted}); operator=grey colours pictures")
    pixels = ImageFiles(paths, Reading(None, "none", "RGB"), (3, height, width), _THREADS)[:]
    if channels == 1 and not bool((pixels == pixels[:, :1]).all()):
        coloured = paths[int((pixels != pixels[:, :1]).flatten(1).any(1).nonzero()[0])]
        raise UserError(f"{coloured} has colours, and must be grey ({wanted})")
    names = [str(one.relative_to(path)) if path.is_dir() else one.name for one in paths]
    return from_levels(pixels[:, :channels], 256), names
