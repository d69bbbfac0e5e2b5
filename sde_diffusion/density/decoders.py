"""Decoders p(x | x_{t_end}) of the evidence lower bound."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count, check_floats, check_sizes
from sde_diffusion.modality.levels import level_counts
from sde_diffusion.sde import SDE, Number, expand, number, on_device, value_of

_FEW = 32
"""Number of levels up to which all are evaluated at once, rather than those near z, one after another."""


class Decoder(ABC):
    """A decoder p(x | x_{t_end}) of a diffusion of the data, where x_{t_end} = alpha x + sigma noise.

    It has no network: x_{t_end} shows x itself, and how much noise is on it is known. A latent variable that a network
    must decode has an `ObservationModel` instead (`sde_diffusion.variational`), which describes x by that network's
    outputs.

    Attributes:
        continuous: Whether it is a density of continuous data, not a probability of data on levels.
        uses_data: Whether `fit` uses the data; if not, it need not be called.
    """

    continuous: bool = False
    uses_data: bool = False

    def default_t_end(self, sde: SDE) -> float:
        """The decoder's own choice of t_end: the path's t_min unless overridden."""
        return sde.t_min

    def candidate_t_ends(self, sde: SDE) -> list[float]:
        """Times to try as t_end (see `best_t_end`)."""
        return [self.default_t_end(sde)]

    def fit_statistics(self, x: Tensor) -> None:
        """Compute what the decoder takes from training data, [N, *dims], before training; does nothing by default."""
        return

    @abstractmethod
    def log_prob(self, sde: SDE, t_end: float, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x | x_{t_end}) at x_{t_end} = alpha z, in nats; [B, *], [B, *] -> [B]."""

    def expected(self, sde: SDE, t_end: float, x: Tensor, noise: Tensor) -> Tensor:
        """E log p(x | x_{t_end}), exact or estimated from this noise; [B, *], [B, *] -> [B]."""
        return self.log_prob(sde, t_end, x, x + expand(sde.sigma(t_end) / sde.alpha(t_end), x) * noise)


class GaussianDecoder(Decoder):
    """For continuous data: p(x | z) = N(z / alpha, (sigma / alpha)^2 I), with an exact expectation."""

    continuous = True

    def log_prob(self, sde: SDE, t_end: float, x: Tensor, z: Tensor) -> Tensor:
        """See `Decoder.log_prob`."""
        log_snr = on_device(sde.log_snr(t_end), x.device)
        square = (x - z).flatten(1).double().square().sum(1) * log_snr.exp()
        return -0.5 * (square + math.prod(x.shape[1:]) * (math.log(2 * math.pi) - log_snr))

    def expected(self, sde: SDE, t_end: float, x: Tensor, noise: Tensor) -> Tensor:
        """-D/2 (log(2 pi sigma^2 / alpha^2) + 1), as the noise has unit variance."""
        size = math.prod(x.shape[1:])
        value = -0.5 * size * (math.log(2 * math.pi) - sde.log_snr(t_end) + 1)
        return on_device(value, x.device).expand(len(x))


