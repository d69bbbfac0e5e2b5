"""Files that are written whole or not at all, and folders that are not overwritten by accident."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
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


def opened(path: Path) -> BufferedReader:
    """Open a file for reading, if it is a regular one: a pipe, a socket or a device may never answer or never end.

    Every file that a user names is opened here, or by what `readable` has let pass.

    Raises:
        UserError: If it is missing, no regular file, closed to this user, or empty.
    """
    try:
        # Opened first and looked at then, so that it is the same file; without O_NONBLOCK a pipe would wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        kind = _kind(path)
        why = f"is {kind}" if kind else f"cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise UserError(f"{path} {why}") from error
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise UserError(f"{path} is {_kind(path)}")
    try:
        if not file.peek(1):
            raise UserError(f"{path} is empty")
    except OSError as error:
        file.close()
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UserError:
        file.close()
        raise
    return file


def readable(path: Path) -> Path:
    """See that a file can be opened, so that what goes wrong on reading it lies in what it holds.

    Raises:
        UserError: As `opened` does.
    """
    opened(path).close()
    return path


def _kind(path: Path) -> str:
    """What a path is that is no regular file; "" for one that is, or where that cannot be told."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "not there (a link to nothing)" if path.is_symlink() else "not there"
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"
