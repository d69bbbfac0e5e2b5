"""Raw networks, which know no SDE: `network(x, c_noise, **conditions)` returns a tensor of x's shape and type.

`Encoder` returns a few numbers for each sample instead, and `PatchDiscriminator` knows no noise.
"""

from sde_diffusion.nn.discriminator import PatchDiscriminator
from sde_diffusion.nn.dit import DiT
from sde_diffusion.nn.edm2 import EDM2UNet
from sde_diffusion.nn.encoder import Encoder
from sde_diffusion.nn.features import (
    FourierEmbedding,
    GaussianFourierEmbedding,
    PositionalEmbedding,
    TimestepEmbedding,
)
from sde_diffusion.nn.mlp import MLP
from sde_diffusion.nn.unet import UNet

__all__ = [
    "MLP",
    "DiT",
    "EDM2UNet",
    "Encoder",
    "FourierEmbedding",
    "GaussianFourierEmbedding",
    "PatchDiscriminator",
    "PositionalEmbedding",
    "TimestepEmbedding",
    "UNet",
]
