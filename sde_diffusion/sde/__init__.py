"""How does data turn into noise? Gaussian paths, their exact kernels, and grids of times.

Each choice of `sde=` is a file in `conf/sde/` that names a class, and each class has a module here:

    vp, subvp, cosine   VPSDE, SubVPSDE, CosineVPSDE   vp
    ve, edm             VESDE, EDMSDE                  ve
    rectified           RectifiedFlow                  rectified
    learned             LearnedVPSDE                   learned_vp

A path of your own is a subclass of `SDE` (`base`) with methods `log_alpha` and `log_sigma`, or of `LearnedSDE`
(`learned`) if it has parameters. `grids` and `noise_levels` have the times at which samplers step, DDPM's and NCSN's
among them, and `tuned` those that were found for one model; `coefficients` has functions for float64 coefficients and
the states that they multiply.
"""

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.checks import check_sde
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
    times,
    value_of,
)
from sde_diffusion.sde.grids import BandLogSNR, Grid, KarrasRho, QuadraticTime, UniformLogSNR, UniformTime
from sde_diffusion.sde.learned import LearnedSDE
from sde_diffusion.sde.learned_vp import KnotSchedule, LearnedVPSDE, LinearSchedule, MonotoneSchedule, NoiseSchedule
from sde_diffusion.sde.noise_levels import GRIDS, BetaTable, GeometricLevels, NoiseLevels, NoiseTable
from sde_diffusion.sde.rectified import RectifiedFlow
from sde_diffusion.sde.tuned import TunedGrid
from sde_diffusion.sde.ve import EDMSDE, VESDE
from sde_diffusion.sde.vp import VPSDE, CosineVPSDE, SubVPSDE

__all__ = [
    "EDMSDE",
    "GRIDS",
    "SDE",
    "VESDE",
    "VPSDE",
    "BandLogSNR",
    "BetaTable",
    "CosineVPSDE",
    "GeometricLevels",
    "Grid",
    "KarrasRho",
    "KnotSchedule",
    "LearnedSDE",
    "LearnedVPSDE",
    "LinearSchedule",
    "MonotoneSchedule",
    "NoiseLevels",
    "NoiseSchedule",
    "NoiseTable",
    "Number",
    "QuadraticTime",
    "RectifiedFlow",
    "SubVPSDE",
    "Time",
    "TunedGrid",
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
    "times",
    "value_of",
]
