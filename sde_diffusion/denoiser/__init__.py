"""Given x_t, what do we believe about x_0? Predictions, networks made denoisers, and closed forms."""

from sde_diffusion.denoiser.base import Denoiser, check_denoiser, in_eval_mode
from sde_diffusion.denoiser.conditions import repeated
from sde_diffusion.denoiser.cuda_graphs import CUDAGraphs
from sde_diffusion.denoiser.exact import EmpiricalDenoiser
from sde_diffusion.denoiser.gradients import InputGradient, recordable
from sde_diffusion.denoiser.input_scale import INPUT_SCALES, InputScale, UnitInput, UnscaledInput
from sde_diffusion.denoiser.mixture import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.denoiser.mixture_posterior import MixturePosteriorDenoiser
from sde_diffusion.denoiser.network import NetworkDenoiser
from sde_diffusion.denoiser.noise_conditioning import (
    NOISE_CONDITIONINGS,
    LogNoiseLevel,
    LogSigma,
    NoiseConditioning,
    PathTime,
    ReversedStepNumber,
    StepNumber,
    TableStep,
)
from sde_diffusion.denoiser.parameterization import (
    EDM,
    PARAMETERIZATIONS,
    X0,
    Eps,
    Parameterization,
    Score,
    V,
    Velocity,
)
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.denoiser.raw_network import checkpoint_activations

__all__ = [
    "EDM",
    "INPUT_SCALES",
    "NOISE_CONDITIONINGS",
    "PARAMETERIZATIONS",
    "X0",
    "CUDAGraphs",
    "Denoiser",
    "EmpiricalDenoiser",
    "Eps",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "InputGradient",
    "InputScale",
    "LogNoiseLevel",
    "LogSigma",
    "MixturePosteriorDenoiser",
    "NetworkDenoiser",
    "NoiseConditioning",
    "Parameterization",
    "PathTime",
    "Prediction",
    "ReversedStepNumber",
    "Score",
    "StepNumber",
    "TableStep",
    "UnitInput",
    "UnscaledInput",
    "V",
    "Velocity",
    "check_denoiser",
    "checkpoint_activations",
    "in_eval_mode",
    "recordable",
    "repeated",
]
