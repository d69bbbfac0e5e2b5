"""The variational autoencoder: one latent variable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sde_diffusion.checks import check_sizes
from sde_diffusion.variational.chain import Autoencoder, Inference, Level
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.observation import ObservationModel


class VAE(Autoencoder):
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
        super().__init__()
        self.encoder, self.decoder, self.observation = encoder, decoder, observation
        self.shape, self.latent_shapes = check_sizes("shape", shape), (check_sizes("latent_shape", latent_shape),)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x)."""
        return DiagonalGaussian.of_outputs(self.encoder(x))

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> Inference:
        """Draw z given x; see `LatentVariableModel.infer`."""
        q = self.encode(x)
        z = q.draw(noise[0])
        level = Level(z, q, DiagonalGaussian.standard_like(z), closed=True)
        return Inference([level], self.observation.log_prob(x, self.decoder(z)))

    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw z from N(0, I): the noise itself."""
        return [noise[0]]

    def outputs(self, z: Sequence[Tensor]) -> Tensor:
        """The decoder's outputs for z."""
        outputs: Tensor = self.decoder(z[0])
        return outputs
