"""How likely is x? Exact log-likelihoods, evidence lower bounds, dequantisation and bits per dimension."""

from sde_diffusion.density.bound import Bound
from sde_diffusion.density.decoders import Decoder, GaussianDecoder, LevelDecoder
from sde_diffusion.density.dequantisation import UniformDequantisation, bits_per_dim
from sde_diffusion.density.likelihood import Likelihood, log_likelihood
from sde_diffusion.density.lower_bound import best_t_end, elbo
from sde_diffusion.density.prior import GaussianPrior, Prior
from sde_diffusion.density.trace import ExactTrace, Hutchinson, HutchPlusPlus, Trace

__all__ = [
    "Bound",
    "Decoder",
    "ExactTrace",
    "GaussianDecoder",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "LevelDecoder",
    "Likelihood",
    "Prior",
    "Trace",
    "UniformDequantisation",
    "best_t_end",
    "bits_per_dim",
    "elbo",
    "log_likelihood",
]
