"""Reading of image files as uint8 tensors of one size."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import opened
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.storage.progress import counted

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_GREY_MODES = ("1", "L", "LA", "F")  # and the modes of integers, which begin with I
_IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
_PROGRESS_FROM = 2_000  # files

T = TypeVar("T")
R = TypeVar("R")
Range = tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """How an image file becomes a tensor.

    Attributes:
        size: Height and width of the result; None: those of the file.
        crop: With size, "center" crops to the largest centred part of that shape before resizing; "none" stretches.
        mode: "L" (grey, one channel) or "RGB" (three).
        levels: 256, or 2 for files that are all black and white.
        range: (lo, hi), the range of grey values with more than 8 bits, which is mapped to 0 ... 255; None: [0, 65535]
            for 16-bit integers and [0, 1] for floats; there is no default for 32-bit integers.
    """

    size: tuple[int, int] | None
    crop: str
    mode: str
    levels: int = 256
    range: Range | None = None

    def __call__(self, path: Path) -> Tensor:
        """Read one image file; see `read`."""
        with opened(path) as file:
            return self.read(file, str(path))

    def read(self, file: BinaryIO, where: str) -> Tensor:
        """Read one image, uint8 [C, H, W].

        Of several frames the first is read. Images are rotated as their Exif data say; transparent ones are composed
        over white.

        Args:
            file: The encoded image.
            where: Where it is, for messages.

        Raises:
            UserError: If it cannot be read as an image, or has values outside the range.
        """
        from PIL import Image, ImageOps

        def decode(image: Image.Image) -> tuple[Image.Image, Range | None]:
            image.load()
            return ImageOps.exif_transpose(image), self.range or usual_range(image)

        image, ends = _open(file, where, decode, verify=True)
        if _is_deep(image.mode):
            image = _shallow(where, image, ends)
        if image.has_transparency_data:  # Pillow's own conversion would ignore it
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        try:
            image = image.convert(self.mode)
        except ValueError as error:  # of rare colour spaces, such as LAB
            raise UserError(f"{where} has the colour space {image.mode}, which Pillow does not convert") from error
        if self.size is not None:
            height, width = self.size
            if self.crop == "center":
                image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
            else:
                image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels if self.levels == 256 else pixels // 128
        return pixels[None] if self.mode == "L" else pixels.permute(2, 0, 1).contiguous()


def check_crop_and_mode(crop: str, mode: str | None) -> tuple[str, str | None]:
    """Check the settings `crop` and `mode` of a data set.

    Raises:
        ValueError: If one is not allowed.
    """
    if crop not in ("center", "none"):
        raise ValueError(f"crop must be center or none; got {crop!r}")
    if mode not in (None, "L", "RGB"):
        raise ValueError(f"mode must be L, RGB or None; got {mode!r}")
    return crop, mode


def _is_deep(mode: str) -> bool:
    """Whether a mode of Pillow has more than 8 bits per value."""
    return mode == "F" or mode.startswith("I")


def usual_range(image: Image.Image) -> Range | None:
    """The default range of grey values with more than 8 bits, by the kind of image; None if there is none."""
    if image.mode == "F":
        return 0.0, 1.0
    return (0.0, 65535.0) if image.mode.startswith("I;16") or image.format == "PNG" else None


def _shallow(where: str, image: Image.Image, ends: Range | None) -> Image.Image:
    """Map grey values with more than 8 bits to 0 ... 255; Pillow's own conversion clips them at 255."""
    from PIL import Image

    if ends is None:
        raise UserError(_no_range(where))
    values, (lo, hi) = np.asarray(image).astype(np.float64), ends
    if not np.isfinite(values).all():
        raise UserError(f"{where} holds NaN or infinite values: remove or replace it")
    if values.min() < lo or values.max() > hi:
        raise UserError(
            f"{where} has values from {values.min():g} to {values.max():g}, outside [{lo:g}, {hi:g}]: set "
            "data.range=[lo,hi] to the range of all images"
        )
    return Image.fromarray(np.round((values - lo) / (hi - lo) * 255).astype(np.uint8))


def _no_range(where: str) -> str:
    return f"{where} has 32-bit integers, whose range is unknown: set data.range=[lo,hi], such as [0,65535]"


