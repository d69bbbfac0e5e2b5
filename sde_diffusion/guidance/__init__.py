"""How do we steer a belief? Denoisers that wrap denoisers."""

from sde_diffusion.guidance.classifier_free import ClassifierFreeGuidance, UntrainedError

__all__ = ["ClassifierFreeGuidance", "UntrainedError"]
