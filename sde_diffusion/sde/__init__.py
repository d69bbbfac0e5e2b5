"""How data turns into noise: Gaussian paths, their exact kernels, and grids of times."""

from sde_diffusion.sde.base import SDE, check_sde
from sde_diffusion.sde.coefficients import (
    Number,
    Time,
    add,
    add_,
    expand,
    float64,
    number,
    numbers,
    on_device,
    value_of,
)
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
from sde_diffusion.sde.learned import LearnedSDE
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
    "LearnedSDE",
    "Levels",
    "Number",
    "QuadraticTime",
    "RectifiedFlow",
    "SubVPSDE",
    "Time",
    "UniformLogSNR",
    "UniformTime",
    "add",
    "add_",
    "check_sde",
    "expand",
    "float64",
    "number",
    "numbers",
    "on_device",
    "value_of",
]
