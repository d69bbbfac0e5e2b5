"""Diffusion transformer for images, signals and sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_choice, check_count
from sde_diffusion.conditions import Condition
from sde_diffusion.nn.attention import attend
from sde_diffusion.nn.checks import check_dropout, check_image_or_signal_shape, check_shape_beside
from sde_diffusion.nn.embedding import Conditioning
from sde_diffusion.nn.layers import CONVOLUTIONS
from sde_diffusion.nn.network import Network, check_arguments
from sde_diffusion.nn.patching import resized, unpatchify

LAYOUTS = ("channels_first", "channels_last")
"""What the two sizes of a signal or sequence are: [C, length] or [length, C]."""


class DiT(Network):
    """Diffusion transformer with adaptive layer norms that start as the identity (adaLN-zero).

    Patches of patch x patch pixels become tokens of `width` numbers, to which fixed sines and cosines of their position
    are added. With (b_1, a_1, g_1, b_2, a_2, g_2) linear in the conditioning vector, and 0 at first, a block computes

        h = h + g_1 Attention((1 + a_1) LayerNorm(h) + b_1),   h = h + g_2 MLP((1 + a_2) LayerNorm(h) + b_2).

    The last layer, and with it the output, is initialised to 0. The output of a sample depends on no other sample.

    Args:
        shape: Shape of one image, [C, height, width], signal, [C, length], or sequence, [length, C] (`layout`).
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        patch: Side of the patches, which must tile the image; at least 1.
        width: Numbers of a token; a multiple of 4 heads (of 2 heads in one dimension).
        depth: Number of blocks, at least 1.
        heads: Number of attention heads, at least 1.
        mlp_ratio: Width of the hidden layer of the perceptrons, in units of `width`; at least 1.
        dropout: Probability in the perceptrons, in [0, 1).
        embedding: Noise features, a name in `sde_diffusion.nn.features.EMBEDDINGS`, or a module that maps c_noise [N]
            to [N, feature_dim].
        feature_dim: Number of these features; even, at least 4.
        conditions: The conditions by name; see `sde_diffusion.conditions`.
        cross_attention: Whether the tokens also attend to those of conditions that have some, such as a text's words,
            after each attention; no effect if none has.
        learned_variance: Whether the last layer has twice the channels; `forward` returns the first half.
        layout: What two sizes are: "channels_first", [C, length], or "channels_last", [length, C]; images are
            always channels first.

    Raises:
        ValueError: If an argument is outside its range, the patches do not tile the image, or images are to be channels
            last.

    References:
        Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", section 3; Chen et al. 2023, "PixArt-alpha",
        section 2.3 (cross-attention).
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int = 0,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        embedding: str | nn.Module = "timestep_cos",
        feature_dim: int = 256,
        conditions: Mapping[str, Condition] | None = None,
        cross_attention: bool = False,
        learned_variance: bool = False,
        layout: str = "channels_first",
    ) -> None:
        super().__init__()
        self.shape = check_image_or_signal_shape(shape)
        dims = len(self.shape) - 1
        self.transposed = check_choice("layout", layout, LAYOUTS) == "channels_last"
        if self.transposed and dims == 2:
            raise ValueError(
                "layout=channels_last is for data of two sizes, [length, C]; these are images, [C, height, width] = "
                f"{list(self.shape)}: take layout=channels_first"
            )
        self.channels, *size = reversed(self.shape) if self.transposed else self.shape
        self.patch, depth = check_count("patch", patch), check_count("depth", depth)
        width, heads = check_count("width", width), check_count("heads", heads)
        self.grid = _grid(size, self.patch)
        if width % (2 * dims) or width % heads:
            raise ValueError(f"width must be a multiple of heads={heads} and of {2 * dims}; got {width}")
        self.conditioning = Conditioning(width, n_classes, embedding, conditions, feature_dim, "output")
        check_shape_beside(self.conditioning.shapes_beside, self.shape)
        across = check_bool("cross_attention", cross_attention) and self.conditioning.has_tokens
        beside = sum(each[-1 if self.transposed else 0] for each in self.conditioning.shapes_beside)
        self.input = CONVOLUTIONS[dims](self.channels + beside, width, self.patch, stride=self.patch)
        nn.init.xavier_uniform_(self.input.weight.view(width, -1))
        nn.init.zeros_(self.input.bias)  # type: ignore[arg-type]
        self.positions: Tensor
        self.register_buffer("positions", position_embedding(self.grid, width), persistent=False)
        hidden, dropout = width * check_count("mlp_ratio", mlp_ratio), check_dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, hidden, dropout, across) for _ in range(depth))
        self.modulation = _linear(width, 2 * width, zero=True)
        values = self.patch**dims * self.channels
        self.output = _linear(width, values * (2 if check_bool("learned_variance", learned_variance) else 1), zero=True)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Apply the network; computes in the type of its parameters (or autocast's), returns that of x.

        Args:
            x: [B, *shape], floating point.
            c_noise: [] or [B], a function of the noise level, such as log(sigma/alpha)/4.
            label: [B], int64 in 0 ... n_classes; None: the null class throughout.
            **conditions: Values of the other conditions, [B, *] each; None: the null value throughout.

        Returns:
            [B, *shape], the type of x.

        Raises:
            ValueError: If a shape is wrong, or a condition is given that the network was built without.
        """
        check_arguments(x, c_noise, self.shape)
        embedding = self.conditioning(c_noise, label, **conditions)
        across = self.blocks[0].cross_attention is not None
        tokens = self.conditioning.tokens(len(x), **conditions) if across else None
        inputs = self._channels_first(x)
        for value in self.conditioning.beside(x, label=label, **conditions):
            inputs = torch.cat([inputs, resized(self._channels_first(value), inputs.shape[2:])], 1)
        h = self.input(inputs.to(self.input.weight.dtype)).flatten(2).transpose(1, 2)
        h = h + self.positions.to(h.dtype)
        for block in self.blocks:
            h = self.apply_block(block, h, embedding, tokens)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        image = self._joined(self.output(torch.addcmul(shift, _norm(h), 1 + scale)))[:, : self.channels]
        return (image.transpose(1, 2) if self.transposed else image).to(x.dtype)

    @property
    def repeated_blocks(self) -> Sequence[nn.Module]:
        """All its blocks."""
        return tuple(self.blocks)

    def _channels_first(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.transposed else x

    def _joined(self, h: Tensor) -> Tensor:
        """Tokens [B, N, patch * patch * C], with the channels last, as images [B, C, H, W]."""
        pixels = h.reshape(*h.shape[:2], self.patch ** len(self.grid), -1)  # [B, N, patch * patch, C]
        patches = pixels.transpose(1, 3).reshape(len(h), -1, *self.grid)
        return unpatchify(patches, self.patch, [length * self.patch for length in self.grid])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float, across: bool) -> None:
        super().__init__()
        self.modulation = _linear(width, 6 * width, zero=True)
        self.attention = _Attention(width, heads)
        self.cross_attention = _CrossAttention(width, heads) if across else None
        self.mlp = _MLP(width, hidden, dropout)

    def forward(self, h: Tensor, embedding: Tensor, tokens: tuple[Tensor, Tensor] | None) -> Tensor:
        b_1, a_1, g_1, b_2, a_2, g_2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        h = h + g_1 * self.attention(torch.addcmul(b_1, _norm(h), 1 + a_1))
        if self.cross_attention is not None and tokens is not None:
            h = h + self.cross_attention(h, *tokens)
        out: Tensor = h + g_2 * self.mlp(torch.addcmul(b_2, _norm(h), 1 + a_2))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.output = _linear(width, 3 * width), _linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.output(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = _linear(width, width), _linear(width, 2 * width)
        self.output = _linear(width, width, zero=True)

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        q = self.query(_norm(h)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(_norm(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.output(attend(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.input, self.output = _linear(width, hidden), _linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.output(self.dropout(F.gelu(self.input(h), approximate="tanh")))
        return out


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def _linear(inputs: int, outputs: int, *, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight) if zero else nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def position_embedding(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of the position of each token, [1, N, width], in two dimensions of the column, then of the row.

    omega_k = 10000^(-k / (d/2)), k = 0 ... d/2 - 1, with d = width for one dimension, and half of it for two.
    """
    d = width // len(grid)
    omega = torch.exp(-math.log(10_000) * torch.arange(d // 2, dtype=torch.float64) / (d / 2))
    axes = torch.meshgrid(*[torch.arange(length, dtype=torch.float64) for length in grid], indexing="ij")
    parts = [
        function(axis.flatten()[:, None] * omega) for axis in reversed(axes) for function in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, 1)[None].float()


def _grid(size: Sequence[int], patch: int) -> tuple[int, ...]:
    """The number of patches in each dimension.

    Raises:
        ValueError: If they do not tile the image.
    """
    if any(length % patch for length in size):
        fitting = [str(side) for side in range(1, min(size) + 1) if all(length % side == 0 for length in size)]
        sides = "x".join(map(str, size))
        raise ValueError(
            f"patch={patch} does not divide the size of the data, {sides}: take one of {', '.join(fitting)}"
        )
    return tuple(length // patch for length in size)
