"""How good are the samples? Distances between samples and data, in the features of networks that ship along.

Every metric takes an extractor, is fed by `update(samples, real=...)`, and gives a figure by `compute()` and the figure
with a confidence interval by `interval()`; `difference(a, b)` compares two models.
"""

from sde_diffusion.metrics.features import Classifier, Pixels, extractor_names, load_extractor
from sde_diffusion.metrics.frechet import FrechetDistance, frechet_distance
from sde_diffusion.metrics.frechet_infinity import FrechetInfinity
from sde_diffusion.metrics.inception_score import InceptionScore
from sde_diffusion.metrics.intervals import Interval, difference
from sde_diffusion.metrics.measuring import Features, Measured, measure, values
from sde_diffusion.metrics.memorisation import Memorisation
from sde_diffusion.metrics.mmd import EnergyDistance, KernelDistance
from sde_diffusion.metrics.prdc import PRDC
from sde_diffusion.metrics.reference import ReferenceKey, ReferenceStatistics, fingerprint, reference_statistics
from sde_diffusion.metrics.wasserstein import SlicedWasserstein

__all__ = [
    "PRDC",
    "Classifier",
    "EnergyDistance",
    "Features",
    "FrechetDistance",
    "FrechetInfinity",
    "InceptionScore",
    "Interval",
    "KernelDistance",
    "Measured",
    "Memorisation",
    "Pixels",
    "ReferenceKey",
    "ReferenceStatistics",
    "SlicedWasserstein",
    "difference",
    "extractor_names",
    "fingerprint",
    "frechet_distance",
    "load_extractor",
    "measure",
    "reference_statistics",
    "values",
]
