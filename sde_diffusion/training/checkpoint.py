"""Reading of checkpoints: as data, never as code, with every entry checked before it is used."""

from __future__ import annotations

import logging
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sde_diffusion._version import __version__
from sde_diffusion.checks.overrides import setting
from sde_diffusion.checks.reprs import shown
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import readable
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.storage.seal import intact
from sde_diffusion.training.base import BaseModel
from sde_diffusion.training.checkpoint_contents import (
    FORMAT,
    check_contents,
    check_resumable,
)
from sde_diffusion.training.entries import ContentsError
from sde_diffusion.training.migration import migrate
from sde_diffusion.training.weights import check_moments, check_weights

log = logging.getLogger(__name__)


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this package. All code that uses the contents of such a file reads it with this function.

    The file is not trusted: its checksum and its sizes are verified, no code from it is run, every entry that is used
    must have the right type and structure (see `check_contents`), and paths are reduced to file names.

    Args:
        path: The file.
        map_location: Device of the tensors; see `torch.load`.

    Returns:
        The contents of the checkpoint, converted to the present layout.

    Raises:
        UserError: If the file is missing or damaged, contains more than data, or was written by another program or a
            later version.
    """
    path = _existing(path)
    _check_archive(path)
    checkpoint = _load(path, map_location)
    mark = checkpoint.get("sde_diffusion") if isinstance(checkpoint, dict) else None
    if mark is None or "state_dict" not in checkpoint:
        raise UserError(f"{path} was not written by sde_diffusion and cannot be used here")
    _check_version(mark, path)
    try:
        check_contents(checkpoint)
    except ContentsError as error:
        raise UserError(f"{path} does not describe its model and run: {error}; use an earlier checkpoint") from error
    return migrate(_with_paths_in(checkpoint, path.parent.absolute()))


def _with_paths_in(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the folders in the paths of Lightning's ModelCheckpoint by the checkpoint's own folder.

    The stored folders may be those of another machine, and Lightning removes files at these paths.

    Args:
        checkpoint: Checked contents; changed in place.
        folder: The folder of the checkpoint.
    """

    def here(path: str) -> str:
        name = re.split(r"[/\\]", path)[-1]
        return str(folder / name) if name not in ("", ".", "..") else ""

    for key, state in checkpoint.get("callbacks", {}).items():
        if key.startswith("ModelCheckpoint"):
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[name] = here(state.get(name, ""))
            scores = {here(path): score for path, score in state.get("best_k_models", {}).items()}
            state["best_k_models"] = {path: score for path, score in scores.items() if path}
            state["dirpath"] = str(folder)
    return checkpoint


def check_fit(model: BaseModel, checkpoint: Mapping[str, Any], path: str | Path, resuming: bool) -> None:
    """Check that the contents of a checkpoint fit a model.

    Args:
        model: The model.
        checkpoint: The contents.
        path: The file, for messages.
        resuming: Whether the run is to be resumed exactly, rather than only the model used.

    Raises:
        UserError: If they do not.
    """
    try:
        check_contents(checkpoint)
        for name in ("state_dict", "current_model_state"):
            if name in checkpoint:
                check_weights(model, checkpoint[name])
        if resuming:
            expect_resumable(checkpoint, path)
            check_moments(model, checkpoint["optimizer_states"][0])
    except ContentsError as error:
        raise UserError(f"{path} does not describe its model and run: {error}; use an earlier checkpoint") from error


