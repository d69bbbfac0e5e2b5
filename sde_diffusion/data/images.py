"""Image files: what is in them, and how they become uint8 tensors of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_PROGRESS_FROM = 2_000  # files

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Reading:
    """How an image file becomes a tensor.

    Attributes:
        size: Height and width of the result; None: as the file has it.
        crop: Where size is given, `center` cuts the middle square out first; `none` stretches to a square.
        mode: `L` (grey, one channel) or `RGB` (three).
    """

    size: int | None
    crop: str
    mode: str

    def __call__(self, path: Path) -> Tensor:
        """Read one image, uint8 [C, H, W]; the first frame of several, upright, over white where transparent.

        Raises:
            UserError: If the file is damaged or not an image.
        """
        from PIL import Image, ImageOps

        def read(image: Image.Image) -> Tensor:
            flat = ImageOps.exif_transpose(image)
            flat = _eight_bits(flat, self.mode)
            if self.size is not None:
                square = (self.size, self.size)
                if self.crop == "center":
                    flat = ImageOps.fit(flat, square, Image.Resampling.LANCZOS)
                else:
                    flat = flat.resize(square, Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.array(flat))
            return pixels[None] if self.mode == "L" else pixels.permute(2, 0, 1).contiguous()

        return _open(path, read)


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert any mode to `L` or `RGB`; Pillow alone would clip 16-bit grey and drop transparency."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, whatever Pillow's release calls it
        levels = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _open(path: Path, use: Callable[[Image.Image], R]) -> R:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise UserError(
            f"{path} cannot be read as an image: {error}; it is damaged, truncated or of another kind: "
            "remove or replace it"
        ) from error


def headers(paths: Sequence[Path], threads: int) -> list[tuple[tuple[int, int], bool]]:
    """(width, height) as shown and whether grey, of each file, from its header alone.

    Raises:
        UserError: If a file is not an image.
    """

    def header(image: Image.Image) -> tuple[tuple[int, int], bool]:
        sideways = image.getexif().get(0x0112, 1) >= 5  # Exif orientations that exchange width and height
        return (image.size[::-1] if sideways else image.size), image.mode in _GREY_MODES

    return _map(lambda path: _open(path, header), paths, threads, "Looking at images")


def _map(function: Callable[[T], R], items: Sequence[T], threads: int, what: str) -> list[R]:
    """Apply a function in threads (Pillow decodes outside Python's lock), with a progress bar for many items."""
    from rich.progress import track

    with ThreadPoolExecutor(threads) as pool:
        results: Iterable[R] = pool.map(function, items)
        quiet = len(items) < _PROGRESS_FROM or (torch.distributed.is_initialized() and torch.distributed.get_rank() > 0)
        try:
            return list(track(results, what, len(items), transient=True, disable=quiet))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class ImageFiles:
    """Images read from their files when asked for: rows by index, like those of a tensor [N, C, H, W].

    Args:
        paths: The files.
        reading: How to read each.
        item_shape: [C, H, W] of every one.
        threads: Files read at a time.
    """

    def __init__(self, paths: Sequence[Path], reading: Reading, item_shape: Sequence[int], threads: int) -> None:
        self.paths, self.reading, self.threads = list(paths), reading, threads
        self.shape = (len(self.paths), *item_shape)

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read a slice of the images, uint8 [n, C, H, W]."""
        return self._read(self.paths[rows])

    def index_select(self, dim: int, index: Tensor, /) -> Tensor:
        """Read the images at index [n], uint8 [n, C, H, W]; dim is 0."""
        return self._read([self.paths[row] for row in index.tolist()])

    def _read(self, paths: list[Path]) -> Tensor:
        images = _map(self.reading, paths, self.threads, "Reading images")
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)
