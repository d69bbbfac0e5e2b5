"""Locks, so that only one command at a time works in an output folder."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sde_diffusion.errors import UserError

log = logging.getLogger(__name__)

NAME = ".lock"
_HELD: dict[Path, int] = {}
"""The folders that this process has locked, and the descriptors of their lock files."""


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Lock a folder against other processes, until the block ends or this process dies in any way.

    This is the system's `flock` on `folder/.lock`, a file that says who has locked it. Network file systems forward it
    to their server if they can; if the system or the file system has no locks, a warning says so. If the folder is
    deleted and created again, it can be locked by another process at the same time: see `check_held`.

    Args:
        folder: The folder; created if missing.
        command: Name of the command, for messages to others.

    Raises:
        UserError: If another process has locked it, or it cannot be written to.
    """
    try:
        held = _acquire(folder / NAME)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    try:
        note = {"command": command, "process": os.getpid(), "machine": platform.node(), "since": _now()}
        os.truncate(held, 0)
        os.write(held, json.dumps(note).encode())
        _HELD[folder] = held
        yield
    finally:
        _HELD.pop(folder, None)
        if same_file(folder / NAME, held):
            (folder / NAME).unlink()  # while locked: a process that has opened it sees that it is gone
        os.close(held)


def check_held(path: Path) -> None:
    """Check that the locked folder of a path has not been deleted meanwhile.

    Args:
        path: The file that is about to be written.

    Raises:
        UserError: If it was deleted: what was written there before is gone.
    """
    for folder, held in _HELD.items():
        if folder in path.absolute().parents and not same_file(folder / NAME, held):
            raise UserError(
                f"{folder} was deleted, moved or replaced while this command worked in it, and what it had written is "
                "gone from there: nothing more is written. Start the command again"
            )


def _acquire(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if lock(held) is False:
            owner = _owner(held)
            os.close(held)
            raise UserError(f"{path.parent} is in use by {owner}: wait for it to end, or choose another folder")
        if same_file(path, held):
            return held
        os.close(held)  # the process that had locked it has removed it


def lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file for this process and those that inherit the descriptor.

    Args:
        descriptor: Descriptor of the file, open for writing.
        wait: Whether to wait if another process has locked it.

    Returns:
        Whether it is locked; None, with a warning, if the system or the file system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        _warn_of_no_locks("system")
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _warn_of_no_locks("file system")
        return None
    return True


@functools.cache
def _warn_of_no_locks(where: str) -> None:
    log.warning("this %s has no locks: start no second command in a folder where one is at work", where)


def same_file(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file of an open descriptor."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _owner(descriptor: int) -> str:
    """The owner of a lock, for messages."""
    for _ in range(10):  # the owner may be about to write its name
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            note = json.loads(os.read(descriptor, 4096))
            return f"{note['command']} (process {note['process']} on {note['machine']}, since {note['since']})"
        except (ValueError, TypeError, KeyError):
            time.sleep(0.02)
    return "another command"


def _now() -> str:
    return datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
