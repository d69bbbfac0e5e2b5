"""Grids that are finite lists of noise levels, those of DDPM and NCSN, and all grids by name."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_diffusion.checks import check_choice, check_count, check_fields
from sde_diffusion.sde.grids import BandLogSNR, Grid, KarrasRho, QuadraticTime, UniformLogSNR, UniformTime

if TYPE_CHECKING:
    from sde_diffusion.sde.base import SDE


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
        times = self._within(times, sde, t_end)
        return times[(u * (len(times) - 1)).round().long()]

    def _within(self, times: Tensor, sde: SDE, t_end: float) -> Tensor:
        """The times from t_end on; where they reach beyond the path's t_max, those below it, and t_max."""
        times = times[times >= t_end * (1 - 1e-9)]  # the cleanest may round below the path's own end
        if not len(times):
            raise ValueError(f"{self} has no level at or after t_end={t_end:g} on {sde}")
        if times[-1] > sde.t_max:
            times = torch.cat([times[times < sde.t_max], times.new_tensor([sde.t_max])])
        return times


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


@dataclass(frozen=True)
class NoiseTable(NoiseLevels):
    """Any table of N noise levels, and which n of them a walk of n points takes: diffusers' spacings.

    With level numbers i = 0 ... N - 1 from clean to noisy and r = N // n:

        "linspace"   n numbers from 0 to N - 1, evenly spaced and rounded
        "leading"    0, r, 2 r, ..., (n - 1) r, plus `offset`; the noisiest levels are not among them
        "trailing"   N - 1, N - 1 - N / n, ..., rounded; the cleanest levels are not among them

    The walk begins at the noisiest of these with the noise of the path's t_max, as in diffusers. One that begins
    earlier or ends later takes its levels from those between, and begins at its own t_max.

    Args:
        alphas_bar: alpha_i^2 on a variance-preserving path, falling, each in (0, 1); two or more.
        spacing: "linspace", "leading" or "trailing".
        offset: Added to the numbers of "leading"; diffusers' steps_offset; at least 0.

    Raises:
        ValueError: If the numbers are not such a table, or the spacing is unknown.

    References:
        Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2 (the spacings).
    """

    alphas_bar: Sequence[float]
    spacing: str = "linspace"
    offset: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        table = torch.as_tensor(self.alphas_bar, dtype=torch.float64)
        falling = table.ndim == 1 and len(table) > 1 and bool((table.diff() < 0).all())
        if not (falling and float(table[-1]) > 0 and float(table[0]) < 1):
            raise ValueError("alphas_bar must be two or more falling numbers between 0 and 1")
        check_choice("spacing", self.spacing, ("linspace", "leading", "trailing"))
        check_count("offset", self.offset, least=0)

    def log_snr(self) -> Tensor:
        """log(alpha_bar / (1 - alpha_bar))."""
        return torch.logit(torch.as_tensor(self.alphas_bar, dtype=torch.float64))

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """The times of as many levels as there are numbers in u; see `Grid.time`."""
        times = self._within(self.level_times(sde.whole), sde, t_end)
        total, n = len(times), len(u)
        if n > total:
            raise ValueError(f"{self} has {total} between t_end={t_end:g} and t_max={sde.t_max:g}: ask for fewer steps")
        if self.spacing == "leading":
            numbers = (torch.arange(n) * (total // n) + self.offset).clamp(max=total - 1)
        elif self.spacing == "trailing":
            numbers = (total - torch.arange(n, dtype=torch.float64) * total / n).round().long().flip(0) - 1
        else:
            numbers = torch.linspace(0, total - 1, n, dtype=torch.float64).round().long()
        if sde.t_max < sde.whole.t_max:
            numbers[-1] = total - 1
        return times[numbers][(u * (n - 1)).round().long()]

    def __repr__(self) -> str:
        return f"NoiseTable({len(self.alphas_bar)} levels, {self.spacing})"


GRIDS: dict[str, type[Grid]] = {
    "uniform_time": UniformTime,
    "quadratic_time": QuadraticTime,
    "uniform_log_snr": UniformLogSNR,
    "karras_rho": KarrasRho,
    "band_log_snr": BandLogSNR,
    "beta_table": BetaTable,
    "geometric_levels": GeometricLevels,
}
"""The grids by name, with their default settings."""
