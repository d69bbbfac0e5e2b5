"""How do we steer a denoiser? Denoisers that wrap other denoisers, and the measurements that they may be given."""

from sde_diffusion.guidance.classifier_free import ClassifierFreeGuidance, UntrainedError
from sde_diffusion.guidance.likelihoods import (
    LIKELIHOODS,
    JacobianFree,
    MeasurementLikelihood,
    MomentMatching,
    PointEstimate,
    PseudoInverse,
    RowSum,
)
from sde_diffusion.guidance.operators import (
    Blur,
    Downsample,
    GaussianBlur,
    Grey,
    LinearOperator,
    Mask,
    Nonlinear,
    Operator,
)
from sde_diffusion.guidance.posterior import PosteriorDenoiser

__all__ = [
    "LIKELIHOODS",
    "Blur",
    "ClassifierFreeGuidance",
    "Downsample",
    "GaussianBlur",
    "Grey",
    "JacobianFree",
    "LinearOperator",
    "Mask",
    "MeasurementLikelihood",
    "MomentMatching",
    "Nonlinear",
    "Operator",
    "PointEstimate",
    "PosteriorDenoiser",
    "PseudoInverse",
    "RowSum",
    "UntrainedError",
]
