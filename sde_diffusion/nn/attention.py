"""Attention of the positions of an image or a sequence to one another, and to the tokens of a condition.

`attend` uses torch's fused kernels, which never store the matrix of weights. They have neither forward-mode derivatives
nor second ones, so that these are computed by the formula itself, without being asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_diffusion.nn.layers import STYLE, LayerStyle


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, fused wherever the derivatives that are asked for allow it.

    Args:
        q: [B, heads, N, d].
        k: [B, heads, M, d].
        v: [B, heads, M, d].
        mask: Which of the M may be attended to, bool, broadcast to [B, heads, N, M]; None: all.

    Returns:
        [B, heads, N, d].
    """
    q, k, v = _in_rows(q), _in_rows(k), _in_rows(v)
    if torch.compiler.is_compiling():  # compiled graphs have no second derivatives
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if _transformed(q, k, v):
        return _by_formula(q, k, v, mask)
    needs_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not needs_gradient or _first_only.get():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out: Tensor = _Fused.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
    return out


_first_only: ContextVar[bool] = ContextVar("first_only", default=False)


@contextmanager
def first_derivatives_only() -> Iterator[None]:
    """Within it, `attend` has no second derivatives, and keeps for the backward pass only what torch saves itself."""
    token = _first_only.set(True)
    try:
        yield
    finally:
        _first_only.reset(token)


def _in_rows(tensor: Tensor) -> Tensor:
    """With the d numbers of a position side by side in memory, as the fused kernels need them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _transformed(*tensors: Tensor) -> bool:
    """Whether forward-mode derivatives, or a transformation of torch.func, are being computed."""
    if any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in tensors):
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(each).tangent is not None for each in tensors)  # type: ignore[no-untyped-call]


def _by_formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class _Fused(torch.autograd.Function):
    """The fused kernel and its own backward pass; with create_graph=True, the backward pass of the formula."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with torch.enable_grad():
            inputs = q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()
            out = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], attn_mask=mask)
        ctx.save_for_backward(q, k, v)
        ctx.inputs, ctx.out, ctx.mask = inputs, out, mask
        return out.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return (*torch.autograd.grad(ctx.out, ctx.inputs, gradient, retain_graph=True), None)
        # Aliases, so that what goes through the other inputs is not counted twice.
        q, k, v = [
            each.view_as(each) if each.requires_grad else each.detach().requires_grad_() for each in ctx.saved_tensors
        ]
        out = _by_formula(q, k, v, ctx.mask)
        return (*torch.autograd.grad(out, (q, k, v), gradient.to(out.dtype), create_graph=True), None)


class SelfAttention(nn.Module):
    """Self-attention over the pixels with a residual: (x + W_o softmax(q k^T / sqrt(d)) v) / sqrt(2).

    q, k and v are linear in GroupNorm(x), d is the number of channels of a head, and W_o starts at 0. Without the
    style's `rescale` the sum is not divided.

    Args:
        channels: Number of channels of x.
        head_channels: Upper bound on d; the channels of a head are the largest divisor of channels within it.
        style: See `LayerStyle`.

    References:
        Vaswani et al. 2017, equation 1; Karras et al. 2022, appendix F.
    """

    def __init__(self, channels: int, head_channels: int = 64, style: LayerStyle = STYLE) -> None:
        super().__init__()
        self.heads = channels // head_width(channels, head_channels)
        self.norm = style.norm(channels)
        self.qkv = style.convolution(channels, 3 * channels, 1)
        self.output = style.convolution(channels, channels, 1, zero=True)
        self.gain = style.gain

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, *] to the same shape."""
        # Channels of qkv are ordered (q, k, v) x head x d; heads attend over the pixels.
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        q, k, v = qkv.unbind(1)
        out: Tensor = self.output(as_image(attend(q, k, v), x))
        return (x + out) * self.gain if self.gain != 1 else x + out


class CrossAttention(nn.Module):
    """Attention of the pixels to tokens, such as those of a text: (x + W_o softmax(q k^T / sqrt(d)) v) / sqrt(2).

    q is linear in GroupNorm(x), k and v are linear in LayerNorm(tokens), and W_o starts at 0.

    Args:
        channels: Number of channels of x.
        token_dim: Size of the tokens.
        head_channels: Upper bound on d; see `SelfAttention`.
        style: See `LayerStyle`.

    References:
        Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3.
    """

    def __init__(self, channels: int, token_dim: int, head_channels: int = 64, style: LayerStyle = STYLE) -> None:
        super().__init__()
        self.heads = channels // head_width(channels, head_channels)
        self.norm = style.norm(channels)
        self.norm_tokens = nn.LayerNorm(token_dim)
        self.query = style.convolution(channels, channels, 1)
        self.key_value = nn.Linear(token_dim, 2 * channels)
        self.output = style.convolution(channels, channels, 1, zero=True)
        self.gain = style.gain

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map x [B, C, *] to the same shape, given tokens [B, n, token_dim] and which there are, bool [B, n]."""
        q = self.query(self.norm(x)).flatten(2).unflatten(1, (self.heads, -1)).transpose(-1, -2)
        kv = self.key_value(self.norm_tokens(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        out: Tensor = self.output(as_image(attend(q, k, v, mask[:, None, None]), x))
        return (x + out) * self.gain if self.gain != 1 else x + out


def as_image(mixed: Tensor, x: Tensor) -> Tensor:
    """What heads return, [B, heads, N, d], as x [B, C, *], in x's order of memory (channels last or not)."""
    image = mixed.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)
    return image if x.stride(1) == 1 else image.contiguous()


def head_width(channels: int, most: int) -> int:
    """The largest number of channels of a head that divides `channels`, at most `most`."""
    return max(d for d in range(1, min(channels, most) + 1) if channels % d == 0)
