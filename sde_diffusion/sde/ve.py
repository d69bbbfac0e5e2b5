"""Variance-exploding paths, on which alpha = 1 and the noise level grows: VE and EDM."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sde_diffusion.checks import check_fields
from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.coefficients import Time, clamp_keeping_slope, float64
from sde_diffusion.sde.grids import Grid, KarrasRho


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance-exploding path: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, lambda = -2 log sigma.

    g^2 = 2 sigma^2 log(sigma_max / sigma_min). With L geometric levels it is NCSN (see `grids.GeometricLevels`).

    Args:
        sigma_min: sigma at t = 0, positive.
        sigma_max: sigma at t = 1, above sigma_min; about the largest distance between two data points.
        t_min: Smallest time, where samplers end.
        t_max: Largest time, where samplers begin.

    Raises:
        ValueError: If not 0 < sigma_min < sigma_max, or not 0 <= t_min < t_max.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equations 9 and 29; Song & Ermon 2019, NCSN.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    _: KW_ONLY
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sigmas(self, self.sigma_min, self.sigma_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        """log sigma_min + t log(sigma_max / sigma_min)."""
        return math.log(self.sigma_min) + t * self._rate

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """log(sigma_max / sigma_min)."""
        return torch.full_like(t, self._rate)

    def time(self, log_snr: Time) -> Tensor:
        """log(sigma / sigma_min) / log(sigma_max / sigma_min), clamped at t = 0."""
        t = (-0.5 * float64(log_snr) - math.log(self.sigma_min)) / self._rate
        return clamp_keeping_slope(t, 0, math.inf)


@dataclass(frozen=True)
class EDMSDE(SDE):
    """EDM's path: alpha = 1, sigma = t, lambda = -2 log t, g^2 = 2 t. The time is the noise level.

    Args:
        sigma_min: Smallest noise level, the default of t_min; positive.
        sigma_max: Largest noise level, the default of t_max.
        t_min: Smallest time, where samplers end; sigma_min by default.
        t_max: Largest time, where samplers begin; sigma_max by default.

    Raises:
        ValueError: If not 0 < sigma_min < sigma_max, or not 0 <= t_min < t_max.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", section 3, table 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    _: KW_ONLY
    t_min: float = None  # type: ignore[assignment]  # sigma_min, filled in below
    t_max: float = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_fields(self)
        _check_sigmas(self, self.sigma_min, self.sigma_max)
        for name, default in (("t_min", self.sigma_min), ("t_max", self.sigma_max)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        """log t."""
        return t.log()

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """1 / t."""
        return 1 / t

    def sigma_rate(self, t: Time) -> Tensor:
        """1, also at t = 0, where the rate of log sigma is infinite."""
        return torch.ones_like(self.check_time(t))

    def time(self, log_snr: Time) -> Tensor:
        """exp(-lambda / 2)."""
        return (-0.5 * float64(log_snr)).exp()

    def default_grid(self) -> Grid:
        """EDM's grid, rho = 7: of uniform steps in t = sigma nearly all would be spent on pure noise."""
        return KarrasRho()


def _check_sigmas(sde: SDE, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"{type(sde).__name__} needs 0 < sigma_min < sigma_max; got sigma_min={sigma_min}, sigma_max={sigma_max}"
        )
