"""Raw networks, which know no SDE: `network(x, c_noise, label=None)` returns a tensor of x's shape and type."""

from .embedding import FourierEmbedding, PositionalEmbedding
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "FourierEmbedding", "PositionalEmbedding", "UNet"]
