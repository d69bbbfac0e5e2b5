r"""Grids of times: monotone maps u in [0, 1] -> t, from the clean end (u = 0) to the noisy one (u = 1).

A fixed-step method takes uniform steps in u. DDPM is the VP path on the grid of a table of betas, and NCSN the VE path
on a grid of geometric noise levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_count, check_fields

if TYPE_CHECKING:
    from sde_diffusion.sde.base import SDE


class Grid(ABC):
    """A monotone increasing map u in [0, 1] -> t in [t_end, t_max]."""

    @abstractmethod
    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t.

        Args:
            sde: The path.
            u: [N], float64, in [0, 1].
            t_end: The time at u = 0. The time at u = 1 is sde.t_max.

        Returns:
            t, [N], float64.
        """

    def times(self, sde: SDE, points: int, t_end: float | None = None) -> Tensor:
        """Times of a walk from noise to data, uniform in u.

        Args:
            sde: The path.
            points: Number of times, at least 1; the first is t_max and the last t_end (a single one is t_max).
            t_end: Where the walk ends; sde.t_min by default.

        Returns:
            [points], float64, strictly decreasing.

        Raises:
            TypeError: If sde is not a path.
            ValueError: If points < 1, if t_end lies outside [0, t_max), or if two times coincide.
        """
        points, t_end = check_walk(sde, points, t_end)
        times = self.time(sde, torch.linspace(1, 0, max(points, 2), dtype=torch.float64), t_end)[:points]
        if not bool((times[1:] < times[:-1]).all()):
            raise ValueError(f"{self} on {sde} has no {points} different times: ask for fewer steps")
        return times


@dataclass(frozen=True)
class UniformTime(Grid):
    """t = t_end + u (t_max - t_end): the choice of Song et al. 2021 and of DDPM's uniform stride."""

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`."""
        return torch.lerp(torch.full_like(u, t_end), torch.full_like(u, sde.t_max), u)


@dataclass(frozen=True)
class QuadraticTime(Grid):
    """sqrt t uniform: t = (sqrt t_end + u (sqrt t_max - sqrt t_end))^2, DDIM's quadratic stride (Song et al. 2021)."""

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`."""
        root = math.sqrt(t_end)
        return pin((root + u * (math.sqrt(sde.t_max) - root)).square(), u, sde, t_end)


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    """Log-SNR lambda uniform: the choice of DPM-Solver (Lu et al. 2022, section 3.3).

    Raises:
        ValueError: From `time`, if log-SNR is infinite at an end: it needs sigma(t_end) > 0 and alpha(t_max) > 0.
    """

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`."""
        start, end = finite_log_snr(sde, sde.t_max), finite_log_snr(sde, t_end)
        return pin(sde.time(end + u * (start - end)), u, sde, t_end)


@dataclass(frozen=True)
class KarrasRho(Grid):
    """EDM's noise levels, also called Karras sigmas: r = sigma / alpha, with r^(1/rho) uniform in u.

    r(u) = (a + u (b - a))^rho, where a^rho and b^rho are r at t_end (u = 0) and at t_max (u = 1). On the EDM path
    r = t, and these are EDM's levels. The larger rho, the more times lie at low noise: rho = 1 is uniform in r, and
    rho -> infinity uniform in log-SNR. Needs sigma(t_end) > 0 and alpha(t_max) > 0.

    Args:
        rho: The exponent, positive; EDM takes 7.

    Raises:
        ValueError: If rho <= 0; from `time`, if log-SNR is infinite at an end.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5;
        `get_sigmas_karras` in k-diffusion, `use_karras_sigmas` in diffusers.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rho > 0:
            raise ValueError(f"rho must be positive (7 is usual); got {self.rho}")

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`."""
        start, end = ((-0.5 * finite_log_snr(sde, t) / self.rho).exp() for t in (sde.t_max, t_end))
        return pin(sde.time(-2 * self.rho * (end + u * (start - end)).log()), u, sde, t_end)


@dataclass(frozen=True)
class BandLogSNR(Grid):
    r"""Uniform in log-SNR between two noise-to-signal ratios, coarser beyond: log((r + low) / (1 + r / high)) uniform.

    Here r = sigma / alpha. Below `low`, where even the finest detail of the data is visible, steps are uniform in r;
    above `high`, where noise hides the data, they are uniform in 1 / r. In both ranges little changes and few steps
    fall, however far the path extends, so that likelihoods take nearly the same steps on all paths.

    Args:
        low: Lower end of the band, positive: about the size of the finest detail of the data.
        high: Upper end, more than low: a few times the extent of the data.

    Raises:
        ValueError: If not 0 < low < high.
    """

    low: float = 0.05
    high: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.low < self.high:
            raise ValueError(f"a band needs 0 < low < high; got low={self.low}, high={self.high}")

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`. A path may end with alpha = 0."""
        start, end = (
            ((sde.sigma(t) + self.low * sde.alpha(t)) / (sde.alpha(t) + sde.sigma(t) / self.high)).log()
            for t in (sde.t_max, t_end)
        )
        # Where alpha or sigma is zero, log-SNR has no slope: at the ends take that of a point beside them.
        inside = u + (u.clamp(1e-9, 1 - 1e-9) - u).detach()
        w = (end + inside * (start - end)).exp()
        return pin(sde.time(2 * (torch.log1p(-w / self.high) - (w - self.low).log())), u, sde, t_end)


def check_walk(sde: SDE, points: int, t_end: float | None) -> tuple[int, float]:
    """The arguments of `Grid.times`, checked: the number of points, and the time where the walk ends.

    Raises:
        TypeError: If sde is not a path.
        ValueError: If points < 1, or if t_end lies outside [0, t_max).
    """
    from sde_diffusion.sde.checks import check_sde  # which imports this module

    check_sde(sde)
    t_end = sde.t_min if t_end is None else as_number("t_end", t_end)
    points = check_count("points", points)
    if not 0 <= t_end < sde.t_max:
        raise ValueError(f"t_end must lie in [0, t_max = {sde.t_max:g}) of {sde}; got {t_end}")
    return points, t_end


def finite_log_snr(sde: SDE, t: float) -> Tensor:
    """Log-SNR at t, [].

    Raises:
        ValueError: If it is infinite.
    """
    log_snr = sde.log_snr(t)
    if not math.isfinite(log_snr.item()):
        raise ValueError(f"log-SNR is infinite at t={t:g} of {sde}: this grid needs an end away from there")
    return log_snr


def pin(t: Tensor, u: Tensor, sde: SDE, t_end: float) -> Tensor:
    """Set the two ends to the exact times, which a map and its inverse have rounded; the derivative stays."""
    pinned = torch.where(u == 0, t_end, torch.where(u == 1, sde.t_max, t))
    return t + (pinned - t).detach()
