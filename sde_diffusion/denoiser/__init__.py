"""Given x_t, what do we believe about x_0? Predictions, networks made denoisers, and closed forms."""

from sde_diffusion.denoiser.base import Denoiser, Prediction, check_denoiser
from sde_diffusion.denoiser.exact import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.denoiser.network import (
    NOISE_CONDITIONINGS,
    PARAMETERIZATIONS,
    NetworkDenoiser,
    NoiseConditioning,
    Parameterization,
)

__all__ = [
    "NOISE_CONDITIONINGS",
    "PARAMETERIZATIONS",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "NetworkDenoiser",
    "NoiseConditioning",
    "Parameterization",
    "Prediction",
    "check_denoiser",
]
