"""Files with the results of finished batches, from which a killed run resumes, until the final result is written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import forget, read_json, readable, remove_leftovers, writing

_NAME = re.compile(r"(\d{9,})-(\d+)-([0-9a-f]{64})\.safetensors")
"""First item, number of items, and SHA-256 of the file."""


class Parts:
    """A folder of batches, each a file of tensors, in order and without gaps.

    Args:
        folder: Folder of the files.
        plan: Everything that the results depend on, for JSON; stored beside the files.
        overwrite: Whether to start again if the files in the folder belong to another plan.

    Attributes:
        done: Number of items in the files.

    Raises:
        UserError: If the files in the folder belong to another plan, one is missing, or they are no parts at all;
            or if the plan there is damaged, and `overwrite` is not set.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], overwrite: bool = False) -> None:
        self.folder = folder
        self.note = note = folder / "plan.json"
        self.plan = wanted = json.dumps({"parts": 3, **plan}, indent=2, sort_keys=True)  # 3: the version of this format
        remove_leftovers(folder)
        if folder.exists() and self._planned(overwrite) != wanted:
            if any(folder.glob("*.safetensors")) and not overwrite:
                raise UserError(
                    f"{folder} holds unfinished results of another command: resume that command (see "
                    f"{note}), choose another folder with out=DIR, or set overwrite=true"
                )
            foreign = sorted(path.name for path in folder.iterdir() if path != note and path.suffix != ".safetensors")
            if foreign:
                raise UserError(f"{folder} holds something else: {', '.join(foreign[:5])}; choose another folder")
            forget(folder)
        self.done = sum(n for _, n, _ in self._files())

    def load(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """Read and check the batches one by one.

        Args:
            *names: Names of the tensors to read; none for all.

        Raises:
            UserError: If a file is damaged or missing.
        """
        found = 0
        for path, n, digest in self._files():
            yield _read(path, digest, names)
            found += n
        if found != self.done:
            raise UserError(f"{self.folder}: of {self.done} items {self.done - found} are gone: files were removed")

    def add(self, n: int, part: dict[str, Tensor]) -> None:
        """Write the next batch, of n items.

        Raises:
            UserError: If it cannot be written, or the folder was deleted in the middle of the command.
        """
        if not self.note.is_file():  # only now, so that a run without results leaves no files
            with writing(self.note) as temporary:
                temporary.write_text(self.plan)
        content = save(part)
        digest = hashlib.sha256(content).hexdigest()
        with writing(self.folder / f"{self.done:09d}-{n}-{digest}.safetensors") as temporary:
            temporary.write_bytes(content)
        self.done += n

    def _planned(self, overwrite: bool) -> str | None:
        """The plan of the files in the folder, as text like `plan`; None if there is none to keep."""
        if not self.note.is_file():
            return None
        try:
            found = read_json(self.note, "remove its folder, choose another with out=DIR, or set overwrite=true")
        except UserError:
            if overwrite:
                return None
            raise
        return json.dumps(found, indent=2, sort_keys=True)

    def _files(self) -> list[tuple[Path, int, str]]:
        """Path, number of items and checksum of each file."""
        found, end = [], 0
        for path in sorted(self.folder.glob("*.safetensors")):
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[1]) != end:
                raise UserError(
                    f"{self.folder}: {path.name} does not follow the batches before it, of {end} items in all: files "
                    "were removed or renamed. Remove this folder to start again"
                )
            found.append((path, int(name[2]), name[3]))
            end += int(name[2])
        return found


def _read(path: Path, digest: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    readable(path)
    with path.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != digest:
            raise UserError(
                f"{path} is damaged: it is not what was written. Remove its folder and start the command again"
            )
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names or file.keys()}
