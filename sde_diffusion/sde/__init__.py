"""How data turns into noise: Gaussian paths, their exact kernels, and grids of times."""

from sde_diffusion.sde.base import SDE, Time, check_sde, expand, float64, on_device
from sde_diffusion.sde.grids import (
    BandLogSNR,
    BetaTable,
    GeometricLevels,
    Grid,
    KarrasRho,
    Levels,
    QuadraticTime,
    UniformLogSNR,
    UniformTime,
)
from sde_diffusion.sde.paths import EDMSDE, VESDE, RectifiedFlow
from sde_diffusion.sde.variance_preserving import VPSDE, CosineVPSDE, SubVPSDE

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "BandLogSNR",
    "BetaTable",
    "CosineVPSDE",
    "GeometricLevels",
    "Grid",
    "KarrasRho",
    "Levels",
    "QuadraticTime",
    "RectifiedFlow",
    "SubVPSDE",
    "Time",
    "UniformLogSNR",
    "UniformTime",
    "check_sde",
    "expand",
    "float64",
    "on_device",
]
