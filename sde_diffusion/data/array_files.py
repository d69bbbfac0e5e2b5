"""Arrays out of files: .npz, .npy and tables of comma-separated values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sde_diffusion.data.checks import few
from sde_diffusion.data.names import array_names
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import readable

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_TABLES = (".csv", ".tsv", ".txt")
_DELIMITERS = (";", "\t", ",")


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file by what they hold: `train_images`, `test_labels` and so on, and `class_names`.

    Args:
        path: An .npz of arrays in any spelling of `names.array_names`; an .npy, or a table of numbers (.csv, .tsv,
            .txt, perhaps with a line of names on top), whose rows are the training items.

    Returns:
        The arrays. What else the file holds is said in the log.

    Raises:
        UserError: If the file cannot be read, is of another kind or damaged, or has no training items.
    """
    readable(path)
    if path.suffix.lower() in _TABLES:
        return {"train_images": _table(path)}
    try:
        # Never allow_pickle: loading would run code from the file.
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return {"train_images": file}
        with file:
            found = list(file.files)
            roles = array_names(found, str(path))
            if "train_images" not in roles:
                raise UserError(
                    f"{path} has no train_images; it holds {few(found) or 'nothing'}; the names are train_images, "
                    "train_labels, val_images, test_images, ... (or x_train, y_train, ...) and class_names, of which "
                    "only the first is required"
                )
            unused = sorted(set(found) - set(roles.values()))
            if unused:
                log.warning("%s: not used: %s", path, few(unused))
            renamed = [f"{name} as {role}" for role, name in roles.items() if role != name]
            if renamed:
                log.info("%s: read %s", path, few(renamed))
            return {role: _member(path, file, name) for role, name in roles.items()}
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"data.path={path} does not fit in memory: {error}") from error
    except (
        Exception
    ) as error:  # NumPy's reader stumbles over damaged bytes in many ways, tokenize.TokenError among them
        raise UserError(f"data.path={path} {_what_is_wrong(path, error)}") from error


def _what_is_wrong(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"PK") or start == b"\x93NUMPY":
        return f"is not a whole .npz file: {error}; it is damaged or truncated"
    return (
        f"is not a whole .npz file, nor an .npy: it begins with {start[:4].hex(' ')}; tables of numbers must end in "
        f"{', '.join(_TABLES)}"
    )


def _member(path: Path, file: Any, key: str) -> Array:
    try:
        array: Array = file[key]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise UserError(
            f"{path}: {key} is an array of Python objects, which is never loaded (that could run code); "
            "save numbers, such as uint8 or float32; images of different sizes belong in a folder (data=folder)"
        ) from error
    return array


def _table(path: Path) -> Array:
    """Rows of numbers, float64 [N, D]."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = next((line for line in file if line.strip()), "").strip()
        delimiter = next((mark for mark in _DELIMITERS if mark in line), None)
        named = not all(_reads_as_number(word) for word in line.split(delimiter))
        with path.open(encoding="utf-8-sig") as file:
            lines = (line for line in file if line.strip())
            if named:
                log.info("%s: columns %s", path, few([word.strip(' "') for word in next(lines).split(delimiter)], 30))
            return np.loadtxt(lines, delimiter=delimiter, ndmin=2, comments=None, quotechar='"')
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a table of numbers: {str(error).splitlines()[0]}") from error


def _reads_as_number(word: str) -> bool:
    try:
        float(word.strip().strip('"'))
    except ValueError:
        return False
    return True
