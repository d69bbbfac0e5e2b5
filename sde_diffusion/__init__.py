"""Score-based generative models through stochastic differential equations.

Names are imported when they are first used, so that `import sde_diffusion` is quick, and Lightning is imported only for
the names that need it, such as `ScoreModel`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion._version import __version__

_EXPORTS = {
    "sde_diffusion.sde": (
        "SDE",
        "VPSDE",
        "SubVPSDE",
        "CosineVPSDE",
        "VESDE",
        "EDMSDE",
        "RectifiedFlow",
        "LearnedSDE",
        "LearnedVPSDE",
        "Grid",
        "UniformTime",
        "QuadraticTime",
        "UniformLogSNR",
        "KarrasRho",
        "BandLogSNR",
        "BetaTable",
        "GeometricLevels",
        "TunedGrid",
    ),
    "sde_diffusion.denoiser": (
        "Denoiser",
        "Prediction",
        "NetworkDenoiser",
        "GaussianDenoiser",
        "GaussianMixtureDenoiser",
        "EmpiricalDenoiser",
    ),
    "sde_diffusion.guidance": (
        "ClassifierFreeGuidance",
        "ClassifierGuidance",
        "AutoGuidance",
        "Composition",
        "PosteriorDenoiser",
        "Mask",
        "Downsample",
        "Blur",
        "Grey",
        "LinearOperator",
        "Nonlinear",
    ),
    "sde_diffusion.nn": ("MLP", "UNet", "DiT", "EDM2UNet"),
    "sde_diffusion.conditions": ("Condition", "Label", "Measurement", "Text"),
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
        "Replacement",
        "RePaint",
        "TwistedSMC",
        "noised",
        "start_time",
        "tune_grid",
    ),
    "sde_diffusion.density": (
        "log_likelihood",
        "Likelihood",
        "elbo",
        "Bound",
        "bits_per_dim",
        "UniformDequantisation",
        "GaussianPrior",
        "LevelDecoder",
        "GaussianDecoder",
        "Hutchinson",
        "HutchPlusPlus",
        "ExactTrace",
    ),
    "sde_diffusion.variational": (
        "VAE",
        "HierarchicalVAE",
        "DiffusionChain",
        "VectorQuantizer",
        "FirstStage",
        "bound",
        "latent_bound",
    ),
    "sde_diffusion.text": ("HashedWords", "MiniLM", "RenderedCaptions"),
    "sde_diffusion.training": (
        "Objective",
        "DenoisingScoreMatching",
        "GenerativeModel",
        "LatentModel",
        "ScoreModel",
        "VariationalModel",
        "EMA",
    ),
    "sde_diffusion.pretrained": ("Pretrained",),
    "sde_diffusion.errors": ("UserError",),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULES, "__version__"]

if TYPE_CHECKING:
    from sde_diffusion.conditions import Condition, Label, Measurement, Text
    from sde_diffusion.denoiser import (
        Denoiser,
        EmpiricalDenoiser,
        GaussianDenoiser,
        GaussianMixtureDenoiser,
        NetworkDenoiser,
        Prediction,
    )
    from sde_diffusion.density import (
        Bound,
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
    from sde_diffusion.guidance import (
        AutoGuidance,
        Blur,
        ClassifierFreeGuidance,
        ClassifierGuidance,
        Composition,
        Downsample,
        Grey,
        LinearOperator,
        Mask,
        Nonlinear,
        PosteriorDenoiser,
    )
    from sde_diffusion.nn import MLP, DiT, EDM2UNet, UNet
    from sde_diffusion.pretrained import Pretrained
    from sde_diffusion.sampling import (
        AncestralSampler,
        AnnealedLangevin,
        DEISSampler,
        DPMSolver,
        HeunSampler,
        ODESampler,
        PredictorCorrector,
        RePaint,
        Replacement,
        Sampler,
        Samples,
        SDESampler,
        TwistedSMC,
        UniPC,
        noised,
        start_time,
        tune_grid,
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
        LearnedSDE,
        LearnedVPSDE,
        QuadraticTime,
        RectifiedFlow,
        SubVPSDE,
        TunedGrid,
        UniformLogSNR,
        UniformTime,
    )
    from sde_diffusion.text import HashedWords, MiniLM, RenderedCaptions
    from sde_diffusion.training import (
        EMA,
        DenoisingScoreMatching,
        GenerativeModel,
        LatentModel,
        Objective,
        ScoreModel,
        VariationalModel,
    )
    from sde_diffusion.variational import (
        VAE,
        DiffusionChain,
        FirstStage,
        HierarchicalVAE,
        VectorQuantizer,
        bound,
        latent_bound,
    )


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
