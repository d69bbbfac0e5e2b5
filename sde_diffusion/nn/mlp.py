"""Residual perceptron for vectors, points and tiny images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding import Conditioning, check_arguments, check_shape


class _Block(nn.Module):
    """h + W₂ SiLU(W₁ (scale ⊙ LayerNorm(h) + shift)), with scale and shift given by the noise level and the label."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)  # each block starts as the identity
        nn.init.zeros_(self.output.bias)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        normed = F.layer_norm(h, (self.width,))
        out: Tensor = self.output(F.silu(self.input(torch.addcmul(shift, normed, scale))))
        return h + out


class MLP(nn.Module):
    """Residual multilayer perceptron, modulated in each block by the noise level and the label.

    `network(x, c_noise, label=None)` flattens x to [B, D], D = Π shape, and computes

        h₀ = W_in x,    h_{k+1} = h_k + W₂ₖ SiLU(W₁ₖ ((1 + a_k) ⊙ LayerNorm(h_k) + b_k)),    out = W_out LayerNorm(h_K)

    with (a_k, b_k) linear in one vector embedded from c_noise and label (adaptive layer norm, Peebles & Xie 2023,
    section 3.2; one matrix product gives those of all blocks). W_out starts at 0, and so does the output. A sample's
    output depends on no other sample.

    Args:
        shape: of one sample, any number of dimensions.
        n_classes: labels are 0 … n_classes − 1 and n_classes is the null class; 0: no labels.
        width: of the hidden layers; positive.
        depth: number of residual blocks, two linear layers each; at least 1.
        embedding_dim: size of the conditioning vector; even, at least 4.
        embedding: noise features, "positional" or "fourier".

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int = 0,
        width: int = 512,
        depth: int = 3,
        embedding_dim: int = 64,
        embedding: str = "positional",
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        check_shape(self.shape)
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, got width={width}, depth={depth}")
        size = math.prod(self.shape)
        self.conditioning = Conditioning(embedding_dim, n_classes, embedding)
        self.modulation = nn.Linear(embedding_dim, depth * 2 * width)
        self.input = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Apply the network; computes in the type of its parameters (or autocast's), returns that of x.

        Args:
            x: [B, *shape], floating point.
            c_noise: [] or [B], any real number that tells the noise level, such as ¼·log(σ/α).
            label: int64 [B] in 0 … n_classes, or None for the null class throughout.

        Returns:
            [B, *shape], the type of x.

        Raises:
            ValueError: a wrong shape, or a label where n_classes = 0.
        """
        check_arguments(x, c_noise, self.shape)
        # One embedding serves all samples where c_noise is a scalar: [1, ...] broadcasts below.
        modulation = self.modulation(self.conditioning(c_noise, label))
        scales, shifts = modulation.unflatten(1, (2, len(self.blocks), -1)).unbind(1)
        h = self.input(x.flatten(1).to(self.input.weight.dtype))
        for block, scale, shift in zip(self.blocks, (1 + scales).unbind(1), shifts.unbind(1), strict=True):
            h = block(h, scale, shift)
        out: Tensor = self.output(self.norm(h))
        return out.view_as(x).to(x.dtype)
