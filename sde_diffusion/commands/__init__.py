"""The commands: the app that they share, one module for each, and what reads their checkpoints, data and samples."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_diffusion.commands.comparison import Table

__all__ = ["Table"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.comparison"), name)
