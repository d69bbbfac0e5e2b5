"""Data sets whose images are stored encoded, in tables: decoded once, then kept on the disk as uint8."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.data.checks import height_and_width
from sde_diffusion.data.common import Common
from sde_diffusion.data.images import Reading, check_crop_and_mode, in_threads
from sde_diffusion.data.module import SPLITS, DataModule
from sde_diffusion.data.split import Split, divide
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import writing
from sde_diffusion.storage.memory import check_fits

log = logging.getLogger(__name__)

_CACHE = "~/.cache/sde_diffusion/images"
_FORMAT = 1  # of the files of decoded images


@dataclass(frozen=True)
class Encoded:
    """The encoded images of a split.

    Attributes:
        images: The bytes of each image, as those of a file.
        label: [N], int64 class numbers, or None.
        where: Says where the image of a row is, for messages.
    """

    images: Sequence[bytes]
    label: Tensor | None
    where: Callable[[int], str]


class EncodedImages(DataModule):
    """Images that are stored encoded, as [C, H, W] with 256 levels; a subclass defines `encoded`.

    They are decoded once, and stored as uint8 in the folder `cache`, under a digest of their bytes and of the settings:
    later runs read that file. If the source has no validation split, or no test split, n_val of the training images are
    used for each: drawn at random, with each class in proportion.

    Args:
        size: Height and width to which the images are resized (Lanczos, antialiased), one number or [height, width];
            None: no resizing, so all images must have the same size.
        crop: "center": crop to the largest centred part of that shape before resizing; "none": stretch.
        mode: "L" (grey) or "RGB"; None: grey if all images are grey.
        n_val: Number of training images for each split that the source does not have, at least 1.
        image: Name of the column of images; None: the first that has some.
        label: Name of the column of labels; None: the one that has class names, or else a usual name such as `label`.
        cache: Folder of the decoded images; None: ~/.cache/sde_diffusion/images.
        num_workers: Number of threads that decode images, at least 1.
        **common: See `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        crop: str = "center",
        mode: str | None = None,
        n_val: int = 1_000,
        image: str | None = None,
        label: str | None = None,
        cache: str | None = None,
        num_workers: int = 4,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self._sides = height_and_width(size)
        self.size = list(size) if isinstance(size, Sequence) else size
        self.crop, self.mode = check_crop_and_mode(crop, mode)
        self.n_val, self.num_workers = check_count("n_val", n_val), check_count("num_workers", num_workers)
        self.image, self.label = image, label
        self.cache = None if cache is None else str(Path(cache).expanduser().absolute())

    @abstractmethod
    def encoded(self) -> tuple[Mapping[str, Encoded], Sequence[str] | None]:
        """The splits that the source has, at least `train`, and the names of the classes, if they have names.

        Raises:
            UserError: If something is missing, damaged or of another kind.
        """

    def load(self) -> dict[str, Split]:
        """Decode the images, or read the decoded ones."""
        found, names = self.encoded()
        self.class_names = None if names is None else tuple(names)
        pixels = self._stored(found) or self._store(found)
        splits = {name: Split(pixels[name], one.label, levels=256) for name, one in found.items()}
        missing = [name for name in SPLITS if name not in found]
        train, label = splits["train"], splits["train"].label
        parts = divide(len(train), [self.n_val] * len(missing), 0, label, f"{self.name}, data.n_val={self.n_val}: ")
        for name, rows in zip(("train", *missing), parts, strict=True):
            splits[name] = Split(pixels["train"][rows], None if label is None else label[rows], levels=256)
        return splits

    def _path(self, found: Mapping[str, Encoded]) -> Path:
        """The file of decoded images, by a digest of all that they depend on."""
        key = hashlib.blake2b(f"{_FORMAT} {self._sides} {self.crop} {self.mode}".encode(), digest_size=16)
        for name, one in found.items():
            key.update(f"\0{name} {len(one.images)}".encode())
            for image in one.images:
                key.update(len(image).to_bytes(8, "little"))
                key.update(image)
        folder = Path(_CACHE if self.cache is None else self.cache).expanduser()
        return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', self.name).strip('-')[-60:]}-{key.hexdigest()}.safetensors"

    def _stored(self, found: Mapping[str, Encoded]) -> dict[str, Tensor] | None:
        path = self._path(found)
        if not path.is_file():
            return None
        try:
            pixels = load_file(path)
            if {name: len(x) for name, x in pixels.items()} == {name: len(one.images) for name, one in found.items()}:
                return pixels
            raise SafetensorError("it has other splits")
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged (%s): the images are decoded again", path, error)
            return None

    def _store(self, found: Mapping[str, Encoded]) -> dict[str, Tensor]:
        pixels = {name: self._decoded(one) for name, one in found.items()}
        shapes = {name: list(x.shape[1:]) for name, x in pixels.items()}
        if any(shape != shapes["train"] for shape in shapes.values()):
            raise UserError(f"{self.name} has images of different sizes, {shapes}: set data.size=32 (or another size)")
        if self.mode is None and all(_is_grey(x) for x in pixels.values()):
            pixels = {name: x[:, :1].contiguous() for name, x in pixels.items()}
        path = self._path(found)
        try:
            with writing(path) as temporary:
                temporary.write_bytes(save(pixels))
            log.info("%s: the decoded images are kept in %s", self.name, path)
        except (UserError, OSError) as error:
            log.warning("the decoded images could not be kept for later runs (%s): set data.cache=DIR", error)
        return pixels

    def _decoded(self, split: Encoded) -> Tensor:
        reading = Reading(self._sides, self.crop, self.mode or "RGB")

        def decode(row: int) -> Tensor:
            return reading.read(io.BytesIO(split.images[row]), split.where(row))

        first = decode(0)
        n, shape = len(split.images), tuple(first.shape)
        check_fits(f"{self.name}: {n} images of shape {list(shape)}", n * math.prod(shape), "make data.size smaller")
        x = torch.empty((n, *shape), dtype=torch.uint8)

        def put(row: int) -> None:
            image = decode(row)
            if image.shape != shape:
                raise UserError(
                    f"{self.name} has images of different sizes: {split.where(0)} is {shape[2]}x{shape[1]} and "
                    f"{split.where(row)} is {image.shape[2]}x{image.shape[1]}; set data.size=32 (or another size)"
                )
            x[row] = image

        in_threads(put, range(n), self.num_workers, "Decoding images")
        return x


def _is_grey(x: Tensor) -> bool:
    """Whether the three channels of all images [N, 3, H, W] are equal."""
    return bool((x[:, :1] == x[:, 1:]).all())
