"""Images in parquet files, such as those of CIFAR-10 on the Hugging Face hub."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Unpack

from sde_diffusion.checks.reprs import few
from sde_diffusion.data.common import EncodedOptions
from sde_diffusion.data.encoded import Encoded, EncodedImages
from sde_diffusion.data.module import SPLITS
from sde_diffusion.data.names import SPLIT_OF
from sde_diffusion.data.tables import class_names, columns, images_of, labels_of, library
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import readable

_SOURCES = {"cifar10": "the folder plain_text of https://huggingface.co/datasets/uoft-cs/cifar10"}

_NAMES = "train-00000-of-00001.parquet (or several of them, or a folder train) and test-00000-of-00001.parquet"


class ParquetImages(EncodedImages):
    """Images and labels in a folder of parquet files, in the layout of the Hugging Face hub; needs pyarrow.

    The files of a split are `train-00000-of-00003.parquet`, ..., or lie in a folder `train`; those of the others begin
    with `validation`, `test` or other usual names. A column has the bytes of image files, perhaps in a struct, and
    another one, if any, has class numbers. Names of classes are those that the hub's libraries store in the files.

    Args:
        root: Folder with the files, which may be in subfolders.
        name: Name of the data; None: that of the folder. `cifar10` has a classifier for its Fréchet distance, and a
            message that says where to get missing files.
        **options: See `EncodedImages` and `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, root: str, name: str | None = None, **options: Unpack[EncodedOptions]) -> None:
        super().__init__(**options)
        self.root = str(Path(root).expanduser().absolute())
        self.name = Path(self.root).name if name is None else name
        trained_on = self.name == "cifar10" and self.size is None
        self.extractor = "cifar10" if trained_on else None

    def encoded(self) -> tuple[Mapping[str, Encoded], Sequence[str] | None]:
        """Read the files; see `EncodedImages.encoded`."""
        parquet = library("pyarrow.parquet", "parquet", f"data.root={self.root}: reading parquet files")
        shards, read, names = self._shards(), 0, None
        found = {}
        for split, paths in shards.items():
            tables, images, label = [], [list[bytes]() for _ in paths], None
            for path, part in zip(paths, images, strict=True):
                table, column, label = self._table(parquet, path, f"{read} images were read from other files")
                part += images_of(table, column, str(path))
                tables.append(table.select([label] if label else []))
                names, read = names or class_names(table.schema, label), read + len(part)
            found[split] = Encoded(
                [*chain.from_iterable(images)], labels_of(tables, label), _where(paths, [*map(len, images)])
            )
        return found, names

    def _table(self, parquet: Any, path: Path, before: str) -> tuple[Any, str, str | None]:
        """The columns of a file, and the names of those of images and labels."""
        readable(path)
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                image, label = columns(file.schema_arrow, str(path), self.image, self.label)
                return file.read([image, *([label] if label else [])]), image, label
        except UserError:
            raise
        except Exception as error:  # damaged files raise many kinds
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} cannot be read as a parquet file: {why} ({before}); it is damaged or incomplete: download it "
                "again"
            ) from error

    def _shards(self) -> dict[str, list[Path]]:
        """The files of each split, in order."""
        root = Path(self.root)
        source = f": download {_SOURCES[self.name]}, and set data.root to it" if self.name in _SOURCES else ""
        wanted = f"a folder with {_NAMES}, perhaps in subfolders{source}"
        if not root.is_dir():
            what = "a file" if root.exists() else "no such folder"
            raise UserError(f"data.root={root}: {what}; it must be {wanted}")
        paths, found = sorted(root.rglob("*.parquet")), dict[str, list[Path]]()
        for path in paths:
            words = (re.split(r"[^a-z]", path.stem.lower())[0], path.parent.name.lower())
            split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)
            if split is not None:
                found.setdefault(split, []).append(path)
        if "train" not in found:
            there = few([path.name for path in paths or root.iterdir()]) or "nothing"
            raise UserError(f"data.root={root} has no file train-….parquet: it holds {there}; it must be {wanted}")
        for split, some in found.items():
            _check_one_folder(split, some, root)
            _check_complete(some)
        return {split: found[split] for split in SPLITS if split in found}


def _check_one_folder(split: str, paths: Sequence[Path], root: Path) -> None:
    """Check that the files of a split lie together: those of several folders are several data sets."""
    folders = sorted({str(path.parent.relative_to(root)) for path in paths})
    if len(folders) > 1:
        raise UserError(
            f"data.root={root} has {split} files in {few(folders)}, as several data sets have: choose one of them, "
            f"such as data.root={root / folders[0]}"
        )


def _check_complete(paths: Sequence[Path]) -> None:
    """Check that all files are there, of those that say their number: train-00000-of-00003."""
    numbers = [re.fullmatch(r"(.*-)(\d+)(-of-(\d+))", path.stem) for path in paths]
    for number in numbers:
        if number is None:
            continue
        wanted = {f"{number[1]}{i:0{len(number[2])}d}{number[3]}" for i in range(int(number[4]))}
        if missing := sorted(wanted - {path.stem for path in paths}):
            raise UserError(
                f"{paths[0].parent} lacks {few([f'{name}.parquet' for name in missing], 3)}: download it, as "
                f"{paths[0].name} says that there are {int(number[4])} files"
            )


def _where(paths: Sequence[Path], sizes: Sequence[int]) -> Any:
    """The function from a row of several files to its place, for messages."""
    ends = [0, *accumulate(sizes)]

    def where(row: int) -> str:
        file = bisect_right(ends, row) - 1
        return f"{paths[file]}, row {row - ends[file]}"

    return where
