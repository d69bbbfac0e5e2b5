"""Checkpoints of other programs as denoisers of this one, and back: diffusers, DiT, score_sde_pytorch, safetensors.

Files are read as data, never as code: safetensors, and torch files with weights_only=True.
"""

from sde_diffusion.pretrained.description import Description
from sde_diffusion.pretrained.pretrained import Pretrained
from sde_diffusion.pretrained.sources import recognises

__all__ = ["Description", "Pretrained", "recognises"]
