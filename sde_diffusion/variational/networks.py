"""Hierarchical VAEs with MLPs or convolutional networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_count, check_kind, check_sizes
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.nn.autoencoder import SMALL_INIT, ConvBlock, Patchify, Perceptron, Unpatchify, resolutions
from sde_diffusion.nn.layers import convolution
from sde_diffusion.nn.patches import decoder_of
from sde_diffusion.nn.resampling import double, halve
from sde_diffusion.variational.convolutions import check_images
from sde_diffusion.variational.hierarchy import HierarchicalVAE
from sde_diffusion.variational.inference import INFERENCES, TOP_DOWN, HierarchicalInference, TopDown
from sde_diffusion.variational.observation import ObservationModel


class _MarkovStep(nn.Module):
    """The state below is z alone: a Markov chain."""

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        return z


class Added(nn.Module):
    """state + net(state, z): a deterministic path beside the latent variables."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """Add."""
        out: Tensor = self.net(state, z)
        return state + out


class StandardNormal(nn.Module):
    """The outputs of N(0, I), whatever the state."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = (2 * shape[0], *shape[1:])

    def forward(self, state: Tensor) -> Tensor:
        """Zeros, [B, 2 C, *]."""
        return state.new_zeros(len(state), *self.shape)


class MLPHierarchy(HierarchicalVAE):
    """An MLP hierarchical VAE, for data of any shape.

    Args:
        shape: Shape of the data.
        observation: p(x | z) given the decoder's outputs.
        latent_dims: Number of dimensions of z_1, z_2, ..., z_T; two or more.
        width: Width of the hidden layers, and of the deterministic path; positive.
        depth: Residual blocks of each network, at least 0.
        dropout: Probability in the blocks, in [0, 1).
        deterministic_path: Whether there is one beside the latent variables; else the model is Markovian, z_T -> ... ->
            z_1 -> x.
        inference: See `HierarchicalVAE`.
        patch: Side of the patches of `PatchDecoder`, for images, of which few are then enough; None: no patches.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, or there is only one latent variable.
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        latent_dims: Sequence[int] = (16, 8),
        width: int = 256,
        depth: int = 1,
        dropout: float = 0.0,
        deterministic_path: bool = True,
        inference: str | HierarchicalInference = "residual",
        patch: int | None = None,
    ) -> None:
        check_kind("observation", observation, ObservationModel)
        sizes = check_latent_dims(latent_dims)
        network = partial(Perceptron, width=width, depth=depth, dropout=dropout)
        path = check_bool("deterministic_path", deterministic_path)
        order: HierarchicalInference = as_instance("inference", inference, INFERENCES, HierarchicalInference)
        hidden, count = [width], len(sizes)
        # Shape of the state before z_t is drawn: s_t.
        states = [hidden] * count if path else [[sizes[t + 1]] for t in range(count - 1)] + [[1]]
        latent_shapes = [[size] for size in sizes]
        to_up, to_posterior = order.in_shapes(shape, latent_shapes, states, hidden)
        outputs = [observation.n_outputs, *shape]
        decoder = decoder_of(hidden if path else [sizes[0]], outputs, patch, width, depth, dropout)
        super().__init__(
            up=[network([seen], hidden) for seen in to_up],
            posterior=[network(seen, [2 * size]) for seen, size in zip(to_posterior, sizes, strict=True)],
            prior=[
                *(network([states[t]], [2 * sizes[t]], scale=SMALL_INIT) for t in range(count - 1)),
                StandardNormal([sizes[-1]]),
            ],
            down=[
                Added(network([states[t], [sizes[t]]], hidden, scale=1 / math.sqrt(count))) if path else _MarkovStep()
                for t in range(count)
            ],
            decoder=decoder,
            observation=observation,
            shape=shape,
            latent_shapes=latent_shapes,
            top_shape=hidden if path else None,
            inference=order,
        )


class _Concatenated(nn.Module):
    """A network of several tensors with the same pixels, side by side."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat(inputs, 1))
        return out


class _Up(nn.Module):
    """Blocks of the bottom-up path; the first of a resolution halves the image."""

    def __init__(self, block: nn.Module, smaller: bool) -> None:
        super().__init__()
        self.block, self.smaller = block, smaller

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.block(halve(h) if self.smaller else h)
        return out


class _Down(nn.Module):
    """state + P z, a block, and double the image where the latent variable below has more pixels."""

    def __init__(self, project: nn.Module, block: nn.Module, size: Sequence[int] | None) -> None:
        super().__init__()
        self.project, self.block, self.size = project, block, size

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.block(state + self.project(z))
        return out if self.size is None else double(out, self.size)


