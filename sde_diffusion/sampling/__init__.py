"""How do we walk back to data? Samplers, reverse processes and per-sample noise."""

from sde_diffusion.sampling.ancestral import AncestralSampler
from sde_diffusion.sampling.base import Callback, Sampler, Samples, Walk
from sde_diffusion.sampling.deis import DEISSampler
from sde_diffusion.sampling.dpm_solver import DPMSolver, UniPC
from sde_diffusion.sampling.heun import HeunSampler
from sde_diffusion.sampling.langevin import AnnealedLangevin
from sde_diffusion.sampling.multistep import Coefficients, MultistepSampler
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.sampling.ode import ODESampler
from sde_diffusion.sampling.predictor_corrector import PredictorCorrector
from sde_diffusion.sampling.reverse import NoiseToSignal, ReverseProcess, State, UnitVariance
from sde_diffusion.sampling.sde import SDESampler

__all__ = [
    "AncestralSampler",
    "AnnealedLangevin",
    "Callback",
    "Coefficients",
    "DEISSampler",
    "DPMSolver",
    "HeunSampler",
    "MultistepSampler",
    "Noise",
    "NoiseToSignal",
    "ODESampler",
    "PredictorCorrector",
    "ReverseProcess",
    "SDESampler",
    "Sampler",
    "Samples",
    "State",
    "UniPC",
    "UnitVariance",
    "Walk",
]
