"""Residual perceptron for vectors, points and tiny images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_count
from sde_diffusion.conditions import Condition
from sde_diffusion.nn.embedding import Conditioning
from sde_diffusion.nn.features import check_dim
from sde_diffusion.nn.network import Network, check_arguments, check_shape
from sde_diffusion.nn.octaves import NoisyData, Octaves


class _Block(nn.Module):
    """h + W_2 SiLU(W_1 (scale LayerNorm(h) + shift)), scale and shift given by the noise level and the conditions."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.dropout = dropout
        self.input = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)  # each block starts as the identity
        nn.init.zeros_(self.output.bias)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        normed = F.layer_norm(h, (self.width,))
        inner = F.silu(self.input(torch.addcmul(shift, normed, scale)))
        if self.dropout and self.training:
            inner = F.dropout(inner, self.dropout)
        out: Tensor = self.output(inner)
        return h + out


class MLP(Network):
    """Residual multilayer perceptron, modulated in each block by the noise level and the conditions.

    `network(x, c_noise, label=None, ...)` flattens x to [B, D], D the product of shape, and computes

        h_0 = W_in x,   h_{k+1} = h_k + W_2k SiLU(W_1k ((1 + a_k) LayerNorm(h_k) + b_k)),   out = W_out LayerNorm(h_K)

    with (a_k, b_k) linear in an embedding of c_noise and the conditions (adaptive layer norm; one matrix product
    computes those of all blocks). W_out, and with it the output, is initialised to 0. The output of a sample depends on
    no other sample.

    Args:
        shape: Shape of one sample, of any number of dimensions.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        width: Width of the hidden layers; positive.
        depth: Number of residual blocks, two linear layers each; at least 1.
        embedding_dim: Size of the conditioning vector; even, at least 4.
        embedding: Noise features, a name in `sde_diffusion.nn.features.EMBEDDINGS`, or a module that maps c_noise [N]
            to [N, embedding_dim].
        dropout: Probability of dropout of each block's hidden values, in [0, 1).
        octaves: Number of octaves of sines and cosines of the input, further inputs; at least 0. For likelihoods of
            data on levels, which depend on details that are too fine for the network otherwise; see
            `sde_diffusion.nn.octaves`.
        levels: Number of levels of the data, to which the octaves are tuned; None: the data have no levels. No effect
            without octaves.
        conditions: What the output depends on beside x and c_noise, by name; see `sde_diffusion.conditions`.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaptive layer norm); Kingma et
        al. 2021, "Variational Diffusion Models", appendix C (octaves).
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int = 0,
        width: int = 512,
        depth: int = 3,
        embedding_dim: int = 64,
        embedding: str | nn.Module = "positional",
        dropout: float = 0.0,
        octaves: int = 0,
        conditions: Mapping[str, Condition] | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape)
        width, depth = check_count("width", width), check_count("depth", depth)
        self.octaves = Octaves(octaves, levels)
        self.takes_noisy_data = self.octaves.takes_noisy_data
        dropout = as_number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
        size = math.prod(self.shape)
        embedding_dim = check_dim(embedding_dim)
        self.conditioning = Conditioning(embedding_dim, n_classes, embedding, conditions)
        self.modulation = nn.Linear(embedding_dim, depth * 2 * width)
        beside = sum(map(math.prod, self.conditioning.shapes_beside))
        self.input = nn.Linear(size * self.octaves.multiple + beside, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

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
        # One embedding serves all samples where c_noise is a scalar: [1, ...] broadcasts below.
        modulation = self.modulation(self.conditioning(c_noise, label, **conditions))
        scales, shifts = modulation.unflatten(1, (2, len(self.blocks), -1)).unbind(1)
        features = self.octaves(x.flatten(1), noisy_data)
        for value in self.conditioning.beside(x, label=label, **conditions):
            features = torch.cat([features, value.flatten(1)], 1)
        h = self.input(features.to(self.input.weight.dtype))
        for block, scale, shift in zip(self.blocks, (1 + scales).unbind(1), shifts.unbind(1), strict=True):
            h = self.apply_block(block, h, scale, shift)
        out: Tensor = self.output(self.norm(h))
        return out.view_as(x).to(x.dtype)
