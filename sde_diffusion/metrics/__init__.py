"""How good are the samples? Distances between samples and data, in the features of pixels or of a network.

Every metric takes an extractor and is a `torchmetrics.Metric`: `update(imgs, real=...)` adds samples and `compute()`
returns the value. `interval(metric)` returns the value with a confidence interval (`FrechetDistance` needs
keep_features=True for it), `difference(a, b)` compares two models, and `measure` takes several metrics at once.

`rank_histogram` and `coverage` tell whether draws given measurements are calibrated, where the truth is known.

A metric of your own is a subclass of `FeatureMetric`. To be used by `evaluate`, it needs a file in `conf/metrics/`.
"""

from sde_diffusion.metrics.alignment import TwoTower
from sde_diffusion.metrics.base import FAKE, REAL, TRAIN, FeatureMetric
from sde_diffusion.metrics.calibration import Coverage, RankHistogram, coverage, rank_histogram
from sde_diffusion.metrics.features import Classifier, Pixels, extractor_names, load_extractor, untrained_name
from sde_diffusion.metrics.frechet import FrechetDistance, frechet_distance
from sde_diffusion.metrics.frechet_infinity import FrechetInfinity
from sde_diffusion.metrics.inception_score import InceptionScore, Probabilities
from sde_diffusion.metrics.intervals import Interval, IntervalSettings, difference, interval, report
from sde_diffusion.metrics.measuring import (
    DerivedExtractor,
    Features,
    Measured,
    measure,
    measure_differences,
    point_estimates,
)
from sde_diffusion.metrics.memorisation import Memorisation
from sde_diffusion.metrics.mmd import EnergyDistance, KernelDistance
from sde_diffusion.metrics.prdc import PRDC
from sde_diffusion.metrics.reference import ReferenceKey, ReferenceStatistics, fingerprint, reference_statistics
from sde_diffusion.metrics.untrained import PrincipalComponents, RandomConvolutions
from sde_diffusion.metrics.wasserstein import SlicedWasserstein

__all__ = [
    "FAKE",
    "PRDC",
    "REAL",
    "TRAIN",
    "Classifier",
    "Coverage",
    "DerivedExtractor",
    "EnergyDistance",
    "FeatureMetric",
    "Features",
    "FrechetDistance",
    "FrechetInfinity",
    "InceptionScore",
    "Interval",
    "IntervalSettings",
    "KernelDistance",
    "Measured",
    "Memorisation",
    "Pixels",
    "PrincipalComponents",
    "Probabilities",
    "RandomConvolutions",
    "RankHistogram",
    "ReferenceKey",
    "ReferenceStatistics",
    "SlicedWasserstein",
    "TwoTower",
    "coverage",
    "difference",
    "extractor_names",
    "fingerprint",
    "frechet_distance",
    "interval",
    "load_extractor",
    "measure",
    "measure_differences",
    "point_estimates",
    "rank_histogram",
    "reference_statistics",
    "report",
    "untrained_name",
]
