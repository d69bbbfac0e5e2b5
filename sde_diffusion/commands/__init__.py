"""The commands: what they share in `app`, one module for each, and modules that load checkpoints, data and samples."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_diffusion.commands.comparison import Table
    from sde_diffusion.commands.described_operators import MaskToFill, MatrixFile
    from sde_diffusion.commands.made_folders import MadeFolders

__all__ = ["MadeFolders", "MaskToFill", "MatrixFile", "Table"]

_HOMES = {
    "MadeFolders": "made_folders",
    "MaskToFill": "described_operators",
    "MatrixFile": "described_operators",
    "Table": "comparison",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
