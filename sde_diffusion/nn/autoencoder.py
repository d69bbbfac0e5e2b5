"""Networks of autoencoders, which depend on nothing but their input: from data to numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_fraction, check_count, check_sizes
from sde_diffusion.nn.layers import convolution, group_norm
from sde_diffusion.nn.patching import patchify, unpatchify
from sde_diffusion.nn.resampling import double, halve

SMALL_INIT = 0.1
"""Factor of the first weights of a layer whose outputs describe a distribution, which then hardly depends on its input.

Training then begins at the distribution that the biases give, such as N(0, I).
"""


class _Layer(nn.Module):
    """h + W_2 dropout(SiLU(W_1 LayerNorm(h)))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.input, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.output(self.dropout(F.silu(self.input(self.norm(h)))))
        return h + out


class Perceptron(nn.Module):
    """Residual perceptron from tensors of one shape to those of another: a linear layer, `depth` blocks, another one.

    Several inputs are taken side by side.

    Args:
        in_shapes: Shape of each input.
        out_shape: Shape of the output.
        width: Width of the hidden layers, positive.
        depth: Number of blocks, two linear layers each; at least 0.
        dropout: Probability in the blocks, in [0, 1).
        scale: Factor of the initial weights of the last layer; below 1 the outputs start near 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_shapes: Sequence[Sequence[int]],
        out_shape: Sequence[int],
        width: int = 256,
        depth: int = 1,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.out_shape = check_sizes("out_shape", out_shape)
        size = sum(math.prod(check_sizes("in_shapes", shape)) for shape in in_shapes)
        width, depth = check_count("width", width), check_count("depth", depth, least=0)
        self.input = nn.Linear(size, width)
        self.blocks = nn.Sequential(*(_Layer(width, _dropout(dropout)) for _ in range(depth)))
        self.output = nn.Linear(width, math.prod(self.out_shape))
        with torch.no_grad():
            self.output.weight.mul_(scale)
            self.output.bias.zero_()

    @property
    def last_layer(self) -> nn.Module:
        """The linear layer that makes the result."""
        return self.output

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs [B, *in_shape] to [B, *out_shape]."""
        h: Tensor = self.blocks(self.input(torch.cat([x.flatten(1) for x in inputs], 1)))
        out: Tensor = self.output(F.silu(h))
        return out.reshape(-1, *self.out_shape)


class ConvBlock(nn.Module):
    """Residual block of two convolutions: (S x + Conv_2(dropout(SiLU(Norm(Conv_1(SiLU(Norm(x)))))))) / sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, kernel: int = 3) -> None:
        super().__init__()
        self.norm_in, self.norm_out = group_norm(in_channels), group_norm(out_channels)
        self.conv_in = convolution(in_channels, out_channels, kernel)
        self.conv_out = convolution(out_channels, out_channels, kernel)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H, W]."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        out: Tensor = (self.skip(x) + h) * math.sqrt(0.5)
        return out


class Patchify(nn.Module):
    """`patchify` as a module: [B, C, H, W] to [B, C p^2, H/p, W/p], p = patch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = check_count("patch", patch)

    def forward(self, x: Tensor) -> Tensor:
        """Cut."""
        return patchify(x, self.patch)


class Unpatchify(nn.Module):
    """`unpatchify` as a module: [B, K p^2, H/p, W/p] to [B, *out_shape].

    Args:
        patch: p.
        out_shape: Shape of the result without the batch, of K H W values: [*, H, W].
    """

    def __init__(self, patch: int, out_shape: Sequence[int]) -> None:
        super().__init__()
        self.patch, self.out_shape = check_count("patch", patch), check_sizes("out_shape", out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Join."""
        return unpatchify(x, self.patch, self.out_shape[-2:]).reshape(-1, *self.out_shape)


def resolutions(size: Sequence[int], patch: int, n: int) -> list[tuple[int, int]]:
    """Sizes (H, W) of an image that is cut into patches and then halved n - 1 times, finest first."""
    sizes = [(-(-size[0] // patch), -(-size[1] // patch))]
    for _ in range(n - 1):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


class ConvEncoder(nn.Module):
    """Convolutions that halve an image several times: [B, C, H, W] to [B, out_channels, H / (p 2^n), ...], rounded up.

    The image is first cut into patches of p x p pixels, which become channels.

    Args:
        in_channels: C.
        out_channels: Number of channels of the result.
        channels: Number of channels at each resolution, finest first: n + 1 of them.
        blocks: Residual blocks at each resolution, at least 1.
        dropout: Probability in the blocks, in [0, 1).
        patch: Side p of the patches, at least 1; see `patchify`. H and W are then numbers of patches.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 32),
        blocks: int = 1,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = check_sizes("channels", channels)
        self.cut = Patchify(patch)
        self.input = convolution(in_channels * patch**2, widths[0], 3)
        self.stages = _stages([widths[0], *widths[:-1]], widths, blocks, dropout)
        self.norm = group_norm(widths[-1])
        self.output = convolution(widths[-1], out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network."""
        h = self.input(self.cut(x))
        for resolution, stage in enumerate(self.stages):
            h = stage(halve(h) if resolution else h)
        out: Tensor = self.output(F.silu(self.norm(h)))
        return out


class ConvDecoder(nn.Module):
    """Convolutions that double an image several times, the other way than `ConvEncoder`.

    Args:
        in_channels: Number of channels of the input.
        out_shape: Shape of the result without the batch, [outputs, C, H, W], as observation models take it.
        channels: Number of channels at each resolution, finest first: n + 1 of them.
        blocks: Residual blocks at each resolution, at least 1.
        dropout: Probability in the blocks, in [0, 1).
        patch: Side of the patches that are joined at the end, at least 1.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_shape: Sequence[int],
        channels: Sequence[int] = (16, 32, 32),
        blocks: int = 1,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = check_sizes("channels", channels)
        self.joined = Unpatchify(patch, out_shape)
        *lead, height, width = self.joined.out_shape
        self.sizes = resolutions((height, width), patch, len(widths))
        self.input = convolution(in_channels, widths[-1], 3)
        self.stages = _stages([*widths[1:], widths[-1]], widths, blocks, dropout)
        self.norm = group_norm(widths[0])
        self.output = convolution(widths[0], math.prod(lead) * patch**2, 3)
        with torch.no_grad():
            self.output.weight.mul_(SMALL_INIT)

    @property
    def last_layer(self) -> nn.Module:
        """The convolution that makes the result."""
        return self.output

    def forward(self, z: Tensor) -> Tensor:
        """Apply the network."""
        h = self.input(z)
        for resolution in reversed(range(len(self.stages))):
            h = self.stages[resolution](h)
            if resolution:
                h = double(h, self.sizes[resolution - 1])
        out: Tensor = self.joined(self.output(F.silu(self.norm(h))))
        return out


def _stages(firsts: Sequence[int], widths: Sequence[int], blocks: int, dropout: float) -> nn.ModuleList:
    """For each resolution, blocks to `width` channels, of which the first takes `first` channels."""
    blocks, dropout = check_count("blocks", blocks), _dropout(dropout)
    return nn.ModuleList(
        nn.Sequential(*(ConvBlock(width if index else first, width, dropout) for index in range(blocks)))
        for first, width in zip(firsts, widths, strict=True)
    )


def _dropout(value: float) -> float:
    if not 0 <= (value := as_fraction("dropout", value)) < 1:
        raise ValueError(f"dropout must be in [0, 1); got {value}")
    return value
