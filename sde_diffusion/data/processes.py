"""Signals of random processes whose distribution is known exactly."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive, check_count
from sde_diffusion.data.densities import Density, Sizes


class OrnsteinUhlenbeck(Density):
    """Signals [C, L] of the stationary Ornstein-Uhlenbeck process, in independent channels.

    Gaussian with mean 0 and Cov(x_i, x_j) = s^2 exp(-|i - j| / tau) in each channel: with a = exp(-1/tau)

        x_1 = s z_1,   x_{k+1} = a x_k + s sqrt(1 - a^2) z_{k+1},   z_k ~ N(0, 1).

    Args:
        channels: C, at least 1.
        length: L, the number of steps of a signal, at least 1.
        scale: s, the standard deviation of every value, positive.
        correlation: tau, in steps, positive.
        **sizes: See `Density` and `DataModule`.

    References:
        Uhlenbeck & Ornstein 1930, "On the Theory of the Brownian Motion".
    """

    name = "ornstein_uhlenbeck"

    def __init__(
        self,
        channels: int = 2,
        length: int = 32,
        scale: float = 0.35,
        correlation: float = 8.0,
        **sizes: Unpack[Sizes],
    ) -> None:
        super().__init__(**sizes)
        self.channels, self.length = check_count("channels", channels), check_count("length", length)
        self.scale, self.correlation = as_positive("scale", scale), as_positive("correlation", correlation)

    @property
    def _decay(self) -> float:
        return math.exp(-1 / self.correlation)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw signals, float64 [n, C, L]."""
        x = self.scale * torch.randn(n, self.channels, self.length, generator=generator, dtype=torch.float64)
        fresh = math.sqrt(-math.expm1(-2 / self.correlation))
        for k in range(1, self.length):
            x[..., k] = self._decay * x[..., k - 1] + fresh * x[..., k]
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form, float64 [B]: given the previous step, each step is normal."""
        x = x.double()
        steps = torch.cat([x[..., :1], x[..., 1:] - self._decay * x[..., :-1]], -1)
        std = torch.full((self.length,), self.scale, dtype=torch.float64, device=x.device)
        std[1:] *= math.sqrt(-math.expm1(-2 / self.correlation))
        normalised = math.log(2 * math.pi) * self.length + 2 * std.log().sum()
        return -0.5 * ((steps / std).square().sum(-1) + normalised).sum(-1)
