"""The first stage of latent diffusion: a trained autoencoder, whose latent variable another model describes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_kind
from sde_diffusion.errors import UserError
from sde_diffusion.variational.chain import Autoencoder, Posterior, SingleLatentAutoencoder

_LEAST_STD = 1e-6
"""A channel with a smaller standard deviation, times 1 + |mean|, is constant but for rounding."""


def why_no_first_stage(autoencoder: Autoencoder) -> str:
    """Why an autoencoder cannot be a first stage, in words; empty if it can."""
    if (count := len(autoencoder.latent_shapes)) > 1:
        return f"a first stage has one latent variable, and this model has {count}"
    if not isinstance(autoencoder, SingleLatentAutoencoder):
        return f"a first stage is a SingleLatentAutoencoder, which {type(autoencoder).__name__} is not"
    return ""


class FirstStage(nn.Module):
    r"""A frozen autoencoder with one latent variable z, and its standardised form w = (z - shift) / scale.

    Shift and scale are the mean and the standard deviation of z in each channel over the training data,

        shift = mean of mu(x),      scale^2 = variance of mu(x) + mean of s(x)^2,

    for q(z | x) with mean mu and standard deviation s; they are 0 and 1 until `measure` is called. As densities,

        log p_z(z) = log p_w(w) - sum of log scale, over all positions of each channel.

    Its parameters have no gradients, it is always in evaluation mode, and it computes in its own precision, outside of
    autocast: some autoencoders overflow in half precision.

    Args:
        autoencoder: A `SingleLatentAutoencoder`, whose `encode(x)` returns q(z | x).

    Raises:
        TypeError: If it is not an autoencoder.
        UserError: If it has several latent variables, or is no `SingleLatentAutoencoder`.

    Attributes:
        shape: Shape of the data.
        latent_shape: Shape of z and w, [C, *].
        description: From which it can be rebuilt, in plain Python containers; None: it cannot.

    References:
        Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; there one scale for all
        channels is measured on the first batch, and nothing is shifted.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        check_kind("autoencoder", autoencoder, Autoencoder)
        if reason := why_no_first_stage(autoencoder):
            raise UserError(f"{reason}: take model=vae")
        assert isinstance(autoencoder, SingleLatentAutoencoder)
        self.autoencoder: SingleLatentAutoencoder = autoencoder.requires_grad_(False)
        self.description: dict[str, Any] | None = None
        self.shape, self.latent_shape = tuple(autoencoder.shape), tuple(autoencoder.latent_shapes[0])
        channels = (self.latent_shape[0], *(1,) * (len(self.latent_shape) - 1))
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Set shift and scale to those of data, given in batches [B, *shape].

        Raises:
            UserError: If a channel is constant, or there are no data.
        """
        count = 0
        total = squares = torch.zeros(self.latent_shape[0], dtype=torch.float64, device=self.shift.device)
        for x in batches:
            q = self.encode(x)
            mean, std = q.mean.double(), q.std.double()
            count += len(x)
            total = total + _of_channels(mean)
            squares = squares + _of_channels(mean.square() + std.square())
        if not count:
            raise UserError("the first stage's shift and scale need data to be measured on, and there are none")
        values = count * math.prod(self.latent_shape[1:])
        shift = total / values
        scale = (squares / values - shift.square()).clamp(min=0).sqrt()
        for channel in range(len(scale)):
            if not bool(scale[channel] > _LEAST_STD * (1 + shift[channel].abs())):
                raise UserError(
                    f"channel {channel} of the first stage carries nothing: std {float(scale[channel]):.1g} over the "
                    "training data. Train it with fewer latent channels, or a smaller objective.beta"
                )
        self.shift.copy_(shift.reshape(self.shift.shape))
        self.scale.copy_(scale.reshape(self.scale.shape))

    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) for data [B, *shape], of z as it is."""
        with _own_precision(x):
            return self.autoencoder.encode(x.to(self.shift))

    def standardise(self, z: Tensor) -> Tensor:
        """The latent variables w = (z - shift) / scale of z, [B, *latent_shape]."""
        return (z - self.shift) / self.scale

    def draw_latents(self, x: Tensor, noise: Tensor) -> Tensor:
        """Draw w given x, with standard normal noise [B, *latent_shape]."""
        return self.standardise(self.encode(x).draw(noise.to(self.shift)))

    def decode(self, w: Tensor) -> Tensor:
        """The mean of p(x | w), on the data's scale of [-1, 1]; [B, *shape]."""
        with _own_precision(w):
            return self.autoencoder.decode([self._original(w)])

    def draw_data(self, w: Tensor, noise: Tensor) -> Tensor:
        """Draw x from p(x | w), with standard normal noise [B, *shape]."""
        with _own_precision(w):
            return self.autoencoder.draw_data([self._original(w)], noise.to(self.shift))

    def log_prob(self, x: Tensor, w: Tensor) -> Tensor:
        """Log p(x | w), in nats; [B]."""
        with _own_precision(w):
            outputs = self.autoencoder.outputs([self._original(w)])
            return self.autoencoder.observation.log_prob(x.to(self.shift), outputs)

    @property
    def log_scale(self) -> float:
        """Sum of log scale over all positions of each channel: log p_z = log p_w - log_scale."""
        return float(self.scale.double().log().sum()) * math.prod(self.latent_shape[1:])

    def _original(self, w: Tensor) -> Tensor:
        """The latent variables z of w."""
        return torch.addcmul(self.shift, self.scale, w.to(self.shift))


def _own_precision(x: Tensor) -> torch.autocast:
    """Context in which modules compute in the type of their weights."""
    return torch.autocast(x.device.type, enabled=False)


def _of_channels(values: Tensor) -> Tensor:
    """Sums of [B, C, *] over all but the channels, [C]."""
    return values.flatten(2).sum((0, 2)) if values.ndim > 2 else values.sum(0)
