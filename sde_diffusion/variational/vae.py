"""The variational autoencoder: one latent variable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.nn.autoencoder import Perceptron
from sde_diffusion.nn.patches import decoder_of
from sde_diffusion.variational.chain import LatentVariable, PosteriorSample, SingleLatentAutoencoder
from sde_diffusion.variational.convolutions import conv_networks
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.observation import ObservationModel


class VAE(SingleLatentAutoencoder):
    """p(z) = N(0, I), p(x | z) given by a decoder network, and q(z | x) = N(mean(x), diag std(x)^2) by an encoder.

    The bound is E_q log p(x | z) - KL(q || p), with the KL divergence in closed form.

    Args:
        encoder: Network from x [B, *shape] to [B, 2 C, *], for z of shape [C, *]: means and log standard deviations.
        decoder: Network from z to [B, outputs, *shape], as many outputs for each value as the observation model takes.
        observation: p(x | z) given the decoder's outputs.
        shape: Shape of the data.
        latent_shape: Shape of z.

    References:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Rezende et al. 2014, "Stochastic Backpropagation and
        Approximate Inference in Deep Generative Models".
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        observation: ObservationModel,
        shape: Sequence[int],
        latent_shape: Sequence[int],
    ) -> None:
        super().__init__(decoder, observation, shape, latent_shape)
        self.encoder = encoder

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x)."""
        return DiagonalGaussian.of_outputs(self.encoder(x))

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> PosteriorSample:
        """Draw z given x; see `LatentVariableModel.infer`."""
        q = self.encode(x)
        z = q.draw(noise[0])
        latent = LatentVariable(z, q, DiagonalGaussian.standard_like(z), closed=True)
        outputs = self._with_bias(z)
        return PosteriorSample([latent], self.observation.log_prob(x, outputs), outputs)

    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw z from N(0, I): the noise itself."""
        return [noise[0]]

    def outputs(self, z: Sequence[Tensor]) -> Tensor:
        """The decoder's outputs for z."""
        return self._with_bias(z[0])


class MLPVAE(VAE):
    """An MLP VAE, for data of any shape.

    Args:
        shape: Shape of the data.
        observation: p(x | z) given the decoder's outputs.
        latent_dim: Number of latent dimensions, at least 1.
        width: Width of the hidden layers, positive.
        depth: Residual blocks of each network, at least 0.
        dropout: Probability in the blocks, in [0, 1).
        patch: Side of the patches of `PatchDecoder`, for images, of which few are then enough; None: no patches.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        latent_dim: int = 16,
        width: int = 256,
        depth: int = 1,
        dropout: float = 0.0,
        patch: int | None = None,
    ) -> None:
        latent_dim = check_count("latent_dim", latent_dim)
        check_kind("observation", observation, ObservationModel)
        encoder = Perceptron([shape], [2 * latent_dim], width, depth, dropout)
        decoder = decoder_of([latent_dim], [observation.n_outputs, *shape], patch, width, depth, dropout)
        super().__init__(encoder, decoder, observation, shape, [latent_dim])


class ConvVAE(VAE):
    """A VAE of convolutions, for images: z has `latent_channels` channels, at the last of the resolutions.

    Args:
        shape: Shape of the data, [C, H, W].
        observation: p(x | z) given the decoder's outputs.
        latent_channels: Number of channels of z, at least 1.
        channels: Channels of the networks at each resolution, finest first; the image is halved from one to the next.
        blocks: Residual blocks at each resolution, at least 1.
        dropout: Probability in the blocks, in [0, 1).
        patch: Side of the patches of pixels that become channels, at least 1; 2 costs about a quarter of 1.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, or the data are not images.
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        latent_channels: int = 4,
        channels: Sequence[int] = (16, 32, 32),
        blocks: int = 1,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        settings = (channels, blocks, dropout, patch, "MLPVAE, model/autoencoder=mlp")
        encoder, decoder, latent_shape = conv_networks(shape, observation, latent_channels, 2, *settings)
        super().__init__(encoder, decoder, observation, shape, latent_shape)
