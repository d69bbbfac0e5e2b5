"""Normal distributions with a diagonal covariance: priors, posteriors and steps of latent variable models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_LOG_STD = 8.0
"""Bound of a network's log standard deviation: from e^-8 to e^8."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag exp(2 log_std)) for each sample of a batch.

    Attributes:
        mean: [B, *dims].
        log_std: [B, *dims], or a shape that broadcasts against it.
    """

    mean: Tensor
    log_std: Tensor

    @classmethod
    def of_outputs(cls, outputs: Tensor) -> Self:
        """The distribution that a network's outputs describe, [B, 2 C, *]: means, then log standard deviations.

        These are l -> 8 tanh(l / 8), which leaves small values as they are and keeps the standard deviation between
        e^-8 and e^8; unlike clamping, it has a gradient everywhere.
        """
        mean, log_std = outputs.chunk(2, dim=1)
        return cls(mean, _LOG_STD * torch.tanh(log_std / _LOG_STD))

    @classmethod
    def standard_like(cls, x: Tensor) -> Self:
        """N(0, I) of the shape of x."""
        return cls(torch.zeros_like(x), torch.zeros_like(x))

    @property
    def std(self) -> Tensor:
        """exp(log_std), [B, *dims]."""
        return self.log_std.exp().expand_as(self.mean)

    def draw(self, noise: Tensor) -> Tensor:
        """Mean + std noise: a draw, if the noise is standard normal; [B, *dims]."""
        return torch.addcmul(self.mean, self.std, noise)

    def standardised(self, z: Tensor) -> Tensor:
        """(z - mean) / std, the noise of which z is the draw; [B, *dims]."""
        return (z - self.mean) * (-self.log_std).exp()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at z [B, *dims], in nats; [B]."""
        return self.log_prob_terms(z).flatten(1).sum(1)

    def log_prob_terms(self, z: Tensor) -> Tensor:
        """The log-density of each dimension, [B, *dims]."""
        return -(0.5 * self.standardised(z).square() + self.log_std + 0.5 * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        """-E log q, in nats; [B]."""
        terms = self.log_std + 0.5 * (1 + math.log(2 * math.pi))
        return terms.expand_as(self.mean).flatten(1).sum(1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) = sum 1/2 (s^2 - 1 - log s^2 + m^2), s and m in units of the other's std; [B], in nats."""
        return self.kl_terms(other).flatten(1).sum(1)

    def kl_terms(self, other: DiagonalGaussian) -> Tensor:
        """The KL divergence of each dimension, [B, *dims]."""
        narrower = (self.log_std - other.log_std).expand_as(self.mean)
        apart = (self.mean - other.mean) * (-other.log_std).exp()
        return 0.5 * (torch.expm1(2 * narrower) - 2 * narrower + apart.square())

    def detach(self) -> Self:
        """The same distribution, without gradients to its parameters."""
        return type(self)(self.mean.detach(), self.log_std.detach())
