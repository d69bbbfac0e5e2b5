"""Writing and reading of checkpoint files by Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from sde_diffusion.storage.files import writing
from sde_diffusion.storage.seal import seal
from sde_diffusion.training.checkpoint import read_checkpoint

_HANDED_OVER = ".temp.ckpt"
"""Name of the file in which the processes of Lightning's ddp_spawn leave the weights for the one that waits."""


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, with a checksum.

    Lightning's own class (2.6) writes into TMPDIR and then copies, if that is another file system: killed meanwhile, it
    leaves an incomplete checkpoint in place of the old one. Once its `_atomic_save` writes to the target's folder, this
    class is needed for the checksum only.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: If it cannot be written; an earlier file is then unchanged.
        """
        with writing(Path(path)) as temporary:
            with temporary.open("wb") as file:  # opened by Python, as its errors contain the system's
                torch.save(checkpoint, file)
            seal(temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read and check a checkpoint; see `read_checkpoint`."""
        if Path(path).name == _HANDED_OVER:
            return dict(super().load_checkpoint(path, weights_only=True))
        return read_checkpoint(path, map_location="cpu" if callable(map_location) else map_location)