class LevelDecoder(Decoder, nn.Module):
    """For data on L levels in [-1, 1]: p(x | z) proportional to q(z | x) w(x) over the levels, for each dimension.

    The bound is then on the logarithm of a probability, and needs no dequantisation. By default t_end is where noise no
    longer hides the level, sigma / alpha being an eighth of the distance of two levels: the decoder then costs less
    than 1e-3 bits per dimension. A smaller t_end gains nothing, and loses much if the model was not trained there.

    Args:
        levels: Number of levels L, at least 2.
        weights: w, the frequency of each level in each dimension, [*dims, L], positive; equal by default. See
            `frequencies`. With these weights the decoder is the best that treats each dimension by itself, and t_end
            may be where noise hides the level, which makes the network's task easier.
        shape: In place of weights, the shape of an item, dims: the weights are then equal until `fit` counts the
            levels of training data.

    Raises:
        ValueError: If levels < 2, or the weights are not positive or do not fit.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", equation 8.
    """

    log_weights: Tensor | None

    def __init__(self, levels: int, weights: Tensor | None = None, shape: Sequence[int] | None = None) -> None:
        nn.Module.__init__(self)
        levels = check_count("levels", levels, least=2)
        self.uses_data = weights is None and shape is not None
        shape = None if shape is None else check_sizes("shape", shape)
        weights = torch.ones(*shape, levels) if shape is not None and weights is None else weights
        if weights is not None:
            check_floats("weights", weights)
        if weights is not None and (not weights.ndim or weights.shape[-1] != levels or not bool((weights > 0).all())):
            raise ValueError(f"weights must be positive and of shape [*dims, {levels}]; got {list(weights.shape)}")
        self.levels = levels
        self.register_buffer("log_weights", None if weights is None else weights.double().log())

    @classmethod
    def frequencies(cls, levels: int, x: Tensor) -> LevelDecoder:
        """The decoder whose weights are the counts of the levels in data [N, *dims] on [-1, 1], each plus one."""
        check_floats("x", x)
        found = cls(levels, shape=x.shape[1:])
        found.fit_statistics(x)
        return found

    def fit_statistics(self, x: Tensor) -> None:
        """Count the levels of training data, if `shape` was given: the weights are their frequencies, plus one each."""
        if self.uses_data and self.log_weights is not None:
            self.log_weights.copy_((level_counts(x, self.levels).movedim(0, -1).double() + 1).log())

    def default_t_end(self, sde: SDE) -> float:
        """The time where sigma / alpha = 1 / (4 (L - 1)), or t_min if that is later."""
        return max(sde.t_min, value_of(sde.time(2 * math.log(4 * (self.levels - 1)))))

    def candidate_t_ends(self, sde: SDE) -> list[float]:
        """The times where sigma / alpha is 1/8 to 4 times the distance of two levels."""
        ratios = [2 / (self.levels - 1) * step for step in (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2, 2, 3, 4)]
        times = [value_of(sde.time(-2 * math.log(ratio))) for ratio in ratios]
        return [t for t in times if sde.t_min <= t < sde.t_max] or [self.default_t_end(sde)]

    def log_prob(self, sde: SDE, t_end: float, x: Tensor, z: Tensor) -> Tensor:
        """The log-softmax over the levels, at the level of x."""
        precision = number(sde.log_snr(t_end).exp())
        width = 2 / (self.levels - 1)
        own_level = ((x + 1) / width).round()
        off = (own_level.clamp(0, self.levels - 1) * width - 1 - x).abs()
        if not bool((off <= 0.01 * width).all()):
            raise ValueError(
                f"x must lie on the {self.levels} levels from -1 to 1 (see `from_levels`), not between or beyond them; "
                "for continuous data take GaussianDecoder()"
            )
        log_weights = None if self.log_weights is None else self.log_weights.to(z)
        if self.levels <= _FEW:
            grid = torch.linspace(-1, 1, self.levels, dtype=z.dtype, device=z.device)
            exponents = -0.5 * precision * (z.unsqueeze(-1) - grid).square()
            exponents = exponents if log_weights is None else exponents + log_weights
            found = exponents.log_softmax(-1).gather(-1, own_level.long().unsqueeze(-1))
            return found.flatten(1).sum(1)
        # Levels beyond a few standard deviations contribute nothing: only those near z are evaluated.
        nearest = ((z + 1) / width).round().clamp(0, self.levels - 1)
        # Nine standard deviations, and more to compensate for the weights.
        spread = 0.0 if log_weights is None else float(log_weights.max() - log_weights.min())
        reach = min(self.levels - 1, math.ceil((81 + 2 * spread) ** 0.5 / (value_of(precision) ** 0.5 * width)) + 1)
        log_weights = None if log_weights is None else log_weights.expand(*x.shape, -1)
        own = self._exponent(z, own_level, precision, log_weights)
        total = torch.full_like(own, -math.inf)
        for offset in range(-reach, reach + 1):
            level = nearest + offset
            inside = (level >= 0) & (level < self.levels)
            exponent = self._exponent(z, level.clamp(0, self.levels - 1), precision, log_weights)
            total = torch.logaddexp(total, exponent.masked_fill(~inside, -math.inf))
        return (own - total).flatten(1).sum(1)

    def _exponent(self, z: Tensor, level: Tensor, precision: Number, log_weights: Tensor | None) -> Tensor:
        """log q(z | level) w(level) up to a constant."""
        exponent = -0.5 * precision * (z - (level * (2 / (self.levels - 1)) - 1)).square()
        if log_weights is None:
            return exponent
        return exponent + log_weights.gather(-1, level.long().unsqueeze(-1)).squeeze(-1)
