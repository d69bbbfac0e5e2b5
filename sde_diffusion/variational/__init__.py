"""How do latent variables explain data? Variational autoencoders, hierarchies of them, and their bounds."""

from sde_diffusion.variational.amortisation import AmortisationGap, amortisation_gap
from sde_diffusion.variational.bounds import bound, latent_noise
from sde_diffusion.variational.chain import (
    Autoencoder,
    LatentVariable,
    LatentVariableModel,
    Posterior,
    PosteriorSample,
    SingleLatentAutoencoder,
    UsageCurves,
)
from sde_diffusion.variational.diffusion_chain import DiffusionChain
from sde_diffusion.variational.first_stage import FirstStage
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.hierarchy import HierarchicalVAE
from sde_diffusion.variational.inference import BottomUp, HierarchicalInference, TopDown
from sde_diffusion.variational.latent_bounds import latent_bound
from sde_diffusion.variational.networks import ConvHierarchy, MLPHierarchy
from sde_diffusion.variational.observation import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    ObservationModel,
    observation_for,
)
from sde_diffusion.variational.patches import PatchHierarchy
from sde_diffusion.variational.quantizer import Quantized, VectorQuantizer, perplexity
from sde_diffusion.variational.vae import MLPVAE, VAE, ConvVAE
from sde_diffusion.variational.vq_vae import VQVAE, ConvVQVAE

__all__ = [
    "MLPVAE",
    "VAE",
    "VQVAE",
    "AmortisationGap",
    "Autoencoder",
    "Bernoulli",
    "BottomUp",
    "Categorical",
    "ConvHierarchy",
    "ConvVAE",
    "ConvVQVAE",
    "DiagonalGaussian",
    "DiffusionChain",
    "DiscretizedLogistic",
    "FirstStage",
    "Gaussian",
    "HierarchicalInference",
    "HierarchicalVAE",
    "LatentVariable",
    "LatentVariableModel",
    "MLPHierarchy",
    "ObservationModel",
    "PatchHierarchy",
    "Posterior",
    "PosteriorSample",
    "Quantized",
    "SingleLatentAutoencoder",
    "TopDown",
    "UsageCurves",
    "VectorQuantizer",
    "amortisation_gap",
    "bound",
    "latent_bound",
    "latent_noise",
    "observation_for",
    "perplexity",
]
