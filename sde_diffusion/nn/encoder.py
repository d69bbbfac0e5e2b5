"""Encoder: the half of a U-Net that maps noisy data to a few numbers, such as the logits of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_count, check_sizes
from sde_diffusion.nn.blocks import ResidualBlock
from sde_diffusion.nn.embedding import Conditioning
from sde_diffusion.nn.features import check_dim
from sde_diffusion.nn.layers import convolution, group_norm
from sde_diffusion.nn.network import check_arguments, check_shape
from sde_diffusion.nn.patching import patchify
from sde_diffusion.nn.resampling import halve


class Encoder(nn.Module):
    """`network(x, c_noise)` -> [B, outputs]: the residual blocks of `UNet`'s encoder, then a linear layer.

    An image is cut into patches of patch x patch pixels, which become channels. Resolution l is halved l times, with
    channels * channel_mult[l] channels and `blocks` residual blocks, which a vector made of c_noise modulates. The
    linear layer takes all channels of all pixels of the last resolution. Data of any other shape than [C, height,
    width] are one pixel, with all their values as channels. Normalisation is by group norms only, so that the output of
    a sample depends on no other sample.

    Args:
        shape: Shape of one sample.
        outputs: Number of outputs, at least 1.
        patch: Side of the patches of an image, at least 1; no effect on other data.
        channels: Base number of channels; positive.
        channel_mult: Multiplier of each resolution, finest first; one or more positive integers.
        blocks: Residual blocks at each resolution, at least 1.
        dropout: Probability in the residual blocks, in [0, 1).
        embedding_dim: Size of the vector made of c_noise; even, at least 4.
        embedding: Noise features, a name in `sde_diffusion.nn.features.EMBEDDINGS`, or a module that maps c_noise [N]
            to [N, embedding_dim].

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", appendix H (the classifier).
    """

    casts_inputs = True

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        patch: int = 1,
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        dropout: float = 0.0,
        embedding_dim: int = 64,
        embedding: str | nn.Module = "positional",
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape)
        self.outputs = check_count("outputs", outputs)
        patch, channels, blocks = (
            check_count(name, value) for name, value in (("patch", patch), ("channels", channels), ("blocks", blocks))
        )
        widths = [channels * m for m in check_sizes("channel_mult", channel_mult, "a list of positive integers")]
        dropout = as_number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        block = partial(ResidualBlock, embedding_dim=check_dim(embedding_dim), dropout=dropout)
        self.conditioning = Conditioning(embedding_dim, 0, embedding)
        self.image = self.shape if len(self.shape) == 3 else (math.prod(self.shape), 1, 1)
        self.patch = patch if len(self.shape) == 3 else 1
        sizes = [-(-side // self.patch) for side in self.image[1:]]
        width = widths[0]
        self.input = convolution(self.image[0] * self.patch**2, width, 3)
        self.stages = nn.ModuleList()
        for resolution, out in enumerate(widths):
            stage = nn.ModuleList()
            for index in range(blocks):
                stage.append(block(width, out))
                width = out
                if resolution and not index:
                    sizes = [-(-side // 2) for side in sizes]
            self.stages.append(stage)
        self.norm = group_norm(width)
        self.output = nn.Linear(width * math.prod(sizes), self.outputs)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Apply the network; computes in the type of its parameters (or autocast's).

        Args:
            x: [B, *shape], floating point.
            c_noise: [] or [B], a function of the noise level, such as log(sigma/alpha)/4.

        Returns:
            [B, outputs], the type of x.

        Raises:
            ValueError: If a shape is wrong.
        """
        check_arguments(x, c_noise, self.shape)
        embedding = self.conditioning(c_noise)
        h = x.to(self.input.weight.dtype).reshape(-1, *self.image)
        h = self.input(patchify(h, self.patch))
        for resolution, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            for index, block in enumerate(stage):
                h = block(h, embedding, halve if resolution and not index else None)
        out: Tensor = self.output(F.silu(self.norm(h)).flatten(1))
        return out.to(x.dtype)
