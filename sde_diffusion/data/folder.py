"""A folder of images."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Unpack

import torch

from sde_diffusion.data.images import SUFFIXES, ImageFiles, Reading, headers
from sde_diffusion.data.module import SPLITS, Common, DataModule
from sde_diffusion.data.split import Rows, Split, divide
from sde_diffusion.errors import UserError

_IN_MEMORY = 2 * 2**30  # bytes of images up to which in_memory="auto" keeps them

Labelled = list[tuple[Path, str]]  # a file and its class; "" for none


class Folder(DataModule):
    """Images of any kind, size and mode under one folder, as 256 levels [C, H, W].

    Where the images all lie in subfolders, and in more than one, the subfolders are the classes, in alphabetical
    order. Where root has a subfolder `train`, it and `val` and `test` beside it are the splits; those that
    are missing are split off at random, 5% each, from the training images. Hidden files and folders are passed over.

    Args:
        root: The folder.
        size: Height and width to bring every image to, by antialiased (Lanczos) resizing; None: as they are, which
            must then be all the same.
        crop: `center` cuts the middle square out before resizing; `none` stretches.
        mode: `L` (grey), `RGB`, or None: grey if all files are.
        in_memory: True: decode all images once; False: read each batch from the files; `auto`: in memory up to 2 GiB.
        num_workers: Threads that read files.
        split_seed: Of the random splits.
        **common: See `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        size: int | None = None,
        crop: str = "center",
        mode: str | None = None,
        in_memory: bool | str = "auto",
        num_workers: int = 4,
        split_seed: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, or None; got {size}")
        if crop not in ("center", "none"):
            raise ValueError(f"crop must be center or none; got {crop!r}")
        if mode not in (None, "L", "RGB"):
            raise ValueError(f"mode must be L, RGB or None; got {mode!r}")
        if in_memory not in (True, False, "auto"):
            raise ValueError(f"in_memory must be True, False or auto; got {in_memory!r}")
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1; got {num_workers}")
        self.root, self.size, self.crop, self.mode = str(Path(root).expanduser().absolute()), size, crop, mode
        self.in_memory, self.num_workers, self.split_seed = in_memory, num_workers, split_seed

    def load(self) -> dict[str, Split]:
        """Find the images, check their sizes, and decode them or keep their paths."""
        files = self._files()
        classes = sorted({name for _, name in files["train"]})
        for split in files:
            unknown = sorted({name for _, name in files[split]} - set(classes))
            if unknown:
                raise UserError(
                    f"data.root={self.root}: {split} has the classes {', '.join(unknown)} that train lacks; "
                    f"the classes of train are {', '.join(filter(None, classes)) or 'none (no subfolders)'}"
                )
        item_shape = self._item_shape([path for split in SPLITS for path, _ in files[split]])
        reading = Reading(self.size, self.crop, "L" if item_shape[0] == 1 else "RGB")
        total = math.prod(item_shape) * sum(map(len, files.values()))
        self.in_files = total > _IN_MEMORY if self.in_memory == "auto" else not self.in_memory

        splits = {}
        for split in SPLITS:
            lazy = ImageFiles([path for path, _ in files[split]], reading, item_shape, self.num_workers)
            x: Rows = lazy if self.in_files else lazy[:]
            label = torch.tensor([classes.index(name) for _, name in files[split]]) if len(classes) > 1 else None
            splits[split] = Split(x, label, levels=256)
        return splits

    def _files(self) -> dict[str, Labelled]:
        root = Path(self.root)
        if not root.is_dir():
            raise UserError(f"data.root={root}: no such folder; it must be a folder of images")
        given = [split for split in SPLITS if (root / split).is_dir()]
        if "train" not in given:
            given = []
        files = {split: _find(root / split) for split in given} or {"train": _find(root)}
        for split, found in files.items():
            if not found:
                raise UserError(
                    f"data.root={self.root}: no images in {root / split if given else 'it'} or below; files ending "
                    f"in {' '.join(SUFFIXES)} are looked for"
                )
        missing = [split for split in SPLITS if split not in files]
        train = files["train"]
        counts = [max(1, round(0.05 * len(train)))] * len(missing)
        if sum(counts) >= len(train):
            raise UserError(
                f"data.root={self.root}: {len(train)} training images are too few to split off {' and '.join(missing)}"
            )
        names = sorted({name for _, name in train})
        parts = divide(len(train), counts, self.split_seed, [names.index(name) for _, name in train])
        for split, rows in zip(("train", *missing), parts, strict=True):
            files[split] = [train[row] for row in rows.tolist()]
        return files

    def _item_shape(self, paths: list[Path]) -> tuple[int, int, int]:
        found = headers(paths, self.num_workers)
        grey = all(is_grey for _, is_grey in found) if self.mode is None else self.mode == "L"
        channels = 1 if grey else 3
        if self.size is not None:
            return channels, self.size, self.size
        (width, height), _ = found[0]
        for path, (size, _) in zip(paths, found, strict=True):
            if size != (width, height):
                raise UserError(
                    f"data.root={self.root} has images of different sizes: {paths[0]} is {width}x{height} and {path} "
                    f"is {size[0]}x{size[1]}; set data.size=32 (or another size) to resize them all"
                )
        return channels, height, width


def _find(folder: Path) -> Labelled:
    """Images below a folder in alphabetical order, with the first subfolder on the way as the class, if all have."""
    found = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name[0] != "." and name.lower().endswith(SUFFIXES)]
    found.sort()
    below = [path.relative_to(folder).parts for path in found]
    classes = {parts[0] for parts in below if len(parts) > 1}
    if len(classes) < 2 or any(len(parts) == 1 for parts in below):
        return [(path, "") for path in found]
    return [(path, parts[0]) for path, parts in zip(found, below, strict=True)]
