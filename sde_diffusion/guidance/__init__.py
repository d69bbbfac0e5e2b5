"""How do we steer a denoiser? Denoisers that wrap other denoisers, and the measurements that they may be given."""

from sde_diffusion.guidance.adjustment import Adjustment
from sde_diffusion.guidance.auto import AutoGuidance
from sde_diffusion.guidance.classifier import ClassifierGuidance
from sde_diffusion.guidance.classifier_free import ClassifierFreeGuidance, UntrainedError
from sde_diffusion.guidance.combination import Combination
from sde_diffusion.guidance.composition import Composition
from sde_diffusion.guidance.guess import Guess
from sde_diffusion.guidance.interval import NoiseInterval
from sde_diffusion.guidance.likelihoods import (
    LIKELIHOODS,
    JacobianFree,
    MeasurementLikelihood,
    MomentMatching,
    PointEstimate,
    PseudoInverse,
    RowSum,
)
from sde_diffusion.guidance.method import PosteriorMethod
from sde_diffusion.guidance.network_classifier import NetworkClassifier
from sde_diffusion.guidance.operators import (
    Blur,
    Downsample,
    GaussianBlur,
    Grey,
    Linearised,
    LinearOperator,
    Mask,
    Nonlinear,
    Operator,
)
from sde_diffusion.guidance.posterior import PosteriorDenoiser, Twist
from sde_diffusion.guidance.scale import GuidanceScale

__all__ = [
    "LIKELIHOODS",
    "Adjustment",
    "AutoGuidance",
    "Blur",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Combination",
    "Composition",
    "Downsample",
    "GaussianBlur",
    "Grey",
    "Guess",
    "GuidanceScale",
    "JacobianFree",
    "LinearOperator",
    "Linearised",
    "Mask",
    "MeasurementLikelihood",
    "MomentMatching",
    "NetworkClassifier",
    "NoiseInterval",
    "Nonlinear",
    "Operator",
    "PointEstimate",
    "PosteriorDenoiser",
    "PosteriorMethod",
    "PseudoInverse",
    "RowSum",
    "Twist",
    "UntrainedError",
]
