"""A hierarchical VAE of images whose lower latent variable describes patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.nn.autoencoder import SMALL_INIT, Patchify, Perceptron, resolutions
from sde_diffusion.nn.patches import FromPatches, PatchNetwork
from sde_diffusion.variational.convolutions import check_images
from sde_diffusion.variational.hierarchy import HierarchicalVAE
from sde_diffusion.variational.inference import TOP_DOWN, TopDown
from sde_diffusion.variational.networks import Added, StandardNormal, check_latent_dims
from sde_diffusion.variational.observation import ObservationModel


class _OfPatches(nn.Module):
    """A network of patches, whose result describes z_1: [B, channels, h, w]."""

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.net(*inputs)
        return out.transpose(1, 2).reshape(len(out), -1, *self.size)


class _Patches(Patchify):
    """[B, C, H, W] to [B, patches, C p^2]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class _Select(nn.Module):
    """A network of one of several inputs."""

    def __init__(self, net: nn.Module, index: int) -> None:
        super().__init__()
        self.net, self.index = net, index

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.net(inputs[self.index])
        return out


class _AddedToPatches(Added):
    """state + net(state, z) for z [B, channels, h, w]."""

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """Add."""
        return super().forward(state, z.flatten(2).transpose(1, 2))


class PatchHierarchy(HierarchicalVAE):
    """A hierarchical VAE of images with two latent variables: z_2 describes the image, and z_1 each patch of it.

    A perceptron maps z_2 to a state for each patch. Given the state, small perceptrons, the same for all patches, make
    the prior of that patch's part of z_1, its q (from the state and the patch's pixels), and what z_1 adds to the
    state, from which a linear layer makes the outputs of the patch's pixels. So z_2 need not describe the details that
    pixels have in common with their neighbours alone.

    Args:
        shape: Shape of the data, [C, H, W].
        observation: p(x | z) given the decoder's outputs.
        latent_dims: Number of dimensions of z_1 for each patch, and of z_2; positive.
        patch: Side of the patches, at least 1; an image that they do not tile is padded with zeros for the encoder.
        width: Width of the hidden layers of the networks of the image, positive.
        patch_width: Size of a patch's state, and width of the hidden layers of the networks of patches; positive.
        depth: Residual blocks of the networks of the image, at least 0.
        dropout: Probability in these blocks, in [0, 1).
        inference: residual, ladder or direct, or a `TopDown`.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, there are not two sizes, or the data are not images.
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        latent_dims: Sequence[int] = (2, 32),
        patch: int = 4,
        width: int = 256,
        patch_width: int = 32,
        depth: int = 1,
        dropout: float = 0.0,
        inference: str | TopDown = "residual",
    ) -> None:
        check_kind("observation", observation, ObservationModel)
        check_images(shape, "MLPHierarchy, model/autoencoder=mlp_hierarchy")
        sizes = check_latent_dims(latent_dims)
        if len(sizes) > 2:
            raise ValueError(f"latent_dims must be two sizes, of a patch's and of the image's part; got {list(sizes)}")
        order: TopDown = as_instance("inference", inference, TOP_DOWN, TopDown)
        local, latent = sizes
        cut, patch_width = _Patches(patch), check_count("patch_width", patch_width)
        size = resolutions(shape[1:], cut.patch, 1)[0]
        count, pixels = math.prod(size), shape[0] * cut.patch**2
        network = partial(Perceptron, width=width, depth=depth, dropout=dropout)
        of_patches = partial(PatchNetwork, width=patch_width)
        posterior = _OfPatches(of_patches(pixels + patch_width, 2 * local, scale=SMALL_INIT), size)
        super().__init__(
            up=[cut, nn.Identity()],
            posterior=[posterior, _Select(network([[count, pixels]], [2 * latent]), 0)],
            prior=[_OfPatches(of_patches(patch_width, 2 * local, scale=SMALL_INIT), size), StandardNormal([latent])],
            down=[
                _AddedToPatches(of_patches(patch_width + local, patch_width, scale=math.sqrt(SMALL_INIT))),
                _Select(network([[latent]], [count, patch_width]), 1),
            ],
            decoder=FromPatches(patch_width, [observation.n_outputs, *shape], cut.patch),
            observation=observation,
            shape=shape,
            latent_shapes=[[local, *size], [latent]],
            inference=order,
        )
