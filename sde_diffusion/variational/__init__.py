"""How do latent variables explain data? Variational autoencoders, hierarchies of them, and their bounds."""

from sde_diffusion.variational.bounds import bound
from sde_diffusion.variational.chain import Autoencoder, Inference, LatentVariableModel, Level
from sde_diffusion.variational.diffusion_chain import DiffusionChain
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.hierarchy import MarkovVAE, TopDownVAE
from sde_diffusion.variational.observation import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    ObservationModel,
)
from sde_diffusion.variational.vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "DiffusionChain",
    "DiscretizedLogistic",
    "Gaussian",
    "Inference",
    "LatentVariableModel",
    "Level",
    "MarkovVAE",
    "ObservationModel",
    "TopDownVAE",
    "bound",
]
