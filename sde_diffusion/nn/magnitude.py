"""Layers that preserve magnitudes: inputs of mean square 1 give outputs of mean square 1, whatever is learned.

Reference: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.conditions import Condition
from sde_diffusion.nn.attention import as_image, attend, head_width
from sde_diffusion.nn.embedding import BaseConditioning
from sde_diffusion.nn.features import PhasedFourierEmbedding
from sde_diffusion.nn.resampling import CONVOLVE


def normalised(x: Tensor, dims: int | list[int]) -> Tensor:
    """x / (1e-4 + rms(x)), the root of the mean square over `dims` (equation 66)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True)  # which has a derivative at 0
    unit: Tensor = x / (norm * math.sqrt(norm.numel() / x.numel()) + 1e-4)
    return unit


def mp_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.596, the root of its mean square for normal x (equation 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), t = balance (equation 88)."""
    return torch.lerp(a, b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Channels of a and of b, in the ratio of 1 - t to t of their total magnitudes (equation 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - balance, balance)
    return torch.cat([a * (scale * (1 - balance) / math.sqrt(n_a)), b * (scale * balance / math.sqrt(n_b))], 1)


class UnitWeights(nn.Module):
    """A linear layer or convolution without bias, whose weights are used as normalised for each output (equation 47).

    In training they are also replaced by these before each step (`normalise_weights`), so that the learning rate alone
    determines how fast they turn. `forward` never does that: copies, derivatives and recomputation are safe.

    Args:
        in_channels: Number of inputs.
        out_channels: Number of outputs.
        kernel: Size of the window; 0: a linear layer.
        dims: Number of dimensions of the window.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 0, dims: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *(kernel,) * (dims if kernel else 0)))

    @torch.no_grad()
    def normalise_weights(self) -> None:
        """Replace the weights by normalised ones (equation 66)."""
        self.weight.copy_(normalised(self.weight, list(range(1, self.weight.ndim))))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Apply the layer, with the weights times `gain`."""
        wide = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        unit = normalised(wide, list(range(1, wide.ndim))) * (gain / math.sqrt(wide[0].numel()))
        unit = unit.to(x.dtype)
        if unit.ndim == 2:
            return F.linear(x, unit)
        return CONVOLVE[unit.ndim - 2](x, unit, padding=unit.shape[-1] // 2)


class UnitConditioning(BaseConditioning):
    """The conditioning vector MP-SiLU(MP-sum(W f(c), sum_k e_k / sqrt(K))), of mean square 1.

    e_k is linear in the numbers that stand for a value, such as the indicators of classes, or else the kind's own
    embedding, normalised. That of a null value is 0.

    Args:
        dim: Size of the vector.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        conditions: The conditions by name.
        feature_dim: Number of features of c_noise.
        balance: Weight of the conditions, from 0 to 1.
    """

    input: UnitWeights

    def __init__(
        self,
        dim: int,
        n_classes: int,
        conditions: Mapping[str, Condition] | None,
        feature_dim: int,
        balance: float = 0.5,
    ) -> None:
        super().__init__(conditions, n_classes)
        self.features = PhasedFourierEmbedding(feature_dim)
        self.input = UnitWeights(feature_dim, dim)
        self.embeddings = nn.ModuleDict()
        for name, kind in self.conditions.items():
            self.embeddings[name] = UnitWeights(kind.n_numbers, dim) if kind.n_numbers else kind.zero_null(dim)
        self.balance = balance

    def forward(self, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """See `Conditioning.forward`."""
        given = self._given(label, conditions)
        h = self.input(self.features(c_noise.reshape(-1)).to(self.input.weight.dtype))
        if not self.embeddings:
            return mp_silu(h)
        total = torch.zeros_like(h)
        for name, embedding in self.embeddings.items():
            kind, value = self.conditions[name], given.get(name)
            value = kind.nulls(1, h.device) if value is None else value
            numbers = kind.numbers(value) if kind.n_numbers else None
            total = total + (normalised(embedding(value), 1) if numbers is None else embedding(numbers.to(h.dtype)))
        return mp_silu(mp_sum(h.expand_as(total), total / math.sqrt(len(self.embeddings)), self.balance))


class UnitSelfAttention(nn.Module):
    """MP-sum(x, W_o attention), of normalised queries, keys and values."""

    def __init__(self, channels: int, head_channels: int, balance: float, dims: int) -> None:
        super().__init__()
        self.heads, self.balance = channels // head_width(channels, head_channels), balance
        self.qkv = UnitWeights(channels, 3 * channels, 1, dims)
        self.output = UnitWeights(channels, channels, 1, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, *] to the same shape."""
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        q, k, v = normalised(qkv, -1).unbind(1)
        return mp_sum(x, self.output(as_image(attend(q, k, v), x)), self.balance)
