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
from sde_diffusion.nn.embedding import Conditioning, check_dim
from sde_diffusion.nn.network import Network, check_arguments, check_shape
from sde_diffusion.nn.octaves import NoisyData, Octaves


class UNet(Network):
    """U-Net of residual blocks, after DDPM++ as simplified in EDM.

    The image is cut into H x W squares of patch x patch pixels, which become channels (patch = 1: the image itself).
    Resolution l is ceil(H / 2^l) x ceil(W / 2^l), with channels * channel_mult[l] channels. Each resolution has
    `blocks` residual blocks in the encoder and `blocks + 1` in the decoder, which also take the encoder's outputs of
    that resolution; residual blocks halve and double the image in between, and two blocks are in the middle. Residual
    sums are divided by sqrt(2). The last convolution, and with it the output, is initialised to 0. Normalisation is by
    group norms only, so that the output of a sample depends on no other sample.

    Args:
        shape: Shape of one image, [C, height, width]; any size, also odd.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        patch: Side of the squares, at least 1; 2 costs about a quarter of 1. An image that they don't tile is padded
            with zeros on the right and below, and the output cropped.
        channels: Base number of channels; positive.
        channel_mult: Multiplier of each resolution, finest first; one or more positive integers.
        blocks: Residual blocks at each resolution of the encoder; at least 1.
        attention: Resolutions with self-attention, 0 the finest, after each block of the encoder and the last of the
            decoder; the middle has it too unless the list is empty. Memory and time grow as (H W)^2 of the resolution.
        head_channels: Largest number of channels of an attention head; positive.
        dropout: Probability in the residual blocks, in [0, 1).
        embedding_dim: Size of the conditioning vector; even, at least 4.
        embedding: Noise features, "positional", "ddpm" or "fourier", or a module that maps c_noise [N] to
            [N, embedding_dim].
        conditions: The conditions by name; see `sde_diffusion.conditions`.
        octaves: Number of octaves of sines and cosines of the input, further inputs; at least 0. For likelihoods of
            data on levels, which depend on details that are too fine for the network otherwise; see
            `sde_diffusion.nn.octaves`.
        levels: Number of levels of the data, to which the octaves are tuned; None: they are of no levels.
        cross_attention: Resolutions, in the same places as `attention`, at which pixels attend to the tokens of
            conditions that have some, such as a text's words; no effect if none has.

    Attributes:
        shape: That of the images, [C, height, width]. A trained network without attention can be given larger images:
            set another height and width. Its group norms are then over all of the larger image.

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
        octaves: int = 0,
        levels: int | None = None,
        cross_attention: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape, 3)
        patch, channels = check_count("patch", patch), check_count("channels", channels)
        blocks, head_channels = check_count("blocks", blocks), check_count("head_channels", head_channels)
        widths = [channels * m for m in check_sizes("channel_mult", channel_mult, "a list of positive integers")]
        for name, places in (("attention", attention), ("cross_attention", cross_attention)):
            if not isinstance(places, list | tuple) or not all(i in range(len(widths)) for i in places):
                raise ValueError(f"{name} must list resolutions in 0 ... {len(widths) - 1}; got {places!r}")
        dropout = as_number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {dropout}")
        embedding_dim = check_dim(embedding_dim)
        block = partial(ResidualBlock, embedding_dim=embedding_dim, dropout=dropout, head_channels=head_channels)

        self.conditioning = Conditioning(embedding_dim, n_classes, embedding, conditions)
        self.cross_attention = tuple(cross_attention) if self.conditioning.has_tokens else ()
        self.patch = patch
        pixels = self.shape[0] * patch**2  # values in a square
        shapes = self.conditioning.shapes_beside
        if wrong := [shape for shape in shapes if len(shape) != 3]:
            raise ValueError(f"conditions beside pictures must be [C, height, width]; got {list(wrong[0])}")
        self.octaves = Octaves(octaves, levels)
        inputs = pixels * self.octaves.multiple + sum(shape[0] for shape in shapes) * patch**2
        self.input = convolution(inputs, widths[0], 3)
        self.encoder, self.decoder, self.down, self.up = (nn.ModuleList() for _ in range(4))

        def told(resolution: int) -> int | None:
            return embedding_dim if resolution in self.cross_attention else None

        width = widths[0]
        skips = [width]  # channels of what the encoder leaves for the decoder
        for resolution, out in enumerate(widths):
            if resolution:
                self.down.append(block(width, width))
                skips.append(width)
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(width, out, attention=resolution in attention, token_dim=told(resolution)))
                width = out
                skips.append(width)
            self.encoder.append(stage)
        across = embedding_dim if self.cross_attention else None
        self.middle = nn.ModuleList(
            [block(width, width, attention=bool(attention), token_dim=across), block(width, width)]
        )
        for resolution, out in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for index in range(blocks + 1):
                last = index == blocks
                attend, across = resolution in attention and last, told(resolution) if last else None
                stage.append(block(width + skips.pop(), out, attention=attend, token_dim=across))
                width = out
            self.decoder.append(stage)
            if resolution:
                self.up.append(block(width, width))
        self.norm = group_norm(width)
        self.output = convolution(width, pixels, 3, zero=True)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        noisy_data: NoisyData | None = None,
        **conditions: Tensor | None,
    ) -> Tensor:
        """Apply the network; computes in the type of its parameters (or autocast's), returns that of x.

        Args:
            x: [B, C, height, width], floating point.
            c_noise: [] or [B], a function of the noise level, such as log(sigma/alpha)/4.
            label: [B], int64 in 0 ... n_classes; None: the null class throughout.
            noisy_data: What the octaves are of, see `sde_diffusion.nn.octaves`; None: x.
            **conditions: Values of the other conditions, [B, *] each; None: the null value throughout.

        Returns:
            [B, C, height, width], the type of x.

        Raises:
            ValueError: If a shape is wrong, or a condition is given that the network was built without.
        """
        check_arguments(x, c_noise, self.shape)
        embedding = self.conditioning(c_noise, label, **conditions)
        tokens = self.conditioning.tokens(len(x), **conditions) if self.cross_attention else None
        height, width = self.shape[1:]
        inputs = self.octaves(x, noisy_data)
        for value in self.conditioning.beside(x, label=label, **conditions):
            inputs = torch.cat([inputs, resized(value, (height, width))], 1)
        padded = F.pad(inputs.to(self.input.weight.dtype), (0, -width % self.patch, 0, -height % self.patch))
        h = self.input(F.pixel_unshuffle(padded, self.patch))
        skips = [h]
        for resolution, blocks in enumerate(self.encoder):
            if resolution:
                h = self.down[resolution - 1](h, embedding, halve)
                skips.append(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding, tokens=tokens)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding, tokens=tokens)
        for resolution, blocks in enumerate(self.decoder):
            if resolution:
                h = self.up[resolution - 1](h, embedding, partial(double, size=skips[-1].shape[-2:]))
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding, tokens=tokens)
        out: Tensor = self.output(F.silu(self.norm(h)))
        return F.pixel_shuffle(out, self.patch)[..., :height, :width].to(x.dtype)


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, C, h, w] at another size, [B, C, height, width], bilinear."""
    return values if tuple(values.shape[-2:]) == size else F.interpolate(values, size, mode="bilinear")
