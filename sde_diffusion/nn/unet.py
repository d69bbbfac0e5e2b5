"""U-Nets of the DDPM, DDPM++, NCSN++, ADM and EDM families for signals and images of any number of channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_choice, check_count, check_sizes
from sde_diffusion.conditions import Condition
from sde_diffusion.nn.blocks import OutputHead, ResidualBlock
from sde_diffusion.nn.checks import (
    check_dropout,
    check_fits,
    check_image_or_signal_shape,
    check_resolutions,
    check_shape_beside,
)
from sde_diffusion.nn.embedding import Conditioning
from sde_diffusion.nn.features import check_dim
from sde_diffusion.nn.layers import LayerStyle
from sde_diffusion.nn.network import Network, check_arguments
from sde_diffusion.nn.octaves import NoisyData, Octaves
from sde_diffusion.nn.patching import patchify, resized, unpatchify
from sde_diffusion.nn.resampling import PYRAMIDS, RESAMPLINGS, ConvolutionResampling, Resampling


class UNet(Network):
    """U-Net of residual blocks, whose options give DDPM, DDPM++, NCSN++, ADM and EDM's networks.

    The image is cut into H x W patches of patch x patch pixels, which become channels (patch = 1: the image itself).
    Resolution l is ceil(H / 2^l) x ceil(W / 2^l), with channels * channel_mult[l] channels. Each resolution has
    `blocks` residual blocks in the encoder and `blocks + 1` in the decoder, which also take the encoder's outputs of
    that resolution; residual blocks halve and double the image in between, and two blocks are in the middle. Residual
    sums are divided by sqrt(2). The last convolution, and with it the output, is initialised to 0. Normalisation is by
    group norms only, so that the output of a sample depends on no other sample. Signals [C, length] have one dimension
    in place of two.

    The defaults are DDPM++ as simplified in EDM, with scale and shift. `conf/network` holds the options of the
    published networks.

    Args:
        shape: Shape of one image, [C, height, width], or signal, [C, length]; any size, also odd, unless a filter or
            convolutions resample.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        patch: Side of the patches, at least 1; 2 costs about a quarter of 1. An image that they don't tile is padded
            with zeros on the right and below, and the output cropped.
        channels: Base number of channels; positive.
        channel_mult: Multiplier of each resolution, finest first; one or more positive integers.
        blocks: Residual blocks at each resolution of the encoder; at least 1.
        attention: Resolutions with self-attention, 0 the finest, after each block of the encoder and the last of the
            decoder; the middle has it too unless the list is empty. Time grows as (H W)^2 of the resolution.
        head_channels: Largest number of channels of an attention head; positive. None: one head.
        dropout: Probability in the residual blocks, in [0, 1).
        embedding_dim: Size of the conditioning vector; even, at least 4.
        embedding: Noise features, a name in `sde_diffusion.nn.features.EMBEDDINGS`, or a module that maps c_noise [N]
            to [N, feature_dim].
        conditions: The conditions by name; see `sde_diffusion.conditions`.
        octaves: Number of octaves of sines and cosines of the input, further inputs; at least 0. For likelihoods of
            data on levels, which depend on details that are too fine for the network otherwise; see
            `sde_diffusion.nn.octaves`.
        levels: Number of levels of the data, to which the octaves are tuned; None: the data have no levels. No effect
            without octaves.
        cross_attention: Resolutions whose pixels attend, after the same blocks as in `attention`, to the tokens of
            conditions that have some, such as a text's words; no effect if none has.
        stem_channels: Channels after the first convolution; None: channels * channel_mult[0].
        feature_dim: Number of features of the noise level; None: embedding_dim.
        condition_place: Where the conditions' embeddings are added: "hidden", "features" or "output"; see
            `Conditioning`.
        learned_null: Whether the null value of a condition has a learned embedding; if not, it is 0 (ADM).
        modulation: "scale_shift", "affine_scale_shift" (ADM) or "shift" (DDPM, EDM); see `LayerStyle`.
        norm_eps: Positive number in the group norms.
        rescale: Whether residual sums are divided by sqrt(2).
        resampling: "block": residual blocks halve and double (BigGAN); "convolution": convolutions do, those that
            halve with zeros on the right and below (DDPM); "symmetric_convolution": with zeros on all sides.
        resample_skip: Whether blocks that resample have a 1x1 convolution on the skip connection; only with
            resampling="block".
        resample_filter: Filter of halving and doubling, an even number of positive numbers: [1, 1], or [1, 3, 3, 1].
            Convolutions that halve are not filtered.
        encoder_type: What the encoder gets of the input at lower resolutions: "standard": nothing, "skip" or
            "residual" (NCSN++).
        decoder_type: "standard": the last resolution makes the output; "skip": the sum of all, doubled in size.
        decoder_attention: Where the decoder has self-attention: after the "last" block of a resolution, or after "all".
        learned_variance: Whether the last convolution has twice the channels; `forward` returns the first half.
        norm_groups: Number of groups of each group norm, a divisor of all numbers of channels; None: at most 32, of at
            least 4 channels.
        unit_range: Whether the first convolution is applied to (x + 1) / 2, for networks of images on [0, 1].

    Attributes:
        shape: That of the images, [C, height, width]. A trained network without attention can be given larger images:
            set another height and width. Its group norms are then over all of the larger image.

    Raises:
        ValueError: If an argument is outside its range, or the size cannot be halved often enough.

    References:
        Ho et al. 2020, appendix B (DDPM); Song et al. 2021, appendix H (DDPM++, NCSN++); Dhariwal & Nichol 2021 (ADM);
        Karras et al. 2022, appendix F (EDM).
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
        head_channels: int | None = 64,
        dropout: float = 0.0,
        embedding_dim: int = 256,
        embedding: str | nn.Module = "positional",
        conditions: Mapping[str, Condition] | None = None,
        octaves: int = 0,
        levels: int | None = None,
        cross_attention: Sequence[int] = (),
        stem_channels: int | None = None,
        feature_dim: int | None = None,
        condition_place: str = "hidden",
        learned_null: bool = True,
        modulation: str = "scale_shift",
        norm_eps: float = 1e-6,
        rescale: bool = True,
        resampling: str = "block",
        resample_skip: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        decoder_attention: str = "last",
        learned_variance: bool = False,
        norm_groups: int | None = None,
        unit_range: bool = False,
    ) -> None:
        super().__init__()
        self.shape = check_image_or_signal_shape(shape)
        self.patch, channels = check_count("patch", patch), check_count("channels", channels)
        blocks = check_count("blocks", blocks)
        widths = [channels * m for m in check_sizes("channel_mult", channel_mult, "a list of positive integers")]
        check_resolutions(len(widths), attention=attention, cross_attention=cross_attention)
        heads = max(widths) if head_channels is None else check_count("head_channels", head_channels)
        style = LayerStyle(len(self.shape) - 1, modulation, norm_eps, rescale, resample_skip, norm_groups)
        self.resampling = Resampling(resample_filter, style.dims)
        by_convolutions = RESAMPLINGS[check_choice("resampling", resampling, RESAMPLINGS)]
        pyramid = PYRAMIDS[check_choice("encoder_type", encoder_type, PYRAMIDS)]
        if style.resample_skip and by_convolutions is not None:
            raise ValueError(
                f"resample_skip is for blocks that resample, and with resampling={resampling} convolutions do: take "
                "resample_skip=false or resampling=block"
            )
        any_size = by_convolutions is None and self.resampling.averages and encoder_type != "residual"
        check_fits(self.shape[1:], self.patch, len(widths) - 1, any_size)
        after_all = check_choice("decoder_attention", decoder_attention, ("last", "all")) == "all"
        embedding_dim = check_dim(embedding_dim)
        self.conditioning = Conditioning(
            embedding_dim, n_classes, embedding, conditions, feature_dim, condition_place, learned_null
        )
        self.cross_attention = tuple(cross_attention) if self.conditioning.has_tokens else ()
        check_shape_beside(self.conditioning.shapes_beside, self.shape)
        token_dim = embedding_dim if self.cross_attention else None
        block = partial(
            ResidualBlock,
            embedding_dim=embedding_dim,
            dropout=check_dropout(dropout),
            head_channels=heads,
            style=style,
        )
        parts = _Parts(block, style, by_convolutions, tuple(attention), self.cross_attention, token_dim)
        area = self.patch**style.dims  # pixels of a patch
        pixels = self.shape[0] * area  # values of a patch
        self.octaves = Octaves(octaves, levels)
        self.takes_noisy_data = self.octaves.takes_noisy_data
        self.unit_range = check_bool("unit_range", unit_range)
        inputs = pixels * self.octaves.multiple + sum(beside[0] for beside in self.conditioning.shapes_beside) * area
        width = widths[0] if stem_channels is None else check_count("stem_channels", stem_channels)
        self.input = style.convolution(inputs, width, 3)
        self.encoder, self.decoder, self.down, self.up = (nn.ModuleList() for _ in range(4))
        self.pyramid, self.skip_outputs = nn.ModuleList(), nn.ModuleList()
        skips = [width]  # channels of what the encoder leaves for the decoder
        for resolution, out in enumerate(widths):
            if resolution:
                self.down.append(parts.down(width))
                if pyramid is not None:
                    self.pyramid.append(pyramid(inputs, width, style))
                    inputs = self.pyramid[-1].out_channels
                skips.append(width)
            before = [width, *[out] * (blocks - 1)]
            self.encoder.append(nn.ModuleList(parts.at(resolution, channels, out) for channels in before))
            width = out
            skips += [width] * blocks
        self.middle = nn.ModuleList(
            [block(width, width, attention=bool(attention), token_dim=token_dim), block(width, width)]
        )
        outputs = pixels * (2 if check_bool("learned_variance", learned_variance) else 1)
        summed = check_choice("decoder_type", decoder_type, ("standard", "skip")) == "skip"
        for resolution, out in reversed(list(enumerate(widths))):
            before = [channels + skips.pop() for channels in [width, *[out] * blocks]]
            *earlier, last = before
            stage = [parts.at(resolution, channels, out, attends=after_all, tokens=False) for channels in earlier]
            self.decoder.append(nn.ModuleList([*stage, parts.at(resolution, last, out)]))
            width = out
            if resolution:
                self.up.append(parts.up(width))
                if summed:
                    self.skip_outputs.append(OutputHead(width, outputs, style))
        self.norm = style.norm(width)
        self.output = style.convolution(width, outputs, 3, zero=True)

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
            x: [B, *shape], floating point.
            c_noise: [] or [B], a function of the noise level, such as log(sigma/alpha)/4.
            label: [B], int64 in 0 ... n_classes; None: the null class throughout.
            noisy_data: What the octaves are of, see `sde_diffusion.nn.octaves`; None: x.
            **conditions: Values of the other conditions, [B, *] each; None: the null value throughout.

        Returns:
            [B, *shape], the type of x.

        Raises:
            ValueError: If a shape is wrong, or a condition is given that the network was built without.
        """
        check_arguments(x, c_noise, self.shape)
        embedding = self.conditioning(c_noise, label, **conditions)
        tokens = self.conditioning.tokens(len(x), **conditions) if self.cross_attention else None
        inputs = self.octaves((x + 1) / 2 if self.unit_range else x, noisy_data)
        for value in self.conditioning.beside(x, label=label, **conditions):
            inputs = torch.cat([inputs, resized(value, self.shape[1:])], 1)
        pyramid = patchify(inputs.to(self.input.weight.dtype), self.patch)
        h = self.input(pyramid)
        skips = [h]
        for resolution, blocks in enumerate(self.encoder):
            if resolution:
                h = self.apply_block(self.down[resolution - 1], h, embedding, self.resampling.down)
                if len(self.pyramid):
                    pyramid, h = self.pyramid[resolution - 1](pyramid, h, self.resampling)
                skips.append(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = self.apply_block(block, h, embedding, tokens=tokens)
                skips.append(h)
        for block in self.middle:
            h = self.apply_block(block, h, embedding, tokens=tokens)
        image = None  # the output so far, where each resolution adds its own
        for stage, blocks in enumerate(self.decoder):
            size = skips[-1].shape[2:]
            if stage:
                if len(self.skip_outputs):
                    own = self.skip_outputs[stage - 1](h)
                    image = self.resampling.up(own if image is None else image + own, size)
                h = self.apply_block(self.up[stage - 1], h, embedding, partial(self.resampling.up, size=size))
            for block in blocks:  # type: ignore[attr-defined]
                h = self.apply_block(block, torch.cat([h, skips.pop()], dim=1), embedding, tokens=tokens)
        out: Tensor = self.output(F.silu(self.norm(h)))
        out = out if image is None else out + image
        return unpatchify(out, self.patch, self.shape[1:])[:, : self.shape[0]].to(x.dtype)


@dataclass(frozen=True)
class _Parts:
    """Makes the blocks of each resolution."""

    block: Callable[..., ResidualBlock]
    style: LayerStyle
    by_convolutions: ConvolutionResampling | None
    attention: tuple[int, ...]
    cross_attention: tuple[int, ...]
    token_dim: int | None

    def at(
        self, resolution: int, channels: int, out: int, *, attends: bool = True, tokens: bool = True
    ) -> ResidualBlock:
        """A block of a resolution, with the attention of that resolution unless told otherwise."""
        across = tokens and resolution in self.cross_attention
        token_dim = self.token_dim if across else None
        return self.block(channels, out, attention=attends and resolution in self.attention, token_dim=token_dim)

    def down(self, channels: int) -> nn.Module:
        """What halves the size."""
        if self.by_convolutions is None:
            return self.block(channels, channels, resamples=True)
        return self.by_convolutions.down(channels, self.style)

    def up(self, channels: int) -> nn.Module:
        """What doubles the size."""
        if self.by_convolutions is None:
            return self.block(channels, channels, resamples=True)
        return self.by_convolutions.up(channels, self.style)
