"""Score-based generative models through stochastic differential equations.

Names are imported when they are first asked for: `import sde_diffusion` costs next to nothing beyond `import torch`,
and Lightning is imported with the first `ScoreModel`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion._version import __version__

_HOMES = {
    "sde_diffusion.sde": (
        "SDE",
        "VPSDE",
        "SubVPSDE",
        "CosineVPSDE",
        "VESDE",
        "EDMSDE",
        "RectifiedFlow",
        "Grid",
        "UniformTime",
        "QuadraticTime",
        "UniformLogSNR",
        "KarrasRho",
        "BandLogSNR",
        "BetaTable",
        "GeometricLevels",
    ),
    "sde_diffusion.denoiser": (
        "Denoiser",
        "Prediction",
        "NetworkDenoiser",
        "GaussianDenoiser",
        "GaussianMixtureDenoiser",
        "EmpiricalDenoiser",
    ),
    "sde_diffusion.guidance": ("ClassifierFreeGuidance",),
    "sde_diffusion.nn": ("MLP", "UNet"),
    "sde_diffusion.sampling": (
        "Sampler",
        "Samples",
        "ODESampler",
        "SDESampler",
        "AncestralSampler",
        "PredictorCorrector",
        "AnnealedLangevin",
        "HeunSampler",
        "DPMSolver",
        "UniPC",
        "DEISSampler",
    ),
    "sde_diffusion.density": (
        "log_likelihood",
        "Likelihood",
        "elbo",
        "ELBO",
        "bits_per_dim",
        "UniformDequantisation",
        "GaussianPrior",
        "LevelDecoder",
        "GaussianDecoder",
        "Hutchinson",
        "HutchPlusPlus",
        "ExactTrace",
    ),
    "sde_diffusion.training": ("Objective", "DenoisingScoreMatching", "GenerativeModel", "ScoreModel", "EMA"),
    "sde_diffusion.errors": ("UserError",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from sde_diffusion.denoiser import (
        Denoiser,
        EmpiricalDenoiser,
        GaussianDenoiser,
        GaussianMixtureDenoiser,
        NetworkDenoiser,
        Prediction,
    )
    from sde_diffusion.density import (
        ELBO,
        ExactTrace,
        GaussianDecoder,
        GaussianPrior,
        Hutchinson,
        HutchPlusPlus,
        LevelDecoder,
        Likelihood,
        UniformDequantisation,
        bits_per_dim,
        elbo,
        log_likelihood,
    )
    from sde_diffusion.errors import UserError
    from sde_diffusion.guidance import ClassifierFreeGuidance
    from sde_diffusion.nn import MLP, UNet
    from sde_diffusion.sampling import (
        AncestralSampler,
        AnnealedLangevin,
        DEISSampler,
        DPMSolver,
        HeunSampler,
        ODESampler,
        PredictorCorrector,
        Sampler,
        Samples,
        SDESampler,
        UniPC,
    )
    from sde_diffusion.sde import (
        EDMSDE,
        SDE,
        VESDE,
        VPSDE,
        BandLogSNR,
        BetaTable,
        CosineVPSDE,
        GeometricLevels,
        Grid,
        KarrasRho,
        QuadraticTime,
        RectifiedFlow,
        SubVPSDE,
        UniformLogSNR,
        UniformTime,
    )
    from sde_diffusion.training import EMA, DenoisingScoreMatching, GenerativeModel, Objective, ScoreModel


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
