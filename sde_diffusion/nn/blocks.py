"""Building blocks of convolutional networks: residual block, self-attention, halving and doubling of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def halve(x: Tensor) -> Tensor:
    """Average 2x2 windows, smaller ones at the border: [B, C, H, W] to [B, C, ceil(H/2), ceil(W/2)]."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def double(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat each pixel 2x2 and crop to size (H, W): from the size (ceil(H/2), ceil(W/2)) that `halve` returns."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., : size[0], : size[1]]


def convolution(in_channels: int, out_channels: int, kernel: int, *, zero: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size: odd kernel, bias 0, Xavier-uniform weights (EDM, DDPM++) or zeros."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    if zero:
        nn.init.zeros_(conv.weight)
    else:
        nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # typed optional, there by default
    return conv


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """A group norm for any number of channels: at most 32 groups, of at least 4 channels if there are 4.

    The number of groups is the largest common divisor of channels and min(32, channels // 4), at least 1.
    """
    return nn.GroupNorm(math.gcd(channels, min(32, channels // 4) or 1), channels, eps=1e-6, affine=affine)


class SelfAttention(nn.Module):
    """Self-attention over the pixels with a residual: (x + W_o softmax(q k^T / sqrt(d)) v) / sqrt(2).

    q, k and v are linear in GroupNorm(x), d is the number of channels of a head, and W_o starts at 0.

    Args:
        channels: Number of channels of x.
        head_channels: Upper bound on d; the channels of a head are the largest divisor of channels within it.

    References:
        Vaswani et al. 2017, equation 1; Karras et al. 2022, appendix F.
    """

    def __init__(self, channels: int, head_channels: int = 64) -> None:
        super().__init__()
        self.heads = channels // _head_width(channels, head_channels)
        self.norm = group_norm(channels)
        self.qkv = convolution(channels, 3 * channels, 1)
        self.output = convolution(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        # Channels of qkv are ordered (q, k, v) x head x d; heads attend over the H W pixels.
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        q, k, v = qkv.unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.output(mixed.transpose(-1, -2).reshape(x.shape))
        return (x + out) * math.sqrt(0.5)


class CrossAttention(nn.Module):
    """Attention of the pixels to tokens, such as those of a text: (x + W_o softmax(q k^T / sqrt(d)) v) / sqrt(2).

    q is linear in GroupNorm(x), k and v are linear in LayerNorm(tokens), and W_o starts at 0.

    Args:
        channels: Number of channels of x.
        token_dim: Size of the tokens.
        head_channels: Upper bound on d; see `SelfAttention`.

    References:
        Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3.
    """

    def __init__(self, channels: int, token_dim: int, head_channels: int = 64) -> None:
        super().__init__()
        self.heads = channels // _head_width(channels, head_channels)
        self.norm = group_norm(channels)
        self.norm_tokens = nn.LayerNorm(token_dim)
        self.query = convolution(channels, channels, 1)
        self.key_value = nn.Linear(token_dim, 2 * channels)
        self.output = convolution(channels, channels, 1, zero=True)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map x [B, C, H, W] to the same shape, given tokens [B, n, token_dim] and which there are, bool [B, n]."""
        q = self.query(self.norm(x)).flatten(2).unflatten(1, (self.heads, -1)).transpose(-1, -2)
        kv = self.key_value(self.norm_tokens(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        out: Tensor = self.output(mixed.transpose(-1, -2).reshape(x.shape))
        return (x + out) * math.sqrt(0.5)


def _head_width(channels: int, most: int) -> int:
    return max(d for d in range(1, min(channels, most) + 1) if channels % d == 0)


class ResidualBlock(nn.Module):
    """Residual block of DDPM++ and EDM, modulated by a conditioning vector.

    With R a resampling of the image (or the identity), S a 1x1 convolution if the number of channels changes (else the
    identity) and (a, b) linear in the conditioning vector,

        h = Conv_1(R SiLU(GroupNorm(x))),  h = Conv_2(dropout(SiLU((1 + a) GroupNorm(h) + b))),  (S R x + h) / sqrt(2),

    followed by self-attention if `attention`, and by cross-attention if `token_dim`. Conv_2 is initialised to 0.

    Args:
        in_channels: Number of channels of x.
        out_channels: Number of channels of the result.
        embedding_dim: Size of the conditioning vector.
        attention: Whether to end with a `SelfAttention`.
        dropout: Probability in [0, 1).
        head_channels: Of the attention.
        token_dim: Size of the tokens to attend to; None: none.

    References:
        Song et al. 2021, appendix H (DDPM++); Karras et al. 2022, appendix F (EDM).
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
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(in_channels)
        self.conv_in = convolution(in_channels, out_channels, 3)
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels)
        self.norm_out = group_norm(out_channels, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = convolution(out_channels, out_channels, 3, zero=True)
        self.skip = nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1)
        self.attention = SelfAttention(out_channels, head_channels) if attention else nn.Identity()
        self.cross_attention = None if token_dim is None else CrossAttention(out_channels, token_dim, head_channels)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        resample: Callable[[Tensor], Tensor] | None = None,
        tokens: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: [B, C_in, H, W].
            embedding: [B, embedding_dim], or [1, embedding_dim] for one vector for all samples.
            resample: `halve`, or `double` with its size; None keeps the size.
            tokens: Tokens [B, n, token_dim] and which there are, bool [B, n], for a block with cross-attention.

        Returns:
            [B, C_out, H', W'].
        """
        h = F.silu(self.norm_in(x))
        if resample is not None:
            h, x = resample(h), resample(x)
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm_out(self.conv_in(h)), 1 + scale))
        h = self.conv_out(self.dropout(h))
        out: Tensor = self.attention((self.skip(x) + h) * math.sqrt(0.5))
        if self.cross_attention is not None and tokens is not None:
            out = self.cross_attention(out, *tokens)
        return out
