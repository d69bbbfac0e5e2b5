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
        from sde_diffusion.sde.checks import check_sde  # which imports this module

        check_sde(sde)
        t_end = sde.t_min if t_end is None else as_number("t_end", t_end)
        points = check_count("points", points)
        if not 0 <= t_end < sde.t_max:
            raise ValueError(f"t_end must lie in [0, t_max = {sde.t_max:g}) of {sde}; got {t_end}")
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
        return _pin((root + u * (math.sqrt(sde.t_max) - root)).square(), u, sde, t_end)


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    """lambda uniform: the choice of DPM-Solver (Lu et al. 2022, section 3.3). Needs t_end > 0 where sigma(0) = 0."""

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`."""
        start, end = _finite_log_snr(sde, sde.t_max), _finite_log_snr(sde, t_end)
        return _pin(sde.time(end + u * (start - end)), u, sde, t_end)


@dataclass(frozen=True)
class KarrasRho(Grid):
    """(sigma/alpha)^(1/rho) uniform, with rho = 7 (Karras et al. 2022, equation 5). rho -> infinity is uniform lambda.

    Raises:
        ValueError: If rho <= 0.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rho > 0:
            raise ValueError(f"rho must be positive (7 is usual); got {self.rho}")

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t; see `Grid.time`."""
        start, end = ((-0.5 * _finite_log_snr(sde, t) / self.rho).exp() for t in (sde.t_max, t_end))
        return _pin(sde.time(-2 * self.rho * (end + u * (start - end)).log()), u, sde, t_end)


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
        return _pin(sde.time(2 * (torch.log1p(-w / self.high) - (w - self.low).log())), u, sde, t_end)


class NoiseLevels(Grid):
    """Base of the discrete grids: a finite list of noise levels, from clean to noisy, each with its time on the path.

    u maps to the nearest noise level: a walk with fewer points skips some of the list.
    """

    @abstractmethod
    def log_snr(self) -> Tensor:
        """Log-SNR lambda of the noise levels, [N], float64, strictly decreasing (clean to noisy)."""

    def level_times(self, sde: SDE) -> Tensor:
        """Times of all noise levels on a path, [N], float64, increasing.

        Raises:
            ValueError: If a noise level lies beyond the path's t_max, or below its t = 0.
        """
        log_snr = self.log_snr()
        # The last noise level is often the path's own end, and the inverse may round past it.
        times = sde.time(log_snr)
        if times[-1] > sde.t_max * (1 + 1e-9):
            raise ValueError(
                f"{self} reaches log-SNR {log_snr[-1]:.4f}, beyond the end of {sde} "
                f"({sde.log_snr(sde.t_max).item():.4f}): give the path t_max={times[-1].item() * 1.0001:.5g} or more"
            )
        times = times.clamp(max=sde.t_max)
        missed = (sde.log_snr(times) - log_snr).abs().max().item()
        if not missed < 1e-6:
            raise ValueError(
                f"{self} has noise levels that {sde} does not reach (log-SNR off by {missed:.3g}): "
                "widen the path's range of noise levels"
            )
        return times

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to the time of the nearest noise level at or after t_end; see `Grid.time`.

        A walk that begins before the path's end begins at its own t_max, and takes the noise levels below.
        """
        times, whole = self.level_times(sde.whole), sde.whole
        # The walk begins with the noise of t_max: a first noise level far below would get the wrong amount.
        if (whole.log_snr(times[-1]) - whole.log_snr(whole.t_max)).item() > 0.1:
            raise ValueError(
                f"{self} ends at t = {times[-1].item():.5g} of {whole}, below the t_max where samplers begin: give the "
                f"path t_max={times[-1].item():.5g}"
            )
        times = times[times >= t_end * (1 - 1e-9)]  # the cleanest may round below the path's own end
        if not len(times):
            raise ValueError(f"{self} has no level at or after t_end={t_end:g} on {sde}")
        if times[-1] > sde.t_max:
            times = torch.cat([times[times < sde.t_max], times.new_tensor([sde.t_max])])
        return times[(u * (len(times) - 1)).round().long()]


@dataclass(frozen=True)
class BetaTable(NoiseLevels):
    """DDPM's N steps: beta_i = linspace(beta_start, beta_end, N), alpha_bar_i = prod_{j <= i} (1 - beta_j).

    lambda_i = log(alpha_bar_i / (1 - alpha_bar_i)): on a variance-preserving path step i is at the time where alpha^2 =
    alpha_bar_i exactly, so q(x_i | x_j) and the posteriors equal DDPM's to the last digit. The last step of the default
    table lies a little beyond t = 1 of the default VP path: give the path t_max=1.004.

    Args:
        n: Number of steps N, at least 1.
        beta_start: beta_1 in (0, 1).
        beta_end: beta_N in [beta_start, 1).

    Raises:
        ValueError: If n < 1 or the betas are not in (0, 1) and non-decreasing.

    References:
        Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section 4.
    """

    n: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n < 1 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"a beta table needs n >= 1 and 0 < beta_start <= beta_end < 1; got n={self.n}, "
                f"beta_start={self.beta_start}, beta_end={self.beta_end} (usual: 1000, 1e-4, 0.02)"
            )

    def log_snr(self) -> Tensor:
        """log(alpha_bar / (1 - alpha_bar)) through log1p and expm1."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.n, dtype=torch.float64)
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        return log_alpha_bar - (-torch.expm1(log_alpha_bar)).log()


@dataclass(frozen=True)
class GeometricLevels(NoiseLevels):
    """NCSN's L noise levels, geometric from sigma_min to sigma_max, for paths with alpha = 1.

    Args:
        n: Number of noise levels L, at least 2.
        sigma_min: Smallest noise level, positive.
        sigma_max: Largest noise level.

    Raises:
        ValueError: If n < 2 or not 0 < sigma_min < sigma_max.

    References:
        Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution", section 4.
    """

    n: int = 10
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n < 2 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"geometric levels need n >= 2 and 0 < sigma_min < sigma_max; got n={self.n}, "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def log_snr(self) -> Tensor:
        """-2 log sigma_i."""
        low, high = -2 * math.log(self.sigma_min), -2 * math.log(self.sigma_max)
        return torch.linspace(low, high, self.n, dtype=torch.float64)


def _finite_log_snr(sde: SDE, t: float) -> Tensor:
    log_snr = sde.log_snr(t)
    if not math.isfinite(log_snr.item()):
        raise ValueError(f"log-SNR is infinite at t={t:g} of {sde}: this grid needs an end away from there")
    return log_snr


def _pin(t: Tensor, u: Tensor, sde: SDE, t_end: float) -> Tensor:
    """Set the two ends to the exact times, which a map and its inverse have rounded; the derivative stays."""
    pinned = torch.where(u == 0, t_end, torch.where(u == 1, sde.t_max, t))
    return t + (pinned - t).detach()