def expect_resumable(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check that a run can be resumed exactly from checked contents.

    Raises:
        UserError: If something is missing.
    """
    try:
        check_resumable(checkpoint)
    except ContentsError as error:
        raise UserError(
            f"{path} has a model but not the full state of its run: {error}. The run cannot be resumed exactly; use it "
            "with sample, evaluate and likelihood, or train again without ckpt="
        ) from error


def _existing(path: Any) -> Path:
    """The path of an existing file.

    Raises:
        UserError: If there is no such file, or it cannot be opened.
    """
    if not isinstance(path, str | os.PathLike | int | float) or path is True:  # a file's name may be 7
        raise UserError(f"ckpt must be the path of a checkpoint; got {shown(path)}")
    path = Path(str(path))
    try:
        if path.is_dir():
            found = sorted(path.rglob("*.ckpt"))
            raise UserError(f"{path} is a folder; give a file" + (f", such as {found[-1]}" if found else ""))
        if not path.parent.is_dir():
            raise UserError(
                f"no checkpoint {path}: there is no folder {path.parent}; models of the Hugging Face hub are not "
                "downloaded: give the folder of a copy"
            )
        if not path.exists():
            there = ", ".join(sorted(p.name for p in path.parent.glob("*.ckpt")))
            raise UserError(f"no checkpoint {path}; the folder {path.parent} has {there or 'no checkpoints'}")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from error
    if path.suffix == ".npz":
        raise UserError(
            f"{path} contains arrays, not a checkpoint; evaluate takes such a file as {setting('samples', path)}"
        )
    return readable(path)


def _check_archive(path: Path) -> None:
    """Check that a file is an archive as torch writes them, is not damaged, and unpacks to no more than its size.

    Raises:
        UserError: If it is not.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":  # a pickle's first opcode
        raise UserError(
            f"{path} was not loaded: it is a pickle, which can run code; only checkpoints of sde_diffusion are read"
        )
    if start != b"PK":
        raise UserError(f"{path} is not a checkpoint, or is damaged: its first bytes are wrong; {_instead(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        is_intact = intact(path)
    except Exception as error:  # zipfile raises many kinds of errors on damaged files, such as NotImplementedError
        raise UserError(f"{path} is damaged ({in_short(error)}); {_instead(path)}") from error
    if not is_intact:
        raise UserError(f"{path} is damaged: its checksum is wrong; {_instead(path)}")
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(
            f"{path} was not loaded: it is compressed or claims to be larger than it is, unlike checkpoints; "
            f"{_instead(path)}"
        )


def _load(path: Path, map_location: Any) -> Any:
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # about other pickles, rejected below
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} contains more than data and was not loaded, since such a file can run code; only checkpoints "
            "written by sde_diffusion are read"
        ) from error
    except Exception as error:  # torch raises many kinds of errors on damaged files, such as AssertionError
        if ran_out(error):
            raise UserError(f"{path} does not fit in memory: {in_short(error)}") from error
        raise UserError(f"{path} is damaged or not a checkpoint ({in_short(error)}); {_instead(path)}") from error


def _check_version(mark: Any, path: Path) -> None:
    """Check that this version of the package can read a checkpoint.

    Raises:
        UserError: If its layout is a later one.
    """
    if not isinstance(mark, dict):
        return  # reported by `check_contents`
    version, layout = mark.get("version"), mark.get("format", 0)
    if isinstance(layout, int) and layout > FORMAT:
        raise UserError(
            f"{path} was written by sde_diffusion {shown(version)}, in a layout that this version, {__version__}, "
            "cannot read: install that version or a later one"
        )
    if isinstance(version, str) and _release(version) > _release(__version__):
        log.warning("%s was written by sde_diffusion %s; this is %s, an earlier version", path, version, __version__)


def _release(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d{1,9}", version)[:2]]


def _instead(path: Path) -> str:
    """What to use in place of a damaged checkpoint: last.ckpt or best.ckpt in its folder, if one is intact.

    Other files in the folder are not checked, since that means reading each of them completely.
    """
    for other in (path.with_name(name) for name in _USUAL if name != path.name):
        try:
            if other.is_file() and zipfile.is_zipfile(other) and intact(other):
                return f"{setting('ckpt', other)} is intact"
        except Exception:  # as damaged as this one
            continue
    return f"its folder has no intact {' or '.join(_USUAL)}: use a copy of it, or train again"


_USUAL = ("last.ckpt", "best.ckpt")


def in_short(error: BaseException) -> str:
    """The first sentence of an error's message."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if isinstance(error, ContentsError | UserError) else lines[0].split(". ")[0][:120]
