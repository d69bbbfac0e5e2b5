"""MNIST and its relatives, from their original idx files."""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_count
from sde_diffusion.data.checks import height_and_width
from sde_diffusion.data.common import Common
from sde_diffusion.data.module import DataModule
from sde_diffusion.data.split import Split, divide
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import opened
from sde_diffusion.storage.memory import check_fits

log = logging.getLogger(__name__)

_SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist (folder data/fashion)",
}
_KINDS = {1: "labels", 3: "images"}
_TYPES = {0x09: "signed bytes", 0x0B: "16-bit integers", 0x0C: "32-bit integers", 0x0D: "floats", 0x0E: "64-bit floats"}


def read_idx(path: Path, dims: int) -> Tensor:
    """Read an idx file of unsigned bytes, perhaps gzipped.

    The format: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, then each size as a big-endian
    32-bit integer, then the values in row-major order.

    Args:
        path: The file.
        dims: Required number of dimensions: 3 for images, 1 for labels.

    Returns:
        uint8 tensor with the shape given in the file.

    Raises:
        UserError: If the file cannot be read, is of another kind, or is truncated.

    References:
        LeCun, Cortes and Burges, "The MNIST Database of Handwritten Digits", section on file formats.
    """
    with opened(path) as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=file) if zipped else file
        # Deflate expands a byte to at most 1,032 bytes, which limits the sizes that a header can truthfully state.
        most = os.fstat(file.fileno()).st_size * (1032 if zipped else 1)
        try:
            return _values(path, stream, dims, most)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} cannot be read: {error}; it is damaged or truncated, download it again") from error


def _values(path: Path, stream: BufferedIOBase, dims: int, most: int) -> Tensor:
    """The values of an open idx file; nothing is read beyond the size that its header states."""
    start = 4 + 4 * dims
    head = stream.read(start)
    wanted = f"an idx file of {_KINDS[dims]} (it would begin with the bytes 00 00 08 {dims:02x})"
    if head[:2] == b"\0\0" and len(head) > 3 and head[2] in _TYPES:
        raise UserError(
            f"{path} is an idx file of {_TYPES[head[2]]}, and only unsigned bytes are read: save its values in an .npz "
            "file for data=arrays, with data.range=[lo,hi]"
        )
    if head[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is not {wanted}: it begins with {head[:4].hex(' ') or 'nothing, it is empty'}")
    if head[3:4] != bytes([dims]):
        found = _KINDS.get(head[3], f"{head[3]}-dimensional data") if len(head) > 3 else "only three bytes"
        raise UserError(f"{path} is not {wanted}: it holds {found}; were two files swapped?")
    sizes = struct.unpack_from(f">{dims}I", head.ljust(start, b"\0"), 4)
    n, shape = math.prod(sizes), "x".join(map(str, sizes))
    damaged = f"{path} is truncated or damaged: its header asks for {shape} values, and"
    if start + n > most:
        raise UserError(f"{damaged} at most {max(most - start, 0)} bytes follow it; download it again")
    check_fits(f"{path}: {shape} values", n, "use fewer images, or a machine with more memory")
    data = stream.read(n)
    if len(data) < n:
        raise UserError(f"{damaged} {len(data)} bytes follow it; download it again")
    if stream.read(1):  # reading at the end also verifies the checksum of a gzip file
        raise UserError(f"{damaged} more bytes follow it; download it again")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(sizes) if n else torch.empty(sizes).byte()


class IdxImages(DataModule):
    """Grey images with 256 levels and labels, from the four original idx files of MNIST or a similar data set.

    The files in root are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, also with a dot for the second dash, and with `.gz`. The validation split consists of the
    last n_val training images; if the training split would then lack a class, it is drawn at random, with each class in
    proportion. The test split is that of the files.

    Args:
        root: Folder with the files.
        name: Name of the data. For `mnist` and `fashion_mnist`, messages on missing files say where to get them.
        size: Height and width to which images are padded with black on all sides, such as 32, one number or
            [height, width]; None: no padding.
        n_val: Number of items of the validation split, at least 1.
        handwriting: Whether these are images of handwritten digits, which `RenderedCaptions` describes.
        **common: See `DataModule`.

    Raises:
        ValueError: If size or n_val is out of its range.
    """

    def __init__(
        self,
        root: str,
        name: str = "mnist",
        size: int | Sequence[int] | None = None,
        n_val: int = 5_000,
        handwriting: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        n_val, self.handwriting = check_count("n_val", n_val), check_bool("handwriting", handwriting)
        self._sides = height_and_width(size)
        self.size = list(size) if isinstance(size, Sequence) else size
        self.root, self.name, self.n_val = str(Path(root).expanduser().absolute()), name, n_val
        self.extractor = "mnist" if name == "mnist" and size is None else None  # the classifier trained on it

    def _find(self, kind: str) -> Path:
        names = [name + end for name in (kind, kind.replace("-idx", ".idx")) for end in ("", ".gz")]
        root = Path(self.root)
        for name in names:
            if (root / name).is_file():
                return root / name
        there = sorted(path.name for path in root.iterdir())[:10] if root.is_dir() else None
        found = "no such folder" if there is None else f"the folder holds {', '.join(there) or 'nothing'}"
        raise UserError(
            f"data.root={self.root} lacks {names[0]} (looked for {', '.join(names)}; {found}); point data.root at the "
            f"folder with the four idx files of {self.name}"
            + (f", to be had from {_SOURCES[self.name]}" if self.name in _SOURCES else "")
        )

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        paths = self._find(f"{part}-images-idx3-ubyte"), self._find(f"{part}-labels-idx1-ubyte")
        x, label = read_idx(paths[0], 3)[:, None], read_idx(paths[1], 1).long()
        if len(x) != len(label):
            raise UserError(f"{paths[0]} holds {len(x)} images and {paths[1]} {len(label)} labels; they must agree")
        if self._sides is not None:
            margins = [wanted - side for wanted, side in zip(self._sides, x.shape[-2:], strict=True)]
            if min(margins) < 0:
                raise UserError(
                    f"data.size={self.size} is smaller than the images ({x.shape[-2]}x{x.shape[-1]}), which are only "
                    "padded; leave data.size out or make it larger"
                )
            shape = "x".join(map(str, self._sides))
            check_fits(
                f"data.size={self.size}: {len(x)} images of {shape}", len(x) * math.prod(self._sides), "make it smaller"
            )
            x = F.pad(x, [margin for gap in reversed(margins) for margin in (gap // 2, gap - gap // 2)])
        return x, label

    def load(self) -> dict[str, Split]:
        """Read the four files."""
        x, label = self._read("train")
        if len(x) <= self.n_val:
            raise UserError(f"data.n_val={self.n_val} leaves none of {len(x)} training images; make it smaller")
        test_x, test_label = self._read("t10k")
        if test_x.shape[1:] != x.shape[1:]:
            raise UserError(
                f"{self.root}: the training images are {x.shape[-2]}x{x.shape[-1]}, the test images "
                f"{test_x.shape[-2]}x{test_x.shape[-1]}; they must agree"
            )
        train, val = torch.arange(len(x)).tensor_split([len(x) - self.n_val])
        if len(torch.unique(label[train])) < len(torch.unique(label)):
            log.info("%s: a class has only the last %d training images: val is drawn at random", self.name, self.n_val)
            train, val = divide(len(x), [self.n_val], 0, label)
        return {
            "train": Split(x[train], label[train], levels=256),
            "val": Split(x[val], label[val], levels=256),
            "test": Split(test_x, test_label, levels=256),
        }
