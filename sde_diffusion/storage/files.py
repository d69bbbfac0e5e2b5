"""Files that are written atomically, and results that are not overwritten by accident."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from sde_diffusion.checks.reprs import shown
from sde_diffusion.errors import FinishedError, UserError
from sde_diffusion.storage.lock import check_held, lock, same_file

PART = ".part"
"""Suffix of files that are being written."""

NO_ROOM = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO") if hasattr(errno, name))
"""Error numbers of a disk that is full or read-only."""


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A context with a temporary file beside `path`, which is renamed to `path` when the block has written it.

    The content is flushed to the disk before the file is renamed: at any time, even after a power cut, `path` is either
    the old file or the complete new one. Temporary files of killed processes are removed.

    Args:
        path: The file.

    Yields:
        The temporary file, empty, in the same folder.

    Raises:
        UserError: If the file cannot be written, or its folder was deleted in the middle of a command.
        OSError: If the disk is full.
    """
    check_held(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    held = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        held = _create(temporary)
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        if error.filename not in (None, *map(str, (path, temporary, path.parent))):  # the block's own
            raise
        if error.errno in NO_ROOM:  # reported by the command, which knows what is stored
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held >= 0:
            os.close(held)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove the temporary files of killed processes; those of running processes are locked, and stay.

    Args:
        folder: The folder to search, with its direct subfolders.
        name: Name of the file that was being written, in the folder itself; "": of any.
    """
    own = re.compile(rf"\.{re.escape(name) if name else '.+'}\.[0-9a-f]{{8}}{re.escape(PART)}")
    for pattern in (f".*{PART}",) if name else (f".*{PART}", f"*/.*{PART}"):
        for path in [found for found in folder.glob(pattern) if own.fullmatch(found.name)]:
            if path.is_dir() and not path.is_symlink():  # see `forget`
                shutil.rmtree(path, ignore_errors=True)
                continue
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    if lock(descriptor):
                        path.unlink()
                finally:
                    os.close(descriptor)


def forget(folder: Path) -> None:
    """Remove a folder of parts once the final result is written: completely or not at all, even if killed."""
    removed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PART}")
    with suppress(OSError):
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _create(path: Path) -> int:
    """Create a file and lock it; returns the descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        lock(descriptor, wait=True)
        if same_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # another process removed it as a leftover in the moment before it was locked


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Raises:
        OSError: If it cannot be opened, or the disk is full.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def fresh(path: Path, overwrite: bool, *unfinished: Path) -> Path:
    """Check that a finished result does not exist already.

    Args:
        path: The file that its command writes last: if it exists, the result is finished.
        overwrite: Whether it may be replaced.
        *unfinished: Folders of parts. They are removed if a finished result exists: the command was killed before it
            could remove them.

    Returns:
        `path`.

    Raises:
        UserError: If it exists and overwrite is not set, or if overwrite is neither true nor false.
    """
    if not isinstance(overwrite, bool):  # from a command line, where "no" is a string
        raise UserError(f"overwrite must be true or false; got overwrite={overwrite}")
    if path.exists() and not overwrite:
        for folder in unfinished:
            forget(folder)
        raise FinishedError(f"{path} exists already; choose another folder with out=DIR, or set overwrite=true")
    return path


def opened(path: Path) -> BufferedReader:
    """Open a regular file for reading. (Reading a pipe, a socket or a device might never end.)

    Every file that a user names is opened by this function, or checked by `readable` first.

    Raises:
        UserError: If it is missing, not a regular file, not readable by this user, or empty.
    """
    try:
        # Opened first and checked then, so that it is the same file; without O_NONBLOCK a pipe would wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        kind = _kind(path)
        why = kind or f"cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise UserError(f"{path} {why}") from error
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise UserError(f"{path} {_kind(path) or 'is not a regular file'}")
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
    """Check that a file can be opened, so that any later error is due to its content.

    Raises:
        UserError: As `opened` does.
    """
    opened(path).close()
    return path


def read_json(path: Path, remedy: str = "remove it, or choose another folder") -> dict[str, Any]:
    """Read a JSON file that this package has written, and that may have been damaged since.

    Args:
        path: The file.
        remedy: What to do about a damaged file, for the message.

    Raises:
        UserError: If the file cannot be opened, or is anything but a JSON object in UTF-8.
    """
    try:
        with opened(path) as file:
            found = json.load(file)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    except (ValueError, RecursionError, OSError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} is damaged: {error}; {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds {shown(found)}, not a JSON object; {remedy}")
    return found


def _kind(path: Path) -> str:
    """Why a path is not a regular file, for messages; "" if it is one, or if that is unknown."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist (a link to nothing)" if path.is_symlink() else "does not exist"
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
