"""An interval of noise levels in which to guide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number
from sde_diffusion.checks.reprs import shown
from sde_diffusion.sde import SDE, value_of

_WIDEST = math.log(4.0)
"""Width of an edge in log(sigma/alpha)."""


@dataclass(frozen=True)
class NoiseInterval:
    """An interval of r = sigma / alpha with smooth edges: a window on log r, 1 inside, 0 outside.

    The lower edge is the polynomial h(v) = 35 v^4 - 84 v^5 + 70 v^6 - 20 v^7 of v = 1/2 + log(r / low) / width, clamped
    to [0, 1], and the upper edge is its mirror image. Three derivatives are continuous, so that solvers of high order
    need not shorten their steps as they would at a jump. The window is 1/2 at low and high. The width is log 4, from
    half of an end to twice it, or log(high / low) if that is less. Beyond the edges the window is exactly 0.

    Args:
        low: Lower end, at least 0 (0: no lower edge).
        high: Upper end, more than low (inf: no upper edge).
    """

    low: float
    high: float

    @classmethod
    def of(cls, ends: Any, sde: SDE) -> NoiseInterval | None:
        """The interval with the given ends, (low, high); None for None.

        Raises:
            ValueError: If they are not two numbers with 0 <= low < high, or the path has no such noise levels.
        """
        if ends is None:
            return None
        if isinstance(ends, str) or not isinstance(ends, Sequence) or len(ends) != 2:
            raise ValueError(f"interval must be two values of sigma/alpha, (low, high); got {shown(ends)}")
        low, high = (as_number("interval", end) for end in ends)
        if not 0 <= low < high:
            raise ValueError(
                f"interval must be (low, high) with 0 <= low < high, in sigma/alpha; got ({low:g}, {high:g})"
            )
        lowest, highest = (value_of((-0.5 * sde.log_snr(t)).exp()) for t in (sde.t_min, sde.t_max))
        if high <= lowest or low >= highest:
            raise ValueError(
                f"interval=({low:g}, {high:g}) lies outside the walk, on which sigma/alpha goes from {lowest:.4g} to "
                f"{highest:.4g}"
            )
        return cls(low, high)

    def window(self, log_snr: Tensor) -> Tensor:
        """The window at a log-SNR, of its shape, in [0, 1]."""
        log_r = -0.5 * log_snr
        width = _WIDEST if self.low == 0 else min(_WIDEST, math.log(self.high) - math.log(self.low))
        found = torch.ones_like(log_r)
        if self.low > 0:
            found = _edge(0.5 + (log_r - math.log(self.low)) / width)
        if self.high < math.inf:
            found = found * _edge(0.5 - (log_r - math.log(self.high)) / width)
        return found


def _edge(v: Tensor) -> Tensor:
    v = v.clamp(0, 1)
    return v.pow(4) * (35 + v * (-84 + v * (70 - 20 * v)))
