"""Files that are written whole or not at all, and folders that are not overwritten by accident."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sde_diffusion.errors import UserError
from sde_diffusion.storage.lock import check_held

PART = ".part"
"""How the names of files that are being written end."""


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
    """
    check_held(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    held = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, f".{path.name}.*{PART}")
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(held)
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held >= 0:
            os.close(held)


def remove_leftovers(folder: Path, pattern: str = f"**/.*{PART}") -> None:
    """Remove what killed processes were writing; a file that a process is writing is locked, and stays.

    Args:
        folder: Where to look.
        pattern: For which names.
    """
    for path in list(folder.glob(pattern)):
        if path.is_dir() and not path.is_symlink():  # see `parts.forget`
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def forget(folder: Path) -> None:
    """Remove a folder of parts, once what was made of them is written: all of it or nothing, whenever it is killed."""
    removed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PART}")
    with suppress(OSError):
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another's, or a file system without locks
        return False
    return True


def flush(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
