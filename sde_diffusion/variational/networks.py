"""Hierarchical VAEs made of perceptrons or convolutions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_count, check_kind, check_sizes
from sde_diffusion.nn.autoencoder import ConvBlock, Perceptron
from sde_diffusion.nn.blocks import convolution, double, halve
from sde_diffusion.variational.hierarchy import TopDownVAE
from sde_diffusion.variational.observation import ObservationModel

_QUIET = 0.1
"""Factor of the first weights of what makes a distribution, which then starts near N(0, I)."""


class _Replaced(nn.Module):
    """The state below is z alone: a Markov chain."""

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        return z


class _Added(nn.Module):
    """state + net(state, z): a deterministic path beside the latent variables."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.net(state, z)
        return state + out


class MLPHierarchy(TopDownVAE):
    """A hierarchical VAE of perceptrons, for data of any shape.

    Args:
        shape: Shape of the data.
        observation: p(x | z) given the decoder's outputs.
        latents: Number of dimensions of z_1, z_2, ..., z_T; two or more.
        width: Width of the hidden layers, and of the deterministic path; positive.
        depth: Residual blocks of each network, at least 0.
        dropout: Probability in the blocks, in [0, 1).
        path: A deterministic path beside the latent variables; else the model is Markovian, z_T -> ... -> z_1 -> x.
        inference: See `TopDownVAE`.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, or there is only one level.
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        latents: Sequence[int] = (16, 8),
        width: int = 256,
        depth: int = 1,
        dropout: float = 0.0,
        path: bool = True,
        inference: str = "residual",
    ) -> None:
        check_kind("observation", observation, ObservationModel)
        sizes = _levels(latents)
        network = partial(Perceptron, width=width, depth=depth, dropout=dropout)
        path = check_bool("path", path)
        hidden, count = [width], len(sizes)
        # Shape of the state before z_t is drawn: s_t.
        states = [hidden] * count if path else [[sizes[t + 1]] for t in range(count - 1)] + [[1]]
        super().__init__(
            up=[network([shape if t == 0 else hidden], hidden) for t in range(count)],
            posterior=[network([hidden, states[t]], [2 * sizes[t]], scale=_QUIET) for t in range(count)],
            prior=[network([states[t]], [2 * sizes[t]], scale=_QUIET) for t in range(count)],
            down=[
                _Added(network([states[t], [sizes[t]]], hidden, scale=1 / math.sqrt(count))) if path else _Replaced()
                for t in range(count)
            ],
            decoder=network([hidden if path else [sizes[0]]], [observation.outputs, *shape]),
            observation=observation,
            shape=shape,
            latent_shapes=[[size] for size in sizes],
            top_shape=states[-1],
            inference=inference,
        )


class _Joined(nn.Module):
    """A network of several tensors with the same pixels, side by side."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat(inputs, 1))
        return out


class _Up(nn.Module):
    """Blocks of the bottom-up path; the first level of a resolution halves the image."""

    def __init__(self, block: nn.Module, smaller: bool) -> None:
        super().__init__()
        self.block, self.smaller = block, smaller

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.block(halve(h) if self.smaller else h)
        return out


class _Down(nn.Module):
    """state + P z, a block, and double the image where the level below has more pixels."""

    def __init__(self, project: nn.Module, block: nn.Module, size: Sequence[int] | None) -> None:
        super().__init__()
        self.project, self.block, self.size = project, block, size

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.block(state + self.project(z))
        return out if self.size is None else double(out, self.size)


class ConvHierarchy(TopDownVAE):
    """A hierarchical VAE of convolutions with a deterministic path, for images: a small very deep VAE.

    Args:
        shape: Shape of the data, [C, H, W].
        observation: p(x | z) given the decoder's outputs.
        levels: Number of latent variables at each resolution, finest first; 0 for none at that resolution, and at least
            two in all. The image is halved from one to the next.
        latent: Channels of each latent variable, at least 1.
        channels: Channels of the networks, positive.
        dropout: Probability in the blocks, in [0, 1).
        inference: See `TopDownVAE`.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, or the data are not images.

    References:
        Child 2021, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images".
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        levels: Sequence[int] = (0, 2, 2),
        latent: int = 4,
        channels: int = 32,
        dropout: float = 0.0,
        inference: str = "residual",
    ) -> None:
        check_kind("observation", observation, ObservationModel)
        if len(shape) != 3:
            raise ValueError(f"convolutions are for images [C, H, W], and the data are {list(shape)}: use MLPHierarchy")
        counts = [check_count("levels", count, least=0) for count in levels]
        latent, channels = check_count("latent", latent), check_count("channels", channels)
        sizes = [tuple(shape[1:])]
        for _ in counts[1:]:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        places = [place for place, count in enumerate(counts) for _ in range(count)]  # resolution of z_1, z_2, ...
        _levels([latent] * len(places))
        block = partial(ConvBlock, dropout=dropout)
        first = [convolution(shape[0], channels, 3)] + [_Up(block(channels, channels), True) for _ in range(places[0])]
        up: list[nn.Module] = [nn.Sequential(*first, block(channels, channels))]
        for below, here in itertools.pairwise(places):
            halvings = [_Up(block(channels, channels), True) for _ in range(here - below)]
            up.append(nn.Sequential(*(halvings or [_Up(block(channels, channels), False)])))
        count = len(places)
        down = []
        for t, here in enumerate(places):
            project, below = convolution(latent, channels, 1), places[t - 1] if t else 0
            last = block(channels, channels)
            with torch.no_grad():
                last.conv_out.weight.mul_(1 / math.sqrt(count))
            steps: nn.Module = _Down(project, last, sizes[here - 1] if below < here else None)
            further = [_Doubled(block(channels, channels), sizes[place - 1]) for place in range(here - 1, below, -1)]
            down.append(_Then(steps, nn.Sequential(*further)))
        super().__init__(
            up=up,
            posterior=[_Joined(block(2 * channels, channels), _quiet(channels, latent)) for _ in places],
            prior=[nn.Sequential(block(channels, channels), _quiet(channels, latent)) for _ in places],
            down=down,
            decoder=_Outputs(block(channels, channels), channels, observation.outputs, shape),
            observation=observation,
            shape=shape,
            latent_shapes=[[latent, *sizes[place]] for place in places],
            top_shape=[channels, *sizes[places[-1]]],
            inference=inference,
        )


class _Doubled(nn.Module):
    def __init__(self, block: nn.Module, size: Sequence[int]) -> None:
        super().__init__()
        self.block, self.size = block, size

    def forward(self, x: Tensor) -> Tensor:
        return double(self.block(x), self.size)


class _Then(nn.Module):
    def __init__(self, first: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.first, self.then = first, then

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.then(self.first(state, z))
        return out


class _Outputs(nn.Module):
    """The decoder's last layers: [B, channels, H, W] to [B, outputs, C, H, W]."""

    def __init__(self, block: nn.Module, channels: int, outputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.block, self.shape = block, tuple(shape)
        self.output = convolution(channels, outputs * shape[0], 3)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.output(F.silu(self.block(h)))
        return out.reshape(len(out), -1, *self.shape)


def _quiet(channels: int, latent: int) -> nn.Conv2d:
    """The last layer of what makes a distribution, which starts near N(0, I)."""
    found = convolution(channels, 2 * latent, 3)
    with torch.no_grad():
        found.weight.mul_(_QUIET)
    return found


def _levels(latents: Sequence[int]) -> tuple[int, ...]:
    found = check_sizes("latents", latents)
    if len(found) < 2:
        raise ValueError(f"a hierarchy has two latent variables or more, and one is a VAE; got {list(found)}")
    return found
