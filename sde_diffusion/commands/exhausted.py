"""What a command says when memory or disk is used up: what it was, which settings ask for less, and what is kept."""

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
"""Settings that decide how much memory is taken; a command's message names those that it has."""


@contextmanager
def within_limits(command: str) -> Iterator[None]:
    """Turn errors that mean that memory or disk is used up into one message.

    Args:
        command: The command's name.

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
            raise UserError(f"{memory} ran out{_asked(error)}: make {smaller} smaller{_kept()}") from error
        if disk := no_room(error):
            choose = "out=DIR" if "out" in command_keys(command) else "hydra.run.dir=DIR"
            raise UserError(f"{disk}; make room, or choose another folder with {choose}{_kept()}") from error
        raise


def no_room(error: BaseException) -> str:
    """What an error says of a disk that takes no more: "cannot write FILE: No space left on device"; "" for others.

    safetensors and torch raise errors of their own, the former without a number, the latter where the system's error
    is one of those that led to it.
    """
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            return f"cannot write{f' {one.filename}' if one.filename else ''}: {one.strerror}"
        code = re.search(r"\(os error (\d+)\)", str(one)) if type(one).__name__ == "SafetensorError" else None
        if code and int(code[1]) in NO_ROOM:
            return f"cannot write: {os.strerror(int(code[1]))}"
        if isinstance(one, RuntimeError) and "PytorchStreamWriter failed writing" in str(one):
            return "cannot write a checkpoint, probably for want of room"
        one = one.__cause__ or one.__context__
    return ""


def _asked(error: BaseException) -> str:
    """How much was asked for at once, where the error says so."""
    found = re.search(r"allocate ([\d.,]+) ?([KMGTPE]?i?B|bytes)\b", str(error), re.IGNORECASE)
    if not found:
        return ""
    counted = found[2].lower() == "bytes" and found[1].isdecimal()
    amount = in_words(int(found[1])) if counted else f"{found[1]} {found[2]}"
    return f" ({amount} were asked for at once)"


def _kept() -> str:
    """What of the command's work is kept, and how to go on from there."""
    if not HydraConfig.initialized():
        return ""
    folder = Path(HydraConfig.get().runtime.output_dir)
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return f". The checkpoint written before is kept; resume with {setting('ckpt', last)}"
    finished = [*folder.glob(".*/**/*.safetensors"), *folder.glob("runs/*/run.json")]
    again = f". What is finished is kept: the same command with {setting('out', folder)} resumes there"
    return again if finished else ""
