"""U-Net of the DDPM++ family for images of any size and number of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_count, check_sizes
from sde_diffusion.conditions import Condition
from sde_diffusion.nn.blocks import ResidualBlock, convolution, double, group_norm, halve
from sde_diffusion.nn.embedding import Conditioning, Network, check_arguments, check_dim, check_shape


class UNet(Network):
    """U-Net of residual blocks, after DDPM++ as simplified in EDM.

    The image is cut into patch x patch squares, whose pixels become channels (patch = 1: the image itself), H x W of
    them. Level l works at ceil(H / 2^l) x ceil(W / 2^l) with channels * channel_mult[l] channels. A level has `blocks`
    residual blocks in the encoder and `blocks + 1` in the decoder, which also take the encoder's outputs of that level;
    residual blocks halve and double the image between levels; two blocks stand in the middle. Residual sums are divided
    by sqrt(2). The last convolution starts at 0, and so does the output. Group norms alone: a sample's output depends
    on no other.

    Args:
        shape: Of one image, [C, height, width]; any sizes, odd ones too.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        patch: Side of the squares, at least 1; 2 costs about a quarter of 1. An image that they don't tile is padded
            with zeros on the right and below, and the output cropped.
        channels: Base number of channels; positive.
        channel_mult: Multiplier of each level, finest first; positive integers, one level or more.
        blocks: Residual blocks in a level of the encoder; at least 1.
        attention: Levels with self-attention, 0 the finest, after each block of the encoder and the last of the
            decoder; the middle has it too unless the list is empty. Memory and time grow as (H W)^2 of the level.
        head_channels: Largest number of channels of an attention head; positive.
        dropout: Probability in the residual blocks, in [0, 1).
        embedding_dim: Size of the conditioning vector; even, at least 4.
        embedding: Noise features, "positional", "ddpm" or "fourier", or a module that maps c_noise [N] to
            [N, embedding_dim].
        conditions: What the network is told of each sample, by name; see `sde_diffusion.conditions`.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Song et al. 2021, appendix H (DDPM++); Karras et al. 2022, appendix F (EDM).
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int = 0,
        patch: int = 1,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        head_channels: int = 64,
        dropout: float = 0.0,
        embedding_dim: int = 256,
        embedding: str | nn.Module = "positional",
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape, 3)
        patch, channels = check_count("patch", patch), check_count("channels", channels)
        blocks, head_channels = check_count("blocks", blocks), check_count("head_channels", head_channels)
        widths = [channels * m for m in check_sizes("channel_mult", channel_mult, "a list of positive integers")]
        if not isinstance(attention, list | tuple) or not all(level in range(len(widths)) for level in attention):
            raise ValueError(f"attention must list levels in 0 ... {len(widths) - 1}; got {attention!r}")
        dropout = as_number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        embedding_dim = check_dim(embedding_dim)
        block = partial(ResidualBlock, embedding_dim=embedding_dim, dropout=dropout, head_channels=head_channels)

        self.conditioning = Conditioning(embedding_dim, n_classes, embedding, conditions)
        self.patch = patch
        pixels = self.shape[0] * patch**2  # values in a square
        self.input = convolution(pixels, widths[0], 3)
        self.encoder, self.decoder, self.down, self.up = (nn.ModuleList() for _ in range(4))
        width = widths[0]
        skips = [width]  # channels of what the encoder leaves for the decoder
        for level, out in enumerate(widths):
            if level:
                self.down.append(block(width, width))
                skips.append(width)
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(width, out, attention=level in attention))
                width = out
                skips.append(width)
            self.encoder.append(stage)
        self.middle = nn.ModuleList([block(width, width, attention=bool(attention)), block(width, width)])
        for level, out in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for index in range(blocks + 1):
                attend = level in attention and index == blocks
                stage.append(block(width + skips.pop(), out, attention=attend))
                width = out
            self.decoder.append(stage)
            if level:
                self.up.append(block(width, width))
        self.norm = group_norm(width)
        self.output = convolution(width, pixels, 3, zero=True)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Apply the network; computes in the type of its parameters (or autocast's), returns that of x.

        Args:
            x: [B, C, height, width], floating point.
            c_noise: [] or [B], any real number that tells the noise level, such as log(sigma/alpha)/4.
            label: [B], int64 in 0 ... n_classes; None: the null class throughout.
            **conditions: Values of the other conditions, [B, *] each; None: the null value throughout.

        Returns:
            [B, C, height, width], the type of x.

        Raises:
            ValueError: If a shape is wrong, or a condition is given that the network was built without.
        """
        check_arguments(x, c_noise, self.shape)
        embedding = self.conditioning(c_noise, label, **conditions)
        height, width = self.shape[1:]
        padded = F.pad(x.to(self.input.weight.dtype), (0, -width % self.patch, 0, -height % self.patch))
        h = self.input(F.pixel_unshuffle(padded, self.patch))
        skips = [h]
        for level, blocks in enumerate(self.encoder):
            if level:
                h = self.down[level - 1](h, embedding, halve)
                skips.append(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for level, blocks in enumerate(self.decoder):
            if level:
                h = self.up[level - 1](h, embedding, partial(double, size=skips[-1].shape[-2:]))
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.output(F.silu(self.norm(h)))
        return F.pixel_shuffle(out, self.patch)[..., :height, :width].to(x.dtype)
