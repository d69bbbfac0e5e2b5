"""Messages when memory or disk space runs out: what ran out, which settings need less, and what is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from sde_diffusion.checks.overrides import setting
from sde_diffusion.commands.configurations import command_keys
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import NO_ROOM
from sde_diffusion.storage.memory import in_words, ran_out

_SIZES = (
    "data.batch_size",
    "network.width",
    "network.depth",
    "network.channels",
    "data.size",
    "batch_size",
    "probes",
    "n",
)
"""Settings that determine the use of memory; a command's message lists those that it has."""


@contextmanager
def within_limits(command: str) -> Iterator[None]:
    """Turn errors that mean that memory or disk space has run out into one message.

    Args:
        command: Name of the command.

    Raises:
        UserError: In place of such an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if memory := ran_out(error):
            known = command_keys(command)
            *more, last = [size for size in _SIZES if size.partition(".")[0] in known]
            smaller = " or ".join(filter(None, (", ".join(more), last)))
            also = ", or add model.activation_checkpointing=true" if command == "train" else ""
            raise UserError(f"{memory} ran out{_asked(error)}: make {smaller} smaller{also}{_kept()}") from error
        if disk := no_room(error):
            choose = "out=DIR" if "out" in command_keys(command) else "hydra.run.dir=DIR"
            raise UserError(f"{disk}; make room, or choose another folder with {choose}{_kept()}") from error
        raise


def no_room(error: BaseException) -> str:
    """The message of an error caused by a full disk: "cannot write FILE: No space left on device"; "" for other errors.

    safetensors and torch raise their own exceptions: the former gives the error number only in its text, the latter
    has the system's error among its causes.
    """
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            return f"cannot write{f' {one.filename}' if one.filename else ''}: {one.strerror}"
        code = re.search(r"\(os error (\d+)\)", str(one)) if type(one).__name__ == "SafetensorError" else None
        if code and int(code[1]) in NO_ROOM:
            return f"cannot write: {os.strerror(int(code[1]))}"
        if isinstance(one, RuntimeError) and "PytorchStreamWriter failed writing" in str(one):
            return "cannot write a checkpoint, probably because the disk is full"
        one = one.__cause__ or one.__context__
    return ""


def _asked(error: BaseException) -> str:
    """The size of the failed allocation, if the error gives it."""
    found = re.search(r"allocate ([\d.,]+) ?([KMGTPE]?i?B|bytes)\b", str(error), re.IGNORECASE)
    if not found:
        return ""
    counted = found[2].lower() == "bytes" and found[1].isdecimal()
    amount = in_words(int(found[1])) if counted else f"{found[1]} {found[2]}"
    return f" ({amount} were requested at once)"


def _kept() -> str:
    """What is kept of the command's work, and how to resume."""
    if not HydraConfig.initialized():
        return ""
    folder = Path(HydraConfig.get().runtime.output_dir)
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return f". The last checkpoint is kept; resume with {setting('ckpt', last)}"
    again = f". Finished work is kept: the same command with {setting('out', folder)} resumes there"
    return again if has_finished_work(folder) else ""


def has_finished_work(folder: Path) -> bool:
    """Whether a command's folder has finished batches, or runs of a sweep, from which the same command resumes."""
    return any([*folder.glob(".*/**/*.safetensors"), *folder.glob("runs/*/run.json")])
