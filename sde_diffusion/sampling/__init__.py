"""How do we walk back to data? Samplers, reverse processes and per-sample noise."""

from sde_diffusion.sampling.ancestral import AncestralSampler
from sde_diffusion.sampling.base import Callback, Sampler, Samples, Walk
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.sampling.ode import ODESampler
from sde_diffusion.sampling.reverse import ReverseProcess
from sde_diffusion.sampling.sde import SDESampler

__all__ = [
    "AncestralSampler",
    "Callback",
    "Noise",
    "ODESampler",
    "ReverseProcess",
    "SDESampler",
    "Sampler",
    "Samples",
    "Walk",
]
