"""Files that are written whole or not at all, and folders that are not overwritten by accident."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sde_diffusion.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` if the block ends well.

    Raises:
        UserError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def fresh(path: Path, overwrite: bool) -> Path:
    """See that a result does not stand there already.

    Raises:
        UserError: If it does and overwrite is not set, or if overwrite is neither true nor false.
    """
    if not isinstance(overwrite, bool):  # off a command line, where "no" is a word like another
        raise UserError(f"overwrite must be true or false; got overwrite={overwrite}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another folder with out=DIR, or set overwrite=true")
    return path


def readable(path: Path) -> Path:
    """See that a file can be opened, so that what goes wrong on reading it lies in what it holds.

    Raises:
        UserError: If it is missing, no regular file, closed to this user, or empty.
    """
    try:
        if path.is_dir() or not path.is_file():  # the first raises on a path that is none; a pipe would wait for ever
            kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "not there"
            broken = " (a link to nothing)" if path.is_symlink() and not path.exists() else ""
            raise UserError(f"{path} is {kind}{broken}")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path} is empty")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from error
    return path