@cache
def _formats() -> list[str]:
    """The formats to read, whatever a file's name is: for some others, Pillow runs external programs."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _open(file: BinaryIO, where: str, decode: Callable[[Image.Image], R], verify: bool = False) -> R:
    """Open an image with Pillow, and apply a function to it.

    Args:
        file: The encoded image.
        where: Where it is, for messages.
        decode: The function.
        verify: Verify checksums first, if the format has any: Pillow ignores those of a PNG's pixels.

    Raises:
        UserError: If the image cannot be opened, or the function raises any error.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if verify:
            Image.open(file, formats=_formats()).verify()
            file.seek(0)
        with Image.open(file, formats=_formats()) as image:
            return decode(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{where} is too large: {error}; shrink it or remove it (in Python, PIL.Image.MAX_IMAGE_PIXELS sets "
            "Pillow's limit)"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where} cannot be read as an image: {_unidentified(file)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        if ran_out(error):
            raise UserError(f"{where} does not fit in memory: shrink it or remove it") from error
        raise UserError(
            f"{where} cannot be read as an image: {error}; it is damaged or truncated: remove or replace it"
        ) from error


def _unidentified(file: BinaryIO) -> str:
    """Why Pillow does not recognise a file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    if not start.startswith(_IMAGE_STARTS):
        return f"it begins with {start[:4].hex(' ')}, like no image format: remove or replace it"
    offset = int.from_bytes(start[4:], "little" if start[:2] == b"II" else "big")
    if start[:2] not in (b"II", b"MM") or offset >= size:
        return "it is damaged or truncated: remove or replace it"
    return (
        "Pillow does not read this kind of TIFF, such as colours as floats, or floats of 16 or 64 bits (or the file is "
        "damaged): save integers of 8 or 16 bits, or put the floats into an .npz file for data=arrays"
    )


class Header(NamedTuple):
    """From an image file's header: (width, height) as displayed, and if it is grey, black and white, transparent.

    `deep`: whether it has more than 8 bits per value.
    """

    size: tuple[int, int]
    grey: bool
    two_levels: bool
    transparent: bool
    deep: bool


def headers(paths: Sequence[Path], threads: int, ends: Range | None = None) -> list[Header]:
    """Read the headers of image files.

    Args:
        paths: The files.
        threads: Number of files read at a time.
        ends: The range of images with more than 8 bits; None: the default range.

    Raises:
        UserError: If a file is not an image, or has no default range.
    """
    from PIL import Image

    def decode(image: Image.Image) -> tuple[Header, bool]:
        sideways = image.getexif().get(0x0112, 1) >= 5  # Exif orientations that swap width and height
        grey = image.mode in _GREY_MODES or image.mode.startswith("I") or _grey_palette(image)
        known = not _is_deep(image.mode) or (ends or usual_range(image)) is not None
        size = image.size[::-1] if sideways else image.size
        two, deep = image.mode == "1", _is_deep(image.mode)
        return Header(size, grey, two, image.has_transparency_data, deep), known

    def header(path: Path) -> Header:
        with opened(path) as file:
            found, known = _open(file, str(path), decode)
        if not known:
            raise UserError(_no_range(str(path)))
        return found

    # Pillow's warnings do not name the file; much too large images raise DecompressionBombError.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return in_threads(header, paths, threads, "Reading headers")


def _grey_palette(image: Image.Image) -> bool:
    palette = (image.getpalette() if image.mode == "P" else None) or []
    return bool(palette) and palette[::3] == palette[1::3] == palette[2::3]


def in_threads(function: Callable[[T], R], items: Sequence[T], threads: int, what: str) -> list[R]:
    """Apply a function in threads (Pillow releases Python's lock), with a progress bar for many items."""
    with ThreadPoolExecutor(threads) as pool:
        made = pool.map(function, items)
        quiet = len(items) < _PROGRESS_FROM or (torch.distributed.is_initialized() and torch.distributed.get_rank() > 0)
        try:
            return list(made if quiet else counted(made, what, len(items)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class ImageFiles:
    """Images that are read from files on access, by index like a tensor [N, C, H, W].

    Args:
        paths: The files.
        reading: How to read each file.
        item_shape: [C, H, W], the shape of every image.
        threads: Number of files read at a time.
    """

    def __init__(self, paths: Sequence[Path], reading: Reading, item_shape: Sequence[int], threads: int) -> None:
        self.paths, self.reading, self.threads = list(paths), reading, threads
        self.shape = (len(self.paths), *item_shape)

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read a slice of the images, uint8 [n, C, H, W]."""
        return self._read(self.paths[rows])

    def index_select(self, dim: int, index: Tensor, /) -> Tensor:
        """Read the images at index [n], uint8 [n, C, H, W]; dim must be 0."""
        return self._read([self.paths[row] for row in index.tolist()])

    def _read(self, paths: list[Path]) -> Tensor:
        images = in_threads(self.reading, paths, self.threads, "Reading images")
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)
