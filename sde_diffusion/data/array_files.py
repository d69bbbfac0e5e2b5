"""Read arrays from files: .npz, .npy, and tables of comma-separated values."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import chain
from pathlib import Path

import numpy as np

from sde_diffusion.checks.reprs import few
from sde_diffusion.data.names import array_names, described
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import opened
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.storage.npz import Array, ForeignFileError, read_arrays_of

log = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv", ".txt")
_DELIMITERS = (";", "\t", ",")


def read_arrays(path: Path, conditions: Sequence[str] = ()) -> dict[str, Array]:
    """Read the arrays of a file, under their standard names: `train_images`, `test_labels` etc., and `class_names`.

    Args:
        path: An .npz file with arrays under any of the names in `names.array_names`; or an .npy file or a table of
            numbers (.csv, .tsv, .txt; the first line may have the names of the columns), whose rows are the training
            items.
        conditions: Names of conditions to read: in an .npz file arrays `train_CONDITION`, ..., or `CONDITION` for the
            training items; in a table columns, which are then not part of the items.

    Returns:
        The arrays by name. Arrays that are not used are listed in the log.

    Raises:
        UserError: If the file cannot be read, is damaged or of another kind, or has no training items.
    """
    if path.suffix.lower() in _TABLES:
        return _table(path, conditions)
    roles: dict[str, str] = {"train_images": "train_images"}

    def choose(found: list[str]) -> list[str]:
        roles.clear()
        roles.update(array_names(found, str(path), conditions))
        if "train_images" not in roles:
            raise UserError(
                f"{path} has no train_images; it holds {few(found) or 'nothing'}; the names are train_images, "
                "train_labels, val_images, test_images, ... (or x_train, y_train, ...) and class_names; only the first "
                "is required"
            )
        unused = sorted(set(found) - set(roles.values()))
        if unused:
            log.warning("%s: not used: %s", path, few(unused))
        return list(roles.values())

    try:
        arrays = read_arrays_of(path, choose, "train_images")
    except ForeignFileError as error:
        raise UserError(f"{error}; tables of numbers must end in {', '.join(_TABLES)}") from error
    renamed = [f"{name} as {described(role)}" for role, name in roles.items() if role != name]
    if renamed:
        log.info("%s: read %s", path, few(renamed))
    return {role: arrays[name] for role, name in roles.items()}


def _table(path: Path, conditions: Sequence[str]) -> dict[str, Array]:
    """Rows of numbers, float64 [N, D], and the columns that conditions name, float64 [N]."""
    try:
        with TextIOWrapper(opened(path), encoding="utf-8-sig") as file:
            # A value takes at least two bytes of text, and eight in memory.
            check_fits(str(path), 4 * os.fstat(file.fileno()).st_size, "save fewer rows, or several files")
            line = next((line for line in file if line.strip()), "").strip()
        delimiter = next((mark for mark in _DELIMITERS if mark in line), None)
        named = not all(_reads_as_number(word) for word in line.split(delimiter))
        with TextIOWrapper(opened(path), encoding="utf-8-sig") as file:
            lines = (line for line in file if line.strip())
            columns = [word.strip(' "\n') for word in next(lines).split(delimiter)] if named else []
            if named:
                log.info("%s: columns %s", path, few(columns, 30))
            first = next(lines, None)
            if first is None:
                raise UserError(f"{path} has no rows of numbers")
            rows = np.loadtxt(chain([first], lines), delimiter=delimiter, ndmin=2, comments=None, quotechar='"')
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a table of numbers: {str(error).splitlines()[0]}") from error
    if lacking := [name for name in conditions if name not in columns]:
        raise UserError(
            f"{path} has no column {', '.join(lacking)}; its columns are {few(columns, 30) or 'without names'}"
        )
    found = {f"train_{name}": rows[:, columns.index(name)] for name in conditions}
    return {"train_images": np.delete(rows, [columns.index(name) for name in conditions], axis=1), **found}


def _reads_as_number(word: str) -> bool:
    try:
        float(word.strip().strip('"'))
    except ValueError:
        return False
    return True
