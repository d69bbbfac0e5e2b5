"""Residual blocks of convolutional networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.nn.attention import CrossAttention, SelfAttention
from sde_diffusion.nn.layers import STYLE, LayerStyle


class ResidualBlock(nn.Module):
    """Residual block of DDPM, ADM, DDPM++ and EDM, modulated by a conditioning vector.

    With R a resampling of the image (or the identity), S a 1x1 convolution if the number of channels changes (else the
    identity) and (a, b) linear in the conditioning vector,

        h = Conv_1(R SiLU(GroupNorm(x))),  h = Conv_2(dropout(SiLU((1 + a) GroupNorm(h) + b))),  (S R x + h) / sqrt(2),

    followed by self-attention if `attention`, and by cross-attention if `token_dim`. Conv_2 is initialised to 0. The
    style says what is done otherwise: GroupNorm(h + b), or no division.

    Args:
        in_channels: Number of channels of x.
        out_channels: Number of channels of the result.
        embedding_dim: Size of the conditioning vector.
        attention: Whether to end with a `SelfAttention`.
        dropout: Probability in [0, 1).
        head_channels: Of the attention.
        token_dim: Size of the tokens to attend to; None: none.
        resamples: Whether `forward` is given a resampling; the style may then want a convolution S.
        style: See `LayerStyle`.

    References:
        Ho et al. 2020, appendix B (DDPM); Dhariwal & Nichol 2021 (ADM); Song et al. 2021, appendix H (DDPM++); Karras
        et al. 2022, appendix F (EDM).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        *,
        attention: bool = False,
        dropout: float = 0.0,
        head_channels: int = 64,
        token_dim: int | None = None,
        resamples: bool = False,
        style: LayerStyle = STYLE,
    ) -> None:
        super().__init__()
        self.shifts = style.modulation == "shift"
        self.norm_in = style.norm(in_channels)
        self.conv_in = style.convolution(in_channels, out_channels, 3)
        self.modulation = nn.Linear(embedding_dim, out_channels if self.shifts else 2 * out_channels)
        self.norm_out = style.norm(out_channels, affine=style.modulation != "scale_shift")
        self.dropout = nn.Dropout(dropout)
        self.conv_out = style.convolution(out_channels, out_channels, 3, zero=True)
        same = in_channels == out_channels and not (resamples and style.resample_skip)
        self.skip = nn.Identity() if same else style.convolution(in_channels, out_channels, 1)
        self.attention = SelfAttention(out_channels, head_channels, style) if attention else nn.Identity()
        self.cross_attention = (
            None if token_dim is None else CrossAttention(out_channels, token_dim, head_channels, style)
        )
        self.gain = style.gain

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        resample: Callable[[Tensor], Tensor] | None = None,
        tokens: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: [B, C_in, *].
            embedding: [B, embedding_dim], or [1, embedding_dim] for one vector for all samples.
            resample: `halve`, or `double` with its size; None keeps the size.
            tokens: Tokens [B, n, token_dim] and which there are, bool [B, n], for a block with cross-attention.

        Returns:
            [B, C_out, *], resampled.
        """
        h = F.silu(self.norm_in(x))
        if resample is not None:
            h, x = resample(h), resample(x)
        modulation = self.modulation(embedding)
        modulation = modulation.reshape(*modulation.shape, *(1,) * (x.ndim - 2))
        h = self.conv_in(h)
        if self.shifts:
            h = F.silu(self.norm_out(h + modulation))
        else:
            scale, shift = modulation.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        h = self.skip(x) + self.conv_out(self.dropout(h))
        out: Tensor = self.attention(h * self.gain if self.gain != 1 else h)
        if self.cross_attention is not None and tokens is not None:
            out = self.cross_attention(out, *tokens)
        return out


class OutputHead(nn.Module):
    """Features as an image: Conv(SiLU(GroupNorm(h))); the convolution starts at 0."""

    def __init__(self, channels: int, out_channels: int, style: LayerStyle) -> None:
        super().__init__()
        self.norm = style.norm(channels)
        self.output = style.convolution(channels, out_channels, 3, zero=True)

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, C, *] to [B, out_channels, *]."""
        out: Tensor = self.output(F.silu(self.norm(h)))
        return out
