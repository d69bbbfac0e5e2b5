"""Given x_t, what do we believe about x_0? Predictions, networks made denoisers, and closed forms."""

from sde_diffusion.denoiser.base import Denoiser, check_denoiser
from sde_diffusion.denoiser.exact import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.denoiser.gradients import InputGradient
from sde_diffusion.denoiser.network import (
    NOISE_CONDITIONINGS,
    PARAMETERIZATIONS,
    NetworkDenoiser,
    NoiseConditioning,
    Parameterization,
)
from sde_diffusion.denoiser.prediction import Prediction

__all__ = [
    "NOISE_CONDITIONINGS",
    "PARAMETERIZATIONS",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "InputGradient",
    "NetworkDenoiser",
    "NoiseConditioning",
    "Parameterization",
    "Prediction",
    "check_denoiser",
]
