"""Given x_t, what do we believe about x_0? Predictions, networks made denoisers, and closed forms."""

from sde_diffusion.denoiser.base import Denoiser, check_denoiser
from sde_diffusion.denoiser.exact import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.denoiser.gradients import InputGradient
from sde_diffusion.denoiser.network import (
    EDM,
    NOISE_CONDITIONINGS,
    PARAMETERIZATIONS,
    X0,
    Eps,
    LogSigma,
    NetworkDenoiser,
    NoiseConditioning,
    Parameterization,
    PathTime,
    Score,
    StepNumber,
    V,
    Velocity,
)
from sde_diffusion.denoiser.prediction import Prediction

__all__ = [
    "EDM",
    "NOISE_CONDITIONINGS",
    "PARAMETERIZATIONS",
    "X0",
    "Denoiser",
    "EmpiricalDenoiser",
    "Eps",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "InputGradient",
    "LogSigma",
    "NetworkDenoiser",
    "NoiseConditioning",
    "Parameterization",
    "PathTime",
    "Prediction",
    "Score",
    "StepNumber",
    "V",
    "Velocity",
    "check_denoiser",
]
