"""Results of finished batches, kept in files until the final result is written, so that a killed run can resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import readable, writing


class Parts:
    """A folder of batches, each a file of tensors, in order.

    Args:
        folder: Where the files go.
        plan: What the results depend on, in plain containers; kept beside the files.
        overwrite: Begin anew where the files there belong to another plan.

    Raises:
        UserError: If the files in the folder belong to another plan, or are no parts at all.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], overwrite: bool = False) -> None:
        self.folder = folder
        self.note = note = folder / "plan.json"
        self.plan = wanted = json.dumps(plan, indent=2, sort_keys=True)
        if folder.exists() and (not note.is_file() or note.read_text() != wanted):
            if any(folder.glob("*.safetensors")) and not overwrite:
                raise UserError(
                    f"{folder} holds unfinished results of another command: resume that command (see "
                    f"{note}), choose another folder with out=DIR, or set overwrite=true"
                )
            foreign = sorted(path.name for path in folder.iterdir() if path != note and path.suffix != ".safetensors")
            if foreign:
                raise UserError(f"{folder} holds something else: {', '.join(foreign[:5])}; choose another folder")
            forget(folder)

    def load(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """The batches that are there, each read when it is come to.

        Args:
            *names: The tensors to read of each; none for all.

        Raises:
            UserError: If a file is damaged.
        """
        return (_read(path, names) for path in sorted(self.folder.glob("*.safetensors")))

    def add(self, start: int, part: dict[str, Tensor]) -> None:
        """Keep the batch that begins with item number `start`."""
        if not self.note.is_file():  # only now, so that a run that comes to nothing leaves nothing
            with writing(self.note) as temporary:
                temporary.write_text(self.plan)
        with writing(self.folder / f"{start:09d}.safetensors") as temporary:
            save_file(part, temporary)


def forget(folder: Path) -> None:
    """Remove the batches' files, once what was made of them is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    readable(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names or file.keys()}
    except Exception as error:  # safetensors raises a class of its own for each kind of damage
        raise UserError(f"{path} is damaged ({error}): remove its folder to begin anew") from error
