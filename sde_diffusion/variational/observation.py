"""Distributions p(x | z) of data given the outputs of a decoder network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_positive, check_bool, check_count
from sde_diffusion.modality.levels import from_levels, level_counts, to_levels

_LEAST_LOG_SCALE, _MOST_LOG_SCALE = -7.0, 20.0


class ObservationModel(nn.Module, ABC):
    """A distribution p(x | z) of data, independent for each value given a network's outputs [B, outputs, *dims].

    The network is the decoder of an autoencoder, and z may be of any shape and meaning. In a diffusion of the data,
    x_{t_end} is x itself with a known amount of noise, which no network decodes: see `Decoder`
    (`sde_diffusion.density`).

    Attributes:
        n_outputs: Number of outputs of the network for each value of the data.
        levels: Number of levels, for a probability of discrete data; None for a density of continuous data.
    """

    n_outputs: int
    levels: int | None = None

    @abstractmethod
    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Log p(x), in nats; for data on levels a probability, for continuous data a density.

        Args:
            x: Data on [-1, 1], [B, *dims].
            outputs: [B, outputs, *dims].

        Returns:
            [B].
        """

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """The expected data, [B, *dims]."""

    @abstractmethod
    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Data drawn from the distribution, [B, *dims], with standard normal noise of that shape."""

    def check_data(self, levels: int | None, dequantise: bool = False) -> None:
        """Check that it can describe data.

        Args:
            levels: Number of levels of the data; None: continuous ones.
            dequantise: Whether noise of the width of a level is added to them.

        Raises:
            ValueError: If it is for data with another number of levels, or for continuous ones.
        """
        name = type(self).__name__
        if self.levels is not None and self.levels != levels:
            _refuse(name, f"data with {self.levels} levels", levels)
        if self.levels is not None and dequantise:
            raise ValueError(
                f"{name} is for levels, and model.dequantise=true makes values between the levels of the data: leave "
                "it out, or take observation=gaussian"
            )
        if self.levels is None and levels is not None and not dequantise:
            raise ValueError(
                f"{name} is a density, which is unbounded for data on {levels} levels: take "
                f"{type(observation_for(levels)).__name__}, their default, or model.dequantise=true"
            )

    def marginal_outputs(self, x: Tensor) -> Tensor:
        """Outputs that describe data [N, *dims] without z, [outputs, *dims], from which to start training.

        A decoder whose last bias has these values does not first have to learn what is the same for all data.
        """
        return torch.zeros(self.n_outputs, *x.shape[1:])


class Categorical(ObservationModel):
    """For data on L levels: any probabilities of the levels, by a softmax; best for few levels (up to 32, say).

    Args:
        levels: Number of levels L, from 2 to 256.

    Raises:
        ValueError: If it is out of range.
    """

    levels: int

    def __init__(self, levels: int | None) -> None:
        super().__init__()
        self.levels = self.n_outputs = _few(type(self).__name__, levels)

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """See `ObservationModel.log_prob`; a log-probability."""
        index = to_levels(x, self.levels).long()
        return -F.cross_entropy(outputs, index, reduction="none").flatten(1).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """See `ObservationModel.mean`."""
        values = from_levels(torch.arange(self.levels, device=outputs.device), self.levels).to(outputs)
        return torch.einsum("bl...,l->b...", outputs.softmax(1), values)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """See `ObservationModel.draw`."""
        uniform = torch.special.ndtr(noise.double()).unsqueeze(1)
        index = (outputs.double().softmax(1).cumsum(1) < uniform).sum(1).clamp(max=self.levels - 1)
        return from_levels(index, self.levels).to(outputs)

    def marginal_outputs(self, x: Tensor) -> Tensor:
        """See `ObservationModel.marginal_outputs`: log frequencies of the levels, each counted once more."""
        counts = level_counts(x, self.levels) + 1
        return (counts / counts.sum(0)).log()


class DiscretizedLogistic(ObservationModel):
    """For data on L levels: a logistic distribution, whose mass over the bin of a level is its probability.

    The bins have width 2 / (L - 1), with the levels in their middle; the outermost ones reach to infinity. With
    a, b = (x - m ± 1 / (L - 1)) / scale and the sigmoid S, log(S(a) - S(b)) is computed as log S(a) + log S(-b) +
    log(1 - exp(b - a)), which keeps its digits where both are near 0 or 1.

    Args:
        levels: Number of levels L, from 2 to 256.

    Raises:
        ValueError: If it is out of range.

    References:
        Salimans et al. 2017, "PixelCNN++", section 2.1 (there the difference itself is clamped).
    """

    n_outputs = 2
    levels: int

    def __init__(self, levels: int | None) -> None:
        super().__init__()
        self.levels = _few(type(self).__name__, levels)

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """See `ObservationModel.log_prob`; a log-probability."""
        mean, log_scale = self._mean_and_log_scale(outputs)
        half = 1 / (self.levels - 1)
        sharpness = (-log_scale).exp()
        upper, lower = (x - mean + half) * sharpness, (x - mean - half) * sharpness
        below = torch.where(x > 1 - half, 0.0, F.logsigmoid(upper))
        above = torch.where(x < -1 + half, 0.0, F.logsigmoid(-lower))
        inside = x.abs() < 1 - half
        # In terms of the width and not of the ends, whose difference would lose digits far from the mean.
        width = torch.where(inside, torch.log(-torch.expm1(-2 * half * sharpness)), 0.0)
        return (below + above + width).flatten(1).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """The location m within [-1, 1], which is the mean but for what lies beyond the ends."""
        return self._mean_and_log_scale(outputs)[0].clamp(-1, 1)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """See `ObservationModel.draw`."""
        mean, log_scale = self._mean_and_log_scale(outputs)
        uniform = torch.special.ndtr(noise.double())
        x = (mean + log_scale.exp() * uniform.logit().to(mean)).clamp(-1, 1)
        return from_levels(to_levels(x, self.levels), self.levels).to(x)

    def marginal_outputs(self, x: Tensor) -> Tensor:
        """See `ObservationModel.marginal_outputs`: mean and scale of each value, for its standard deviation."""
        scale = x.std(0, correction=0).clamp(min=1 / (self.levels - 1)) * (math.sqrt(3) / math.pi)
        above = scale.log() - _LEAST_LOG_SCALE  # positive for up to 256 levels; the inverse of softplus
        return torch.stack([x.mean(0), _LEAST_LOG_SCALE + above + torch.log(-torch.expm1(-above))])

    def _mean_and_log_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = outputs.unbind(1)
        return mean, (_LEAST_LOG_SCALE + F.softplus(log_scale - _LEAST_LOG_SCALE)).clamp(max=_MOST_LOG_SCALE)


class Gaussian(ObservationModel):
    """For continuous data: N(m, sigma^2 I) with one sigma for all values, which is a parameter.

    Its best value is the root of the mean squared error. A fixed one weighs the two terms of the bound: |x - m|^2 + KL
    is sigma^2 = 1/2, and the mean of the squared errors over D values + KL is sigma^2 = D / 2, where most latents
    collapse.

    Args:
        std: sigma, or the value at which to start; positive.
        learned: Whether sigma is trained.

    Raises:
        ValueError: If std is not a positive number, or learned not true or false.

    References:
        Rybkin et al. 2021, "Simple and Effective VAE Training with Calibrated Decoders".
    """

    n_outputs = 1

    def __init__(self, std: float = 0.5, learned: bool = True) -> None:
        super().__init__()
        self.learned = check_bool("learned", learned)
        self.log_std = nn.Parameter(torch.tensor(as_positive("std", std)).log(), requires_grad=self.learned)

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """See `ObservationModel.log_prob`; a log-density."""
        terms = 0.5 * ((x - outputs[:, 0]) * (-self.log_std).exp()).square() + self.log_std
        return -(terms + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """See `ObservationModel.mean`."""
        return outputs[:, 0]

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """See `ObservationModel.draw`."""
        return outputs[:, 0] + self.log_std.exp() * noise

    def marginal_outputs(self, x: Tensor) -> Tensor:
        """See `ObservationModel.marginal_outputs`."""
        return x.mean(0, keepdim=True)


class Bernoulli(ObservationModel):
    """For binary data, -1 and 1: p(1) is the sigmoid of the output. Grey levels are not binary data."""

    n_outputs, levels = 1, 2

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """See `ObservationModel.log_prob`; a log-probability."""
        return F.logsigmoid(x * outputs[:, 0]).flatten(1).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """See `ObservationModel.mean`."""
        return (0.5 * outputs[:, 0]).tanh()

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """See `ObservationModel.draw`."""
        return torch.where(torch.special.ndtr(noise) < outputs[:, 0].sigmoid(), 1.0, -1.0).to(outputs)

    def marginal_outputs(self, x: Tensor) -> Tensor:
        """See `ObservationModel.marginal_outputs`."""
        ones = (x > 0).sum(0, keepdim=True)
        return ((ones + 1) / (len(x) - ones + 1)).log()


def observation_for(levels: int | None) -> ObservationModel:
    """The observation model of data: Gaussian for continuous ones, categorical for up to 32 levels, else logistic."""
    if levels is None:
        return Gaussian()
    return Categorical(levels) if levels <= 32 else DiscretizedLogistic(levels)


def _few(name: str, levels: int | None) -> int:
    if levels is None:
        _refuse(name, "data with 2 to 256 levels", levels)
    return check_count("levels", levels, least=2, most=256)


def _refuse(name: str, what: str, levels: int | None) -> NoReturn:
    its = "are continuous" if levels is None else f"have {levels} levels"
    fitting = type(observation_for(levels)).__name__
    raise ValueError(f"{name} is for {what}, and these data {its}: take {fitting}, their default")
