"""The vector quantised autoencoder: one latent variable, of codes of a codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.variational.chain import LatentVariable, PosteriorSample, SingleLatentAutoencoder, UsageCurves
from sde_diffusion.variational.convolutions import conv_networks
from sde_diffusion.variational.observation import ObservationModel
from sde_diffusion.variational.quantizer import VectorQuantizer, perplexity


@dataclass(frozen=True)
class UniformCodes:
    """p(z): at each position, each of K codes has the probability 1 / K.

    Attributes:
        codebook_size: K.
    """

    codebook_size: int

    def log_prob(self, z: Tensor) -> Tensor:
        """-(number of positions) log K, in nats, for codes z [B, dim, *positions]; [B]."""
        return z.new_full(z.shape[:1], -math.prod(z.shape[2:]) * math.log(self.codebook_size))

    def log_prob_terms(self, z: Tensor) -> Tensor:
        """-log K for each position, in nats; [B, *positions]."""
        return torch.full_like(z[:, 0], -math.log(self.codebook_size))

    def standardised(self, z: Tensor) -> None:
        """None: codes have no coordinates that are standard normal."""


@dataclass(frozen=True)
class NearestCodes:
    """q(z | x) of a deterministic encoder: at each position, the code nearest to the encoder's vector is certain.

    Attributes:
        mean: The encoder's vectors, which are not codes yet, [B, dim, *positions].
    """

    mean: Tensor

    @property
    def std(self) -> Tensor:
        """Zeros, [B, dim, *positions]."""
        return torch.zeros_like(self.mean)

    def draw(self, noise: Tensor) -> Tensor:
        """The vectors themselves; the noise is not used."""
        return self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        """log 1 = 0 for the nearest codes z; [B]."""
        return z.new_zeros(z.shape[:1])

    def log_prob_terms(self, z: Tensor) -> Tensor:
        """0 for each position; [B, *positions]."""
        return torch.zeros_like(z[:, 0])

    def kl(self, other: UniformCodes) -> Tensor:
        """(Number of positions) log K, in nats; [B]."""
        return -other.log_prob(self.mean)

    def kl_terms(self, other: UniformCodes) -> Tensor:
        """log K for each position, in nats; [B, *positions]."""
        return torch.full_like(self.mean[:, 0], math.log(other.codebook_size))

    def entropy(self) -> Tensor:
        """Not defined for the vectors.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a VQ encoder is deterministic and has no entropy: no bound in nats; take a VAE as first stage "
            "(model=vae), or sample and evaluate"
        )

    def commitment(self, z: Tensor) -> Tensor:
        """Sum of (mean - z)^2 for codes z, with a gradient to the encoder alone; [B]."""
        return (self.mean - z.detach()).square().flatten(1).sum(1)

    def detach(self) -> Self:
        """The same distribution, without a gradient to the encoder."""
        return type(self)(self.mean.detach())


class VQVAE(SingleLatentAutoencoder):
    """An autoencoder whose latent variable is a code of a codebook at each position.

    The encoder's vectors are replaced by the nearest of K codes, whose gradient is passed on to them as it is. With the
    uniform prior over codes, the bound is log p(x | z) - (number of positions) log K. Its training objective also pulls
    the vectors to their codes: `QuantizedELBO`.

    Samples of this model alone are decoded from independent, uniform codes, and look like noise: it is a first stage,
    for another model that learns the distribution of the latents. That model is trained on the vectors before
    quantisation, `encode(x).mean`, and `decode` quantises.

    Args:
        encoder: Network from x [B, *shape] to vectors [B, dim, *positions].
        decoder: Network from codes [B, dim, *positions] to [B, outputs, *shape].
        quantizer: The codebook.
        observation: p(x | z) given the decoder's outputs.
        shape: Shape of the data.
        latent_shape: [dim, *positions]; [dim]: one code for each item.

    References:
        van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    has_entropy = False
    quantized = True

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: VectorQuantizer,
        observation: ObservationModel,
        shape: Sequence[int],
        latent_shape: Sequence[int],
    ) -> None:
        super().__init__(decoder, observation, shape, latent_shape)
        self.encoder, self.quantizer = encoder, quantizer

    def encode(self, x: Tensor) -> NearestCodes:
        """q(z | x), of which `mean` is the vectors before quantisation."""
        return NearestCodes(self.encoder(x))

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> PosteriorSample:
        """The codes for x; in training, the codebook moves. The noise is not used."""
        q = self.encode(x)
        z = self.quantizer(q.mean).z
        latent = LatentVariable(z, q, UniformCodes(self.quantizer.codebook_size), closed=True)
        outputs = self._with_bias(z)
        return PosteriorSample([latent], self.observation.log_prob(x, outputs), outputs, q.commitment(z))

    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw each code uniformly, by the first channel of the noise."""
        uniform = torch.special.ndtr(noise[0][:, 0].double())
        size = self.quantizer.codebook_size
        index = (size * uniform).long().clamp(max=size - 1)
        return [self.quantizer.lookup(index)]

    def outputs(self, z: Sequence[Tensor]) -> Tensor:
        """The decoder's outputs for the codes nearest to z."""
        index = self.quantizer.index_of(z[0])
        return self._with_bias(self.quantizer.lookup(index).to(z[0]))

    def usage(self, found: PosteriorSample) -> dict[str, Tensor]:
        """How often each code was drawn, int64 [K]."""
        index = self.quantizer.index_of(found.latents[0].z).flatten()
        return {"counts": torch.bincount(index, minlength=self.quantizer.codebook_size)}

    def usage_metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Share of the codes that were used, and the perplexity of their frequencies."""
        counts = sums["counts"]
        return {"codes_used": (counts > 0).float().mean(), "perplexity": perplexity(counts)}

    def usage_curves(self) -> UsageCurves:
        """Of these metrics, as the KL divergence is constant."""
        size, labels = self.quantizer.codebook_size, {"codes_used": "codes used", "perplexity": "perplexity"}
        what = "how many codes are used, and their perplexity"
        return UsageCurves("codes", labels, f"codes, of {size}", what, {"codes_used": size}, 1.05 * size)


class ConvVQVAE(VQVAE):
    """A VQ-VAE of convolutions, for images: z has a code at each position of the last of the resolutions.

    Args:
        shape: Shape of the data, [C, H, W].
        observation: p(x | z) given the decoder's outputs.
        codebook_size: Number of codes K, at least 2.
        latent_channels: Number of channels of a code, at least 1.
        channels: Channels of the networks at each resolution, finest first; the image is halved from one to the next.
        blocks: Residual blocks at each resolution, at least 1.
        dropout: Probability in the blocks, in [0, 1).
        patch: Side of the patches of pixels that become channels, at least 1.
        decay: See `VectorQuantizer`.
        restart: See `VectorQuantizer`.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, or the data are not images.
    """

    def __init__(
        self,
        shape: Sequence[int],
        observation: ObservationModel,
        codebook_size: int = 256,
        latent_channels: int = 4,
        channels: Sequence[int] = (16, 32, 32),
        blocks: int = 1,
        dropout: float = 0.0,
        patch: int = 1,
        decay: float = 0.99,
        restart: float = 1.0,
    ) -> None:
        settings = (channels, blocks, dropout, patch, "an autoencoder with continuous latents, model=vae")
        encoder, decoder, latent_shape = conv_networks(shape, observation, latent_channels, 1, *settings)
        quantizer = VectorQuantizer(codebook_size, latent_channels, decay, restart)
        super().__init__(encoder, decoder, quantizer, observation, shape, latent_shape)
