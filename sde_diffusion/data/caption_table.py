"""Captions from a table beside a folder of images."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sde_diffusion.checks.reprs import few
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.storage.files import opened
from sde_diffusion.text import Captions, ImageSplit

log = logging.getLogger(__name__)


class CaptionTable(Captions):
    """Captions from a table: a .csv file with a column of file names and one of texts, beside a folder of images.

    Args:
        path: The table; relative paths are looked for in the folder of the images first.
        column: Name of the column of texts.
        files: Name of the column of the images' files, relative to their folder.
    """

    def __init__(self, path: str = "metadata.csv", column: str = "text", files: str = "file_name") -> None:
        self.path, self.column, self.files = path, column, files

    def own_files(self) -> tuple[str, ...]:
        """See `Captions.own_files`: the table."""
        return (self.path,)

    def of(self, splits: Mapping[str, ImageSplit], names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """See `Captions.of`."""
        train = splits["train"]
        if train.files is None or train.root is None:
            raise UserError("captions=table is for images in files (data=folder); others have captions=rendered")
        inside = Path(train.root) / Path(self.path).expanduser()
        path = inside if inside.is_file() else Path(self.path).expanduser()
        table, n = self._read(path), sum(split.n for split in splits.values())
        wanted = [file for split in splits.values() for file in split.files or ()]
        missing = [file for file in wanted if file not in table]
        if missing:
            raise UserError(
                f"{path} has captions of {len(table)} files, but there are {n} images; without a caption: "
                f"{few(missing, 3)}{'' if len(missing) <= 3 else f' ({len(missing)} in all)'}"
            )
        if unused := sorted({*table} - {*wanted}):
            log.info("%s has captions of %d files that are not among the images: %s", path, len(unused), few(unused, 3))
        return {name: [table[file] for file in split.files or ()] for name, split in splits.items()}

    def _read(self, path: Path) -> dict[str, str]:
        with opened(path) as file:
            try:
                rows = list(csv.DictReader(io.StringIO(file.read().decode("utf-8-sig"), newline="")))
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{path} is not a table in UTF-8: {error}") from error
        if not rows:
            raise UserError(f"{path} holds no captions")
        for column in (self.files, self.column):
            if column not in rows[0]:
                known = [str(name) for name in rows[0]]
                raise UserError(f"{path} has no column {column}{did_you_mean(column, known)}; it has {few(known)}")
        empty = [row[self.files] for row in rows if not (row[self.column] or "").strip()]
        if empty:
            raise UserError(f"{path}: the captions of {few(empty, 3)} are empty")
        twice = len(rows) - len({row[self.files] for row in rows})
        if twice:
            raise UserError(f"{path}: {twice} files are listed more than once")
        return {row[self.files]: row[self.column] for row in rows}
