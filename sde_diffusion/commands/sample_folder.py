"""Read a folder of pictures as samples."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from sde_diffusion.data.images import SUFFIXES, ImageFiles, Reading, headers
from sde_diffusion.data.tree import find_images
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Modality

log = logging.getLogger(__name__)

_THREADS = 4


def read_pictures(folder: Path, modality: Modality, resize: bool) -> Tensor:
    """The pictures in a folder and its subfolders, in alphabetical order, without hidden ones.

    Args:
        folder: The folder.
        modality: Modality of the data that they are compared with: images with one or three channels.
        resize: Whether to crop pictures of another size to the centre and resize them (Lanczos, antialiased) to H x W.

    Returns:
        uint8 [N, H, W, C] on 0 ... 255.

    Raises:
        UserError: If there are no pictures, one cannot be read, or they have another size or kind than the data.
    """
    if not modality.in_pictures:
        raise UserError(f"{folder}: pictures can be compared with images only, and the data are {modality.kind}")
    tree = find_images(folder)
    tree.report()
    paths = tree.images
    if not paths:
        raise UserError(f"{folder} has neither a samples.npz nor pictures ending in {' '.join(SUFFIXES)}")
    channels, height, width = modality.shape
    sizes = [header.size for header in headers(paths, _THREADS)]
    other = [(path, size) for path, size in zip(paths, sizes, strict=True) if size != (width, height)]
    if other and not resize:
        path, size = other[0]
        raise UserError(
            f"{path} is {size[0]}x{size[1]}, and the data are {width}x{height}: set resize=true to resize the pictures "
            "(which changes every metric)"
        )
    reading = Reading((height, width), "center", "RGB")
    images = ImageFiles(paths, reading, (3, height, width), _THREADS)[:]
    images = images.movedim(1, -1).contiguous()  # the layout of stored arrays, for features equal to the last digit
    if channels == 1 and not (images == images[..., :1]).all():
        raise UserError(f"{folder} has colour pictures, and the data are grey")
    log.info("%d pictures in %s%s", len(images), folder, f", resized to {width}x{height}" if other else "")
    return images[..., :channels]
