r"""From densities to bits per dimension of data on integer levels.

Level k of L is at x_k = 2 k / (L - 1) - 1 (`from_levels`), in the middle of a bin of width 2 / (L - 1). With u uniform
on the bin,

    log P(x) >= E_u log p(x + u) + D log width,

and, tighter, with K draws, log P(x) >= E log 1/K sum_k p(x + u_k) + D log width (Theis et al. 2016, "A Note on the
Evaluation of Generative Models", section 3.1; Burda et al. 2016, equation 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_count, check_floats
from sde_diffusion.checks.reprs import shown
from sde_diffusion.sampling import Noise

DEQUANTISATION_DRAWS = 1 << 41
"""Number of the first draw that dequantisation uses of a sample's noise stream; see `trace.PROBE_DRAWS`."""


def bits_per_dim(
    log_prob: Tensor,
    dims: int | Sequence[int],
    levels: int | None = 256,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Bits per dimension: -log_prob / (D ln 2) + log2(levels / range), the bins' width being range / levels.

    The last term is 8 for data on [0, 1] with 256 levels, and 7 for data on [-1, 1] with bins of width 2 / 256. The
    data sets of this library have levels at the middle of bins of width 2 / (L - 1): with data_range =
    `UniformDequantisation(256).data_range` it is 6.994.

    Args:
        log_prob: Log-density of (dequantised) data, in nats, a tensor of any shape or a number.
        dims: D, or the shape of one sample.
        levels: Number of levels in the range; None raises an error, as continuous data have no bins.
        data_range: The lower end of the first bin and the upper end of the last.

    Returns:
        Bits per dimension, of log_prob's shape.

    Raises:
        TypeError: If log_prob is a tensor of integers (data, perhaps).
        ValueError: If levels is missing or less than 2, dims is not positive or the range is empty.
    """
    if isinstance(log_prob, Tensor) and not log_prob.is_floating_point():
        raise TypeError(f"log_prob must be floats, log-densities in nats; got {log_prob.dtype}")
    log_prob = log_prob if isinstance(log_prob, Tensor) else torch.tensor(as_number("log_prob", log_prob))
    if levels is None:
        raise ValueError(
            "bits per dimension need the number of levels of the data: give levels (256 for 8-bit images), or leave "
            "continuous data in nats"
        )
    levels = check_count("levels", levels, least=2)
    size = math.prod(check_count("dims", n) for n in (dims if isinstance(dims, Sequence) else (dims,)))
    if not isinstance(data_range, Sequence) or len(data_range) != 2:
        raise ValueError(f"data_range must be (low, high); got {data_range!r}")
    low, high = (as_number("an end of data_range", end) for end in data_range)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"data_range must be (low, high) with low < high, both finite; got {shown(data_range)}")
    return -log_prob / (size * math.log(2)) + math.log2(levels / (high - low))


def in_bins(x: Tensor, levels: int | None, seeds: Sequence[int], draw: int = 0) -> tuple[Tensor, float]:
    """Continuous data and the log of their bins' volume: of data on levels draw number `draw` of x + u; x: [B, *].

    The log-density there plus that volume is, in expectation, a lower bound on the log-probability of the levels. Data
    without levels (None) stay as they are, with 0.
    """
    if levels is None:
        return x, 0.0
    fill = UniformDequantisation(levels)
    filled = fill(x, Noise(seeds, x.shape[1:], x.device, torch.float64), draw)
    return filled, math.prod(x.shape[1:]) * math.log(fill.width)


@dataclass(frozen=True)
class UniformDequantisation:
    """Uniform noise over the bins of L levels on [-1, 1].

    Args:
        levels: Number of levels L, at least 2.

    Raises:
        ValueError: If levels < 2.
    """

    levels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_count("levels", self.levels, least=2))

    @property
    def width(self) -> float:
        """Width of a bin, 2 / (L - 1)."""
        return 2 / (self.levels - 1)

    @property
    def data_range(self) -> tuple[float, float]:
        """The ends of the range that the bins fill, half a bin beyond the levels."""
        return -1 - self.width / 2, 1 + self.width / 2

    def __call__(self, x: Tensor, noise: Noise, draw: int) -> Tensor:
        """Draw number `draw` of x + u, from each sample's own noise stream; x: [B, *]."""
        return self.fill(x, torch.special.ndtr(noise.normal(DEQUANTISATION_DRAWS + draw)))

    def fill(self, x: Tensor, uniform: Tensor) -> Tensor:
        """x + width (uniform - 1/2), for uniform numbers in [0, 1] of x's shape; in their type.

        Raises:
            TypeError: If x is not a tensor of floats.
        """
        check_floats("x", x)
        return torch.add(x.to(uniform), uniform - 0.5, alpha=self.width)

    def bits_per_dim(self, log_probs: Tensor, dims: int | Sequence[int]) -> Tensor:
        """Bits per dimension of each sample from the log-densities of its K draws, [K, B] -> [B]."""
        log_mean = log_probs.logsumexp(0) - math.log(len(log_probs))
        return bits_per_dim(log_mean, dims, self.levels, self.data_range)
