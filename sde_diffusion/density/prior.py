"""Densities at t_max: the prior of a likelihood."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers
from sde_diffusion.sde import SDE, Number

LogDensity = Callable[[Tensor], Tensor]
"""Log-density at t_max: [B, *] -> [B], in nats."""


def log_density(prior: LogDensity, x: Tensor) -> Tensor:
    """The log-density of a prior at x [B, *], in nats; [B].

    Raises:
        ValueError: If the prior returns another shape than [B].
    """
    found = prior(x)
    if found.shape != (len(x),):
        raise ValueError(f"prior must return one log-density for each sample, [{len(x)}]; got {list(found.shape)}")
    return found


class Prior(ABC):
    """A density at t_max whose expected logarithm under q(x_T | x_0) is known or can be estimated."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Log-density at x [B, *], in nats; [B], float64."""

    @abstractmethod
    def expected(self, mean: Tensor, std: Number, noise: Tensor) -> Tensor:
        """Expected log-density under N(mean, std^2), exact or estimated from noise; [B, *], number, [B, *] -> [B]."""

    def kl_of(self, marginal: GaussianPrior, size: int) -> float | None:
        """KL(marginal || self) in nats over `size` dimensions; None if it has no closed form."""
        return None


class SampledPrior(Prior):
    """Any log-density as a prior; its expectation is estimated from one draw, with |noise|^2 as a control variate.

    At t_max the state is mostly noise, so that log p is about -|noise|^2 / 2, whose expectation is known.

    Args:
        log_prob: The log-density.
    """

    def __init__(self, log_prob: LogDensity) -> None:
        self.log_prob = log_prob

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        return self.log_prob(x)

    def expected(self, mean: Tensor, std: Number, noise: Tensor) -> Tensor:
        """See `Prior.expected`.

        Raises:
            ValueError: If the log-density is not of shape [B].
        """
        log_prob = log_density(self.log_prob, mean + std * noise)
        excess = noise.flatten(1).double().square().sum(1) - noise[0].numel()
        return log_prob + 0.5 * excess


class GaussianPrior(Prior):
    """N(mean, diag variance).

    Args:
        mean: [*] or a number.
        variance: [*] or a number, positive.

    Raises:
        ValueError: If a variance is not positive.
    """

    def __init__(self, mean: Tensor | float, variance: Tensor | float) -> None:
        self.mean, self.variance = as_numbers("mean", mean), as_numbers("variance", variance)
        if not bool((self.variance > 0).all()):
            raise ValueError("the prior's variance must be positive")

    @classmethod
    def standard(cls, sde: SDE) -> GaussianPrior:
        """N(0, sigma(t_max)^2 I), the distribution from which samplers start."""
        return cls(0.0, sde.sigma(sde.t_max).square())

    @classmethod
    def matched(cls, sde: SDE, mean: Tensor | float, variance: Tensor | float) -> GaussianPrior:
        """The Gaussian with the moments of the marginal at t_max: N(alpha_T mean, alpha_T^2 variance + sigma_T^2).

        Args:
            sde: The path.
            mean: Mean of the data, [*] or a number.
            variance: Variance of the data in each dimension, [*] or a number.
        """
        alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
        mean, variance = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, variance))
        return cls(alpha * mean, alpha.square() * variance + sigma.square())

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        return self._log_prob(x.double(), 0.0)

    def expected(self, mean: Tensor, std: Number, noise: Tensor) -> Tensor:
        """See `Prior.expected`; exact."""
        return self._log_prob(mean.double(), std**2)

    def kl_of(self, marginal: GaussianPrior, size: int) -> float:
        """See `Prior.kl_of`."""
        ratio = marginal.variance / self.variance
        terms = 0.5 * (ratio - 1 - ratio.log() + (marginal.mean - self.mean).square() / self.variance)
        return float(terms.mean()) * size

    def _log_prob(self, x: Tensor, spread: Number) -> Tensor:
        mean, variance = self.mean.to(x.device), self.variance.to(x.device)
        terms = ((x - mean).square() + spread) / variance + (2 * math.pi * variance).log()
        return -0.5 * terms.flatten(1).sum(1)
