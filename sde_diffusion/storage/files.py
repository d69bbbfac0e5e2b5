"""Files that are written whole or not at all, and folders that are not overwritten by accident."""

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
"""How the names of files that are being written end."""

NO_ROOM = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO") if hasattr(errno, name))
"""The errors of disks that take no more."""


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`, and rename it to `path` when the block has written it.

    Everything is on the disk before the name is: at every moment, and after a power cut too, `path` is what it was
    before or what it is to be. What a killed process left of earlier attempts is removed.

    Args:
        path: The file.

    Yields:
        The temporary file, in the same folder: empty, to be written or opened for writing.

    Raises:
        UserError: If the file cannot be written, or the folder that holds it was deleted in the middle of a command.
        OSError: If there is no room for it.
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
        if error.errno in NO_ROOM:  # told by the command, which knows what is kept
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held >= 0:
            os.close(held)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes were writing; a file that a process is writing is locked, and stays.

    Args:
        folder: Where to look, and in the folders right below.
        name: Of the file that was to be written, in the folder itself; "": of any.
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
    """Remove a folder of parts, once what was made of them is written: all of it or nothing, whenever it is killed."""
    removed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PART}")
    with suppress(OSError):
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _create(path: Path) -> int:
    """A new file, locked: the descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        lock(descriptor, wait=True)
        if same_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # another process took it for a leftover in the moment before it was locked


def flush(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk.

    Raises:
        OSError: If it cannot be opened, or the disk does not take it.
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
    """See that a result does not stand there already.

    Args:
        path: The file that its command writes last: where it stands, the result is finished.
        overwrite: Whether it may be replaced.
        *unfinished: Folders of parts, which go where a finished result stands: their command was killed before it could
            remove them.

    Returns:
        `path`.

    Raises:
        UserError: If it does and overwrite is not set, or if overwrite is neither true nor false.
    """
    if not isinstance(overwrite, bool):  # off a command line, where "no" is a word like another
        raise UserError(f"overwrite must be true or false; got overwrite={overwrite}")
    if path.exists() and not overwrite:
        for folder in unfinished:
            forget(folder)
        raise FinishedError(f"{path} exists already; choose another folder with out=DIR, or set overwrite=true")
    return path


def opened(path: Path) -> BufferedReader:
    """Open a file for reading, if it is a regular one: a pipe, a socket or a device may never answer or never end.

    Every file that a user names is opened here, or by what `readable` has let pass.

    Raises:
        UserError: If it is missing, not a regular file, not readable by this user, or empty.
    """
    try:
        # Opened first and looked at then, so that it is the same file; without O_NONBLOCK a pipe would wait.
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
    """See that a file can be opened, so that what goes wrong on reading it lies in what it holds.

    Raises:
        UserError: As `opened` does.
    """
    opened(path).close()
    return path


def read_json(path: Path, remedy: str = "remove it, or choose another folder") -> dict[str, Any]:
    """The object in a JSON file that this package has written, which something may have damaged since.

    Args:
        path: The file.
        remedy: What to do about a damaged one, for the message.

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
    """What is said of a path that is not a regular file; "" for one that is, or where that cannot be told."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist (a link to nothing)" if path.is_symlink() else "does not exist"
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
