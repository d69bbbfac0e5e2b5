"""How checkpoints reach the disk and come from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from sde_diffusion.storage.files import writing
from sde_diffusion.storage.seal import seal
from sde_diffusion.training.checkpoint import read_checkpoint

_HANDED_OVER = ".temp.ckpt"
"""Where Lightning's ddp_spawn has its processes leave the weights alone, for the one that waits for them."""


class SealedCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, with a checksum over every bit.

    Lightning's own (2.6) writes into TMPDIR and copies from there where that is another file system: killed while it
    copies, it leaves half a checkpoint in the place of a whole one, and a file in TMPDIR in any case. When its
    `_atomic_save` writes beside the target, the temporary file need no longer be ours; the checksum stays.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: If it cannot be written; the one that was there before is untouched then.
        """
        with writing(Path(path)) as temporary:
            with temporary.open("wb") as file:  # by Python, whose errors say what the system said
                torch.save(checkpoint, file)
            seal(temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, as data and checked; see `read_checkpoint`."""
        if Path(path).name == _HANDED_OVER:
            return dict(super().load_checkpoint(path, weights_only=True))
        return read_checkpoint(path, map_location="cpu" if callable(map_location) else map_location)
