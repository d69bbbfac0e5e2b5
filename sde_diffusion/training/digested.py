"""Models with the digest of the very file that they were read from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from sde_diffusion.errors import UserError
from sde_diffusion.training.generative import GenerativeModel


def load_with_digest(ckpt: str, device: torch.device) -> GenerativeModel:
    """A checkpoint's model, with its `digest`: if a running training replaces the file in between, it is read again.

    Raises:
        UserError: If it cannot be loaded, or is replaced again and again.
    """
    for _ in range(5):
        before = identity(ckpt)
        model = GenerativeModel.load_from_checkpoint(ckpt, map_location=device)
        with Path(ckpt).open("rb") as file:
            model.digest = hashlib.file_digest(file, "sha256").hexdigest()
        if identity(ckpt) == before:
            return model
    raise UserError(f"{ckpt} is being replaced again and again: use a copy of it")


def identity(ckpt: str) -> tuple[int, int, int] | None:
    """What changes if a file is replaced or written to; None if there is none, which reading it reports."""
    try:
        found = Path(ckpt).stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
