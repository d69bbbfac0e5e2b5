"""Reading checkpoints: as data, never as code."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.errors import UserError
from sde_diffusion.overrides import setting
from sde_diffusion.storage.files import readable


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this package.

    Args:
        path: The file.
        map_location: Where the tensors go.

    Returns:
        The checkpoint's plain contents.

    Raises:
        UserError: If the file is missing, damaged, holds anything but data, or is another program's.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.rglob("*.ckpt"))
        raise UserError(
            f"{path} is a folder; give a file" + (f", such as {setting('ckpt', found[-1])}" if found else "")
        )
    if not path.parent.is_dir():
        raise UserError(f"no checkpoint {path}: there is no folder {path.parent}")
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.ckpt")))
        raise UserError(
            f"no checkpoint {path}" + (f"; in that folder there are: {there}" if there else "; its folder has none")
        )
    if path.suffix == ".npz":
        raise UserError(
            f"{path} holds arrays, not a checkpoint; evaluate takes such a file as {setting('samples', path)}"
        )
    readable(path)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickles of other kinds, refused here
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"PK" and start[:1] != b"\x80":  # an archive, or a pickle's first opcode
            raise UserError(
                f"{path} is not a checkpoint, or is damaged: it does not begin as torch's files do"
            ) from error
        raise UserError(
            f"{path} holds more than data and was not loaded, for such a file can run "
            "code; only checkpoints written by sde_diffusion are read"
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(f"{path} does not fit in memory: {_in_short(error)}") from error
    except Exception as error:  # torch's reader stumbles over damaged bytes in many ways, AssertionError among them
        raise UserError(f"{path} is damaged or not a checkpoint ({_in_short(error)}); use an earlier one") from error
    if not isinstance(checkpoint, dict) or "sde_diffusion" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{path} was not written by sde_diffusion: it lacks its mark and cannot be used here")
    return checkpoint


def _in_short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:120]