class ConvHierarchy(HierarchicalVAE):
    """A hierarchical VAE of convolutions with a deterministic path, for images: a small VDVAE.

    Args:
        shape: Shape of the data, [C, H, W].
        observation: p(x | z) given the decoder's outputs.
        latents: Number of latent variables at each resolution, finest first; 0 for none at that resolution, and at
            least two in all. The image is halved from one to the next.
        latent_channels: Channels of each latent variable, at least 1.
        channels: Channels of the networks, positive.
        dropout: Probability in the blocks, in [0, 1).
        inference: residual, ladder or direct, or a `TopDown`.
        patch: Side of the patches of pixels that become channels, at least 1: the finest resolution is one number for
            each square.

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
        latents: Sequence[int] = (0, 2, 2),
        latent_channels: int = 4,
        channels: int = 32,
        dropout: float = 0.0,
        inference: str | TopDown = "residual",
        patch: int = 1,
    ) -> None:
        check_kind("observation", observation, ObservationModel)
        check_images(shape, "MLPHierarchy, model/autoencoder=mlp_hierarchy")
        order: TopDown = as_instance("inference", inference, TOP_DOWN, TopDown)
        counts = [check_count("latents", count, least=0) for count in latents]
        latent_channels, channels = check_count("latent_channels", latent_channels), check_count("channels", channels)
        cut = Patchify(patch)
        sizes = resolutions(shape[1:], cut.patch, len(counts))
        halved = [times for times, count in enumerate(counts) for _ in range(count)]  # resolutions of z_1, z_2, ...
        if len(halved) < 2:
            raise ValueError(f"latents must count two latent variables or more, such as [0, 2, 2]; got {counts}")
        block = partial(ConvBlock, dropout=dropout)
        first = [cut, convolution(shape[0] * cut.patch**2, channels, 3)] + [
            _Up(block(channels, channels), True) for _ in range(halved[0])
        ]
        up: list[nn.Module] = [nn.Sequential(*first, block(channels, channels))]
        for below, here in itertools.pairwise(halved):
            halvings = [_Up(block(channels, channels), True) for _ in range(here - below)]
            up.append(nn.Sequential(*(halvings or [_Up(block(channels, channels), False)])))
        count = len(halved)
        down = []
        for t, here in enumerate(halved):
            project, below = convolution(latent_channels, channels, 1), halved[t - 1] if t else 0
            last = block(channels, channels)
            with torch.no_grad():
                last.conv_out.weight.mul_(1 / math.sqrt(count))
            steps: nn.Module = _Down(project, last, sizes[here - 1] if below < here else None)
            further = [_Doubled(block(channels, channels), sizes[times - 1]) for times in range(here - 1, below, -1)]
            down.append(_Sequence(steps, nn.Sequential(*further)))
        super().__init__(
            up=up,
            posterior=[
                _Concatenated(block(2 * channels, channels), _small_output(channels, latent_channels)) for _ in halved
            ],
            prior=[nn.Sequential(block(channels, channels), _small_output(channels, latent_channels)) for _ in halved],
            down=down,
            decoder=_Outputs(block(channels, channels), channels, [observation.n_outputs, *shape], cut.patch),
            observation=observation,
            shape=shape,
            latent_shapes=[[latent_channels, *sizes[times]] for times in halved],
            top_shape=[channels, *sizes[halved[-1]]],
            inference=order,
        )


class _Doubled(nn.Module):
    def __init__(self, block: nn.Module, size: Sequence[int]) -> None:
        super().__init__()
        self.block, self.size = block, size

    def forward(self, x: Tensor) -> Tensor:
        return double(self.block(x), self.size)


class _Sequence(nn.Module):
    def __init__(self, first: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.first, self.then = first, then

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.then(self.first(state, z))
        return out


class _Outputs(nn.Module):
    """The decoder's last layers: [B, channels, H, W] to [B, outputs, C, H, W]."""

    def __init__(self, block: nn.Module, channels: int, out_shape: Sequence[int], patch: int) -> None:
        super().__init__()
        self.block, self.joined = block, Unpatchify(patch, out_shape)
        self.output = convolution(channels, math.prod(out_shape[:-2]) * patch**2, 3)

    @property
    def last_layer(self) -> nn.Module:
        """The convolution that makes the result."""
        return self.output

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.joined(self.output(F.silu(self.block(h))))
        return out


def _small_output(channels: int, latent_channels: int) -> nn.Module:
    """The last layer of what makes a distribution, which starts near N(0, I)."""
    found = convolution(channels, 2 * latent_channels, 3)
    with torch.no_grad():
        found.weight.mul_(SMALL_INIT)
    return found


def check_latent_dims(latent_dims: Sequence[int]) -> tuple[int, ...]:
    """Sizes of latent variables, as integers.

    Raises:
        ValueError: If there are fewer than two, or one is not positive.
    """
    found = check_sizes(
        "latent_dims", latent_dims, "a list of two or more positive sizes, one for each latent variable", least=0
    )
    if len(found) < 2:
        raise ValueError(
            f"latent_dims must name two latent variables or more, such as [16, 8]; got {list(found)}: with one latent "
            "variable it is a VAE, model=vae"
        )
    return found
