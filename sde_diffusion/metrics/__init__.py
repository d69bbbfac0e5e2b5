"""How good are the samples? Distances between samples and data, in the features of networks that ship along."""

from sde_diffusion.metrics.features import Classifier, Pixels, extractor_names, load_extractor
from sde_diffusion.metrics.frechet import FrechetDistance, frechet_distance

__all__ = ["Classifier", "FrechetDistance", "Pixels", "extractor_names", "frechet_distance", "load_extractor"]
