"""What the autoencoders of images have in common: their networks of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.nn.autoencoder import ConvDecoder, ConvEncoder
from sde_diffusion.variational.observation import ObservationModel


def conv_networks(
    shape: Sequence[int],
    observation: ObservationModel,
    latent_channels: int,
    encoded: int,
    channels: Sequence[int],
    blocks: int,
    dropout: float,
    patch: int,
    otherwise: str,
) -> tuple[ConvEncoder, ConvDecoder, list[int]]:
    """The encoder, the decoder, and the shape of the one latent variable: channels, and the last of the resolutions.

    Args:
        shape: Shape of the data, [C, H, W].
        observation: p(x | z), which says how many outputs the decoder has for each value.
        latent_channels: Number of channels of z, at least 1.
        encoded: Number of the encoder's outputs for each value of z.
        channels: See `ConvEncoder`, as for the other arguments.
        blocks: See `ConvEncoder`.
        dropout: See `ConvEncoder`.
        patch: See `ConvEncoder`.
        otherwise: The alternative for data that are not images, for the message.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a number is out of its range, or the data are not images.
    """
    latent_channels = check_count("latent_channels", latent_channels)
    check_kind("observation", observation, ObservationModel)
    check_images(shape, otherwise)
    encoder = ConvEncoder(shape[0], encoded * latent_channels, channels, blocks, dropout, patch)
    decoder = ConvDecoder(latent_channels, [observation.n_outputs, *shape], channels, blocks, dropout, patch)
    return encoder, decoder, [latent_channels, *decoder.sizes[-1]]


def check_images(shape: Sequence[int], otherwise: str) -> None:
    """Check that a shape is that of images, and name another class for other data.

    Raises:
        ValueError: If it is not.
    """
    if len(shape) != 3:
        raise ValueError(f"convolutions are for images [C, H, W], and the data are {list(shape)}: use {otherwise}")
