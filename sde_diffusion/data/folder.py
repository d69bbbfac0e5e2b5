"""A folder of images."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import torch

from sde_diffusion.checks import check_count
from sde_diffusion.checks.reprs import few
from sde_diffusion.data.checks import height_and_width, low_and_high
from sde_diffusion.data.common import Common
from sde_diffusion.data.images import SUFFIXES, Header, ImageFiles, Reading, check_crop_and_mode, headers
from sde_diffusion.data.module import SPLITS, DataModule
from sde_diffusion.data.names import split_folders
from sde_diffusion.data.split import Rows, Split, divide
from sde_diffusion.data.tree import Tree, find_images
from sde_diffusion.errors import UserError
from sde_diffusion.storage.memory import check_fits

log = logging.getLogger(__name__)

_IN_MEMORY = 2 * 2**30  # maximum size in bytes of the images that in_memory="auto" keeps in memory

Labelled = list[tuple[Path, int]]  # a file and its class


class Folder(DataModule):
    """Images of any format, size and mode in a folder, as [C, H, W] with 256 levels, or 2 if all are black and white.

    If all images are in subfolders, and there is more than one, the subfolders are the classes, in alphabetical order.
    If root has a subfolder `train` (or `training`), that and `val` (`valid`, `validation`, `dev`, `eval`) and `test`
    (`testing`) are the splits. Missing splits are split off from the training images at random, 5% each, in such a way
    that the training split keeps images of each class. Links are followed. Hidden files and folders are ignored; other
    files that are not used are listed in the log.

    Args:
        root: The folder.
        size: Height and width to which the images are resized (Lanczos, antialiased), one number or [height, width];
            None: no resizing, so all images must have the same size.
        crop: "center": crop to the largest centred part of that shape before resizing; "none": stretch.
        mode: "L" (grey) or "RGB"; None: grey if all images are grey.
        range: [lo, hi], the range of grey images with more than 8 bits, which is mapped to 256 levels; None: [0, 65535]
            for 16-bit integers and [0, 1] for floats, while 32-bit integers raise an error.
        in_memory: True: decode all images once; False: read each batch from the files; "auto": in memory up to 2 GiB.
        num_workers: Number of threads that read files, at least 1.
        split_seed: Seed of the random splits.
        **common: See `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        size: int | Sequence[int] | None = None,
        crop: str = "center",
        mode: str | None = None,
        range: Sequence[float] | None = None,
        in_memory: bool | str = "auto",
        num_workers: int = 4,
        split_seed: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self._sides = height_and_width(size)
        self.size = list(size) if isinstance(size, Sequence) else size
        if not isinstance(in_memory, bool) and in_memory != "auto":
            raise ValueError(f"in_memory must be True, False or auto; got {in_memory!r}")
        self.range = None if range is None else list(low_and_high(range))
        self.root = str(Path(root).expanduser().absolute())
        self.crop, self.mode = check_crop_and_mode(crop, mode)
        self.in_memory, self.num_workers = in_memory, check_count("num_workers", num_workers)
        self.split_seed = check_count("split_seed", split_seed, least=0)

    def load(self) -> dict[str, Split]:
        """Find the images, check their sizes, and decode them unless they are read in batches."""
        files = self._files()
        ends = None if self.range is None else low_and_high(self.range)
        paths = [path for split in SPLITS for path, _ in files[split]]
        found = headers(paths, self.num_workers, ends)
        item_shape = self._item_shape(paths, found)
        black_and_white = item_shape[0] == 1 and self._sides is None and all(header.two_levels for header in found)
        levels = 2 if black_and_white else 256
        reading = Reading(self._sides, self.crop, "L" if item_shape[0] == 1 else "RGB", levels, ends)
        self.in_files = (
            math.prod(item_shape) * len(paths) > _IN_MEMORY if self.in_memory == "auto" else not self.in_memory
        )

        held = len(paths) if not self.in_files else min(self.batch_size, len(paths))
        wanted, smaller = f"data.root={self.root}: {held} images of shape {list(item_shape)}", "make data.size smaller"
        remedy = f"{smaller}, or data.batch_size" if self.in_files else f"{smaller}, or set data.in_memory=false"
        check_fits(wanted, held * math.prod(item_shape), remedy)
        splits = {}
        for split in SPLITS:
            lazy = ImageFiles([path for path, _ in files[split]], reading, item_shape, self.num_workers)
            x: Rows = lazy if self.in_files else lazy[:]
            label = torch.tensor([number for _, number in files[split]]) if self.class_names else None
            splits[split] = Split(x, label, levels)
        self._labelled = files
        return splits

    def files(self) -> tuple[str, Mapping[str, Sequence[str]]]:
        """See `DataModule.files`."""
        paths = {split: [path for path, _ in some] for split, some in self._labelled.items()}
        return self.root, {
            split: [path.relative_to(self.root).as_posix() for path in some] for split, some in paths.items()
        }

    def digest(self, name: str) -> str:
        """Digest of the names, sizes and classes of all files, of captions, and of the first MiB of about 64 files.

        Pixels are not used, as decoders differ.
        """
        self.prepare()
        files = self._labelled[name]
        found = hashlib.blake2b(digest_size=16)
        for path, number in files:
            found.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\0{number}\0".encode())
        for values in self.splits[name].others.values():
            found.update(values.numpy().data)
        for path, _ in files[:: max(1, len(files) // 64)]:
            with path.open("rb") as file:
                found.update(file.read(2**20))
        return found.hexdigest()

    def _files(self) -> dict[str, Labelled]:
        """The files of each split with their classes; sets `class_names`."""
        trees = self._trees()
        self._name_classes(trees["train"])
        numbers = {name: number for number, name in enumerate(self.class_names or ())}
        for split, tree in trees.items():
            # If train has no classes, another split that has some is from another data set.
            names = set(tree.classes) if numbers or _has_classes(tree) else set()
            unknown = sorted(names - set(numbers)) if split != "train" else []
            if unknown:
                raise UserError(
                    f"data.root={self.root}: {split} has the classes {few(unknown)} that train lacks; "
                    f"the classes of train are {few(list(numbers)) or 'none (no subfolders)'}"
                )
            if numbers and tree.stray:
                raise UserError(
                    f"data.root={self.root}: train has classes, but {tree.stray[0]} of {split} is in no class folder: "
                    "move it into one, or away"
                )
        files = {
            split: [(path, numbers.get(tree.subfolder(path), 0)) for path in tree.images]
            for split, tree in trees.items()
        }
        missing = [split for split in SPLITS if split not in files]
        train = files["train"]
        counts = [max(1, round(0.05 * len(train)))] * len(missing)
        labels = [number for _, number in train]
        parts = divide(len(train), counts, self.split_seed, labels, f"data.root={self.root}: ")
        for split, rows in zip(("train", *missing), parts, strict=True):
            files[split] = [train[row] for row in rows.tolist()]
        return files

    def _trees(self) -> dict[str, Tree]:
        """The images of each split that has a folder of its own, or all of them as `train`."""
        root = Path(self.root)
        if not root.is_dir():
            raise UserError(f"data.root={root}: no such folder; it must be a folder of images")
        try:
            subfolders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        except OSError as error:
            raise UserError(f"data.root={root} cannot be read: {error.strerror or error}") from error
        own = split_folders(subfolders, f"data.root={root}")
        captions = () if self.captions is None else self.captions.own_files()
        trees = {split: find_images(root / name) for split, name in own.items()}
        trees = trees or {"train": find_images(root, leave=captions)}
        if own:
            log.info("%s: splits %s", root, ", ".join(f"{split} ({name}/)" for split, name in own.items()))
            beside = find_images(root, leave=tuple(own.values()))
            if beside.images:
                others = [f"{name}/" for name in beside.classes] + [path.name for path in beside.stray]
                log.warning("%s: not used, as they are in no split's folder: %s", root, few(others))
        for tree in trees.values():
            tree.report()
            if not tree.images:
                raise UserError(
                    f"data.root={self.root}: no images in {tree.folder if own else 'it'} or its subfolders; images are "
                    f"files ending in {' '.join(SUFFIXES)}"
                )
        return trees

    def _name_classes(self, train: Tree) -> None:
        """Set `class_names` by the training images' subfolders, or `why_no_labels` if they are not classes."""
        self.class_names = tuple(train.classes) if _has_classes(train) else None
        if self.class_names:
            return
        if not train.classes:
            self.why_no_labels = ": its images are not in subfolders, which would be the classes"
        elif not train.stray:
            self.why_no_labels = f": all its images are in one subfolder, {train.classes[0]}"
        else:
            self.why_no_labels = (
                f": {len(train.stray)} of its images, such as {train.stray[0].name}, are not in the subfolders "
                f"{few(train.classes)}: move them into one, or away, so that the subfolders become classes"
            )
            log.warning("%s: no labels%s", train.folder, self.why_no_labels)

    def _item_shape(self, paths: list[Path], found: list[Header]) -> tuple[int, int, int]:
        grey = all(header.grey for header in found) if self.mode is None else self.mode == "L"
        channels = 1 if grey else 3
        if self._sides is not None:
            return channels, *self._sides
        width, height = found[0].size
        for path, header in zip(paths, found, strict=True):
            if header.size != (width, height):
                raise UserError(
                    f"data.root={self.root} has images of different sizes: {paths[0]} is {width}x{height} and {path} "
                    f"is {header.size[0]}x{header.size[1]}; set data.size=32 (or another size) to resize them all"
                )
        return channels, height, width


def _has_classes(tree: Tree) -> bool:
    return len(tree.classes) > 1 and not tree.stray
