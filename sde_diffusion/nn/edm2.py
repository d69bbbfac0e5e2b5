"""EDM2's U-Net, whose layers preserve magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_fraction, as_positive, check_count, check_sizes
from sde_diffusion.conditions import Condition
from sde_diffusion.nn.checks import (
    check_dropout,
    check_fits,
    check_image_or_signal_shape,
    check_resolutions,
    check_shape_beside,
)
from sde_diffusion.nn.magnitude import (
    UnitConditioning,
    UnitSelfAttention,
    UnitWeights,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
)
from sde_diffusion.nn.network import Network, check_arguments
from sde_diffusion.nn.patching import resized
from sde_diffusion.nn.resampling import Resampling


class EDM2UNet(Network):
    """U-Net without biases and group norms, in which weights and sums preserve magnitudes (EDM2, configuration G).

    Resolutions are as in `UNet`. The input has one more channel, of ones. The output is multiplied by a learned number
    that is 0 at first, and so is the effect of the conditioning vector on each block. The output of a sample depends on
    no other sample. Models that train it replace all weights by normalised ones before each step: see `UnitWeights`.

    Args:
        shape: Shape of one image, [C, height, width], or signal, [C, length]; any size, also odd, with averages.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        channels: Base number of channels; positive.
        channel_mult: Multiplier of each resolution, finest first; one or more positive integers.
        blocks: Residual blocks at each resolution of the encoder; at least 1. The decoder has one more.
        attention: Resolutions with self-attention, 0 the finest; the middle always has it.
        head_channels: Largest number of channels of an attention head; positive.
        dropout: Probability in the residual blocks, in [0, 1).
        conditions: The conditions by name; see `sde_diffusion.conditions`.
        label_balance: Weight of the conditions against the noise level, from 0 to 1.
        concat_balance: Weight of the encoder's outputs against the decoder's, from 0 to 1.
        residual_balance: Weight of residual branches and attention against what they are added to, from 0 to 1.
        clip: Largest value of a block's results; positive.
        resample_filter: Filter of halving and doubling; see `Resampling`.

    Raises:
        ValueError: If an argument is outside its range, or the size cannot be halved often enough.

    References:
        Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", figure 21.
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int = 0,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (2, 3),
        head_channels: int = 64,
        dropout: float = 0.0,
        conditions: Mapping[str, Condition] | None = None,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        residual_balance: float = 0.3,
        clip: float = 256.0,
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        self.shape = check_image_or_signal_shape(shape)
        dims, channels, blocks = len(self.shape) - 1, check_count("channels", channels), check_count("blocks", blocks)
        widths = [channels * m for m in check_sizes("channel_mult", channel_mult, "a list of positive integers")]
        check_resolutions(len(widths), attention=attention)
        self.resampling = Resampling(resample_filter, dims)
        check_fits(self.shape[1:], 1, len(widths) - 1, self.resampling.averages)
        self.conditioning = UnitConditioning(
            max(widths), n_classes, conditions, widths[0], as_fraction("label_balance", label_balance)
        )
        check_shape_beside(self.conditioning.shapes_beside, self.shape)
        self.concat_balance = as_fraction("concat_balance", concat_balance)
        block = partial(
            UnitBlock,
            embedding_dim=max(widths),
            head_channels=check_count("head_channels", head_channels),
            dropout=check_dropout(dropout),
            balance=as_fraction("residual_balance", residual_balance),
            clip=as_positive("clip", clip),
            dims=dims,
        )
        inputs = self.shape[0] + 1 + sum(beside[0] for beside in self.conditioning.shapes_beside)
        width = widths[0]
        self.input = UnitWeights(inputs, width, 3, dims)
        self.encoder, self.decoder, self.down, self.up = (nn.ModuleList() for _ in range(4))
        skips = [width]
        for resolution, out in enumerate(widths):
            if resolution:
                self.down.append(block(width, width, encodes=True))
                skips.append(width)
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(width, out, encodes=True, attention=resolution in attention))
                width = out
                skips.append(width)
            self.encoder.append(stage)
        self.middle = nn.ModuleList([block(width, width, attention=True), block(width, width)])
        for resolution, out in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(block(width + skips.pop(), out, attention=resolution in attention))
                width = out
            self.decoder.append(stage)
            if resolution:
                self.up.append(block(width, width))
        self.output = UnitWeights(width, self.shape[0], 3, dims)
        self.output_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Apply the network; computes in the type of its parameters (or autocast's), returns that of x.

        Args:
            x: [B, *shape], floating point, of mean square 1.
            c_noise: [] or [B], log(sigma/alpha)/4.
            label: [B], int64 in 0 ... n_classes; None: the null class throughout.
            **conditions: Values of the other conditions, [B, *] each; None: the null value throughout.

        Returns:
            [B, *shape], the type of x.

        Raises:
            ValueError: If a shape is wrong, or a condition is given that the network was built without.
        """
        check_arguments(x, c_noise, self.shape)
        embedding = self.conditioning(c_noise, label, **conditions)
        inputs = [x, torch.ones_like(x[:, :1])]
        inputs += [resized(value, self.shape[1:]) for value in self.conditioning.beside(x, label=label, **conditions)]
        h = self.input(torch.cat(inputs, 1).to(self.input.weight.dtype))
        skips = [h]
        for resolution, blocks in enumerate(self.encoder):
            if resolution:
                h = self.apply_block(self.down[resolution - 1], h, embedding, self.resampling.down)
                skips.append(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = self.apply_block(block, h, embedding)
                skips.append(h)
        for block in self.middle:
            h = self.apply_block(block, h, embedding)
        for stage, blocks in enumerate(self.decoder):
            if stage:
                up = partial(self.resampling.up, size=skips[-1].shape[2:])
                h = self.apply_block(self.up[stage - 1], h, embedding, up)
            for block in blocks:  # type: ignore[attr-defined]
                h = self.apply_block(block, mp_cat(h, skips.pop(), self.concat_balance), embedding)
        out: Tensor = self.output(h, self.output_gain)
        return out.to(x.dtype)


class UnitBlock(nn.Module):
    """Residual block that preserves magnitudes: MP-sum(x, Conv_2 MP-SiLU((1 + g a) Conv_1 MP-SiLU(x))).

    a is linear in the conditioning vector, and g is a learned number, 0 at first. In an encoder, x is normalised over
    the channels first. Attention follows, if any, and the result is clipped.

    Args:
        in_channels: Number of channels of x.
        out_channels: Number of channels of the result.
        encodes: Whether the block is the encoder's.
        attention: Whether to end with self-attention.
        embedding_dim: Size of the conditioning vector.
        head_channels: Of the attention.
        dropout: Probability.
        balance: Weight of the residual branch.
        clip: Largest value of the result.
        dims: 1 or 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        encodes: bool = False,
        attention: bool = False,
        embedding_dim: int,
        head_channels: int,
        dropout: float,
        balance: float,
        clip: float,
        dims: int,
    ) -> None:
        super().__init__()
        self.encodes, self.dropout, self.balance, self.clip = encodes, dropout, balance, clip
        self.conv_in = UnitWeights(out_channels if encodes else in_channels, out_channels, 3, dims)
        self.modulation = UnitWeights(embedding_dim, out_channels)
        self.modulation_gain = nn.Parameter(torch.zeros(()))
        self.conv_out = UnitWeights(out_channels, out_channels, 3, dims)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else UnitWeights(in_channels, out_channels, 1, dims)
        self.attention = UnitSelfAttention(out_channels, head_channels, balance, dims) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, resample: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Map [B, C_in, *] to [B, C_out, *], resampled."""
        x = x if resample is None else resample(x)
        x = normalised(self.skip(x), 1) if self.encodes else x
        scale = 1 + self.modulation(embedding, self.modulation_gain)
        h = mp_silu(self.conv_in(mp_silu(x)) * scale.reshape(*scale.shape, *(1,) * (x.ndim - 2)))
        h = self.conv_out(F.dropout(h, self.dropout, self.training))
        out: Tensor = self.attention(mp_sum(x if self.encodes else self.skip(x), h, self.balance))
        return out.clamp(-self.clip, self.clip)
