"""How do we steer a denoiser? Denoisers that wrap other denoisers."""

from sde_diffusion.guidance.classifier_free import ClassifierFreeGuidance, UntrainedError

__all__ = ["ClassifierFreeGuidance", "UntrainedError"]
