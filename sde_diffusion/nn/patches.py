"""Networks that treat all patches of an image alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count
from sde_diffusion.nn.autoencoder import SMALL_INIT, Perceptron, Unpatchify, resolutions


class PatchNetwork(nn.Module):
    """The same perceptron for each patch, of several tensors side by side: [B, patches, C_i] to [B, patches, out].

    Args:
        inputs: Sum of the numbers of channels C_i.
        out: Number of channels of the result.
        width: Width of the two hidden layers.
        scale: Factor of the initial weights of the last layer.
    """

    def __init__(self, inputs: int, out: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        last = nn.Linear(width, out)
        with torch.no_grad():
            last.weight.mul_(scale)
            last.bias.zero_()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the network."""
        out: Tensor = self.layers(torch.cat(inputs, -1))
        return out


class FromPatches(nn.Module):
    """A linear layer for each patch, and the patches joined: [B, patches, channels] to [B, *out_shape].

    Args:
        channels: Number of channels of a patch.
        out_shape: [*, H, W].
        patch: Side of the patches.
    """

    def __init__(self, channels: int, out_shape: Sequence[int], patch: int) -> None:
        super().__init__()
        self.joined = Unpatchify(patch, out_shape)
        self.size = resolutions(out_shape[-2:], patch, 1)[0]
        self.output = nn.Linear(channels, math.prod(out_shape[:-2]) * patch**2)
        with torch.no_grad():
            self.output.weight.mul_(SMALL_INIT)
            self.output.bias.zero_()

    @property
    def last_layer(self) -> nn.Module:
        """The linear layer that makes the result."""
        return self.output

    def forward(self, state: Tensor) -> Tensor:
        """Apply the network."""
        outputs: Tensor = self.output(state).transpose(1, 2)
        out: Tensor = self.joined(outputs.reshape(len(outputs), -1, *self.size))
        return out


class PatchDecoder(nn.Module):
    """A perceptron from a vector to a state for each patch, and one network from the states to pixels for all patches.

    All patches share that network, so that fewer data are needed to learn it.

    Args:
        in_shape: Shape of the input.
        out_shape: Shape of the result without the batch, [*, H, W].
        patch: Side of the patches, at least 1.
        patch_width: Size of a patch's state, positive.
        width: Width of the hidden layers of the perceptron, positive.
        depth: Its blocks, at least 0.
        dropout: Probability in the blocks, in [0, 1).

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        patch: int,
        patch_width: int = 32,
        width: int = 256,
        depth: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        patch, patch_width = check_count("patch", patch), check_count("patch_width", patch_width)
        count = math.prod(resolutions(out_shape[-2:], patch, 1)[0])
        self.states = Perceptron([in_shape], [count, patch_width], width, depth, dropout)
        self.change = PatchNetwork(patch_width, patch_width, patch_width, scale=math.sqrt(SMALL_INIT))
        self.output = FromPatches(patch_width, out_shape, patch)

    @property
    def last_layer(self) -> nn.Module:
        """The linear layer that makes the result."""
        return self.output.last_layer

    def forward(self, z: Tensor) -> Tensor:
        """Map [B, *in_shape] to [B, *out_shape]."""
        states = self.states(z)
        out: Tensor = self.output(states + self.change(states))
        return out


def decoder_of(
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    patch: int | None,
    width: int = 256,
    depth: int = 1,
    dropout: float = 0.0,
) -> nn.Module:
    """A decoder to [outputs, *shape]: `Perceptron`, or with `patch` given, for images, `PatchDecoder`.

    Raises:
        ValueError: If an argument is out of its range, or the data are not images.
    """
    if patch is None:
        return Perceptron([in_shape], out_shape, width, depth, dropout, scale=SMALL_INIT)
    if len(out_shape) != 4:
        raise ValueError(f"patch is for images [C, H, W], and the data are {list(out_shape[1:])}: leave it out")
    return PatchDecoder(in_shape, out_shape, patch, width=width, depth=depth, dropout=dropout)
