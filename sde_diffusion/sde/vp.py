r"""Paths on which the signal fades as noise grows: VP, sub-VP and cosine.

They avoid `1 - exp(...)`, which loses all digits near t = 0 (in float32, 1 - e^-B is off by 1.2% at t = 1e-5).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.coefficients import Time, clamp_keeping_slope, float64


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """Base of the paths with beta(t) = beta_min + t (beta_max - beta_min): alpha = exp(-B/2), and the inverse of B."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    _: KW_ONLY
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, both finite; got beta_min={self.beta_min}, "
                f"beta_max={self.beta_max} (the usual values are 0.1 and 20)"
            )

    def beta(self, t: Tensor) -> Tensor:
        """beta(t), float64."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t) = integral of beta from 0 to t, float64."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def log_alpha(self, t: Tensor) -> Tensor:
        """-B(t)/2."""
        return -0.5 * self.integral(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """-beta(t)/2."""
        return -0.5 * self.beta(t)

    def _invert_integral(self, b: Tensor) -> Tensor:
        # The root of the quadratic in the form without cancellation for small b.
        return 2 * b / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b).sqrt())


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance-preserving path: log alpha = -B/2, sigma = sqrt(-expm1(-B)), lambda = -log expm1(B), g^2 = beta.

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2. With a grid of N times it is DDPM (see `grids.BetaTable`).

    Args:
        beta_min: beta at t = 0, positive.
        beta_max: beta at t = 1, at least beta_min.
        t_min: Smallest time, where samplers end.
        t_max: Largest time, where samplers begin.

    Raises:
        ValueError: If not 0 < beta_min <= beta_max, or not 0 <= t_min < t_max.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equations 11 and 29; Ho et al. 2020, DDPM.
    """

    def log_sigma(self, t: Tensor) -> Tensor:
        """log(-expm1(-B))/2."""
        return 0.5 * (-torch.expm1(-self.integral(t))).log()

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """beta / (2 expm1(B))."""
        return 0.5 * self.beta(t) / torch.expm1(self.integral(t))

    def diffusion(self, t: Time) -> Tensor:
        """sqrt(beta), also at t = 0, where d sigma / dt is infinite."""
        return self.beta(self.check_time(t)).sqrt()

    def sigma_rate(self, t: Time) -> Tensor:
        """beta exp(-B) / (2 sigma), infinite at t = 0."""
        t = self.check_time(t)
        return 0.5 * self.beta(t) * (-self.integral(t)).exp() / self.log_sigma(t).exp()

    def time(self, log_snr: Time) -> Tensor:
        """t with B(t) = softplus(-lambda)."""
        log_snr = float64(log_snr)
        return self._invert_integral(torch.logaddexp(torch.zeros_like(log_snr), -log_snr))  # softplus, for any lambda


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP path: log alpha = -B/2, sigma = -expm1(-B), lambda = -2 log(2 sinh(B/2)), g^2 = -beta expm1(-2B).

    Its variance stays below the VP path's: alpha^2 + sigma = 1, so alpha^2 is not sigmoid(lambda).

    Args:
        beta_min: beta at t = 0, positive.
        beta_max: beta at t = 1, at least beta_min.
        t_min: Smallest time, where samplers end.
        t_max: Largest time, where samplers begin.

    Raises:
        ValueError: If not 0 < beta_min <= beta_max, or not 0 <= t_min < t_max.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equations 14 and 29.
    """

    def log_sigma(self, t: Tensor) -> Tensor:
        """log(-expm1(-B))."""
        return (-torch.expm1(-self.integral(t))).log()

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """beta / expm1(B)."""
        return self.beta(t) / torch.expm1(self.integral(t))

    def sigma_rate(self, t: Time) -> Tensor:
        """beta exp(-B), also at t = 0, where the rate of log sigma is infinite."""
        t = self.check_time(t)
        return self.beta(t) * (-self.integral(t)).exp()

    def time(self, log_snr: Time) -> Tensor:
        """t with B(t) = 2 asinh(exp(-lambda/2) / 2)."""
        return self._invert_integral(2 * torch.asinh(0.5 * (-0.5 * float64(log_snr)).exp()))


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Cosine path: alpha = cos phi, sigma = sin phi, lambda = -2 log tan phi, g^2 = 2 a tan phi, phi = a t + b.

    a and b are set by the log-SNR at the two ends, tan b = exp(-log_snr_max / 2), tan(a + b) = exp(-log_snr_min / 2),
    so that neither end is singular.

    Args:
        log_snr_min: lambda at t = 1.
        log_snr_max: lambda at t = 0.
        t_min: Smallest time, where samplers end.
        t_max: Largest time, where samplers begin, at most 1.

    Raises:
        ValueError: If not log_snr_min < log_snr_max, or not 0 <= t_min < t_max <= 1.

    References:
        Nichol & Dhariwal 2021, "Improved DDPM", equation 17; in this form Salimans & Ho 2022, "Progressive
        Distillation", and Hoogeboom et al. 2023, "simple diffusion", where lambda runs over [-15, 15].
    """

    log_snr_min: float = -15.0
    log_snr_max: float = 15.0
    _: KW_ONLY
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -60 <= self.log_snr_min < self.log_snr_max <= 60:
            raise ValueError(
                "CosineVPSDE needs -60 <= log_snr_min < log_snr_max <= 60; got "
                f"log_snr_min={self.log_snr_min}, log_snr_max={self.log_snr_max} (usual: -15 and 15)"
            )
        if self.t_max > 1:
            raise ValueError(f"CosineVPSDE ends at t = 1; got t_max={self.t_max}")

    @property
    def _b(self) -> float:
        return math.atan(math.exp(-0.5 * self.log_snr_max))

    @property
    def _a(self) -> float:
        return math.atan(math.exp(-0.5 * self.log_snr_min)) - self._b

    def _phi_from_end(self, t: Tensor) -> Tensor:
        """pi/2 - phi(t), whose sine is cos phi without the cancellation near pi/2."""
        return math.atan(math.exp(0.5 * self.log_snr_min)) + self._a * (1 - t)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log cos phi."""
        return self._phi_from_end(t).sin().log()

    def log_sigma(self, t: Tensor) -> Tensor:
        """log sin phi."""
        return (self._a * t + self._b).sin().log()

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """-a tan phi."""
        return -self._a * (self._a * t + self._b).sin() / self._phi_from_end(t).sin()

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """a / tan phi."""
        return self._a * self._phi_from_end(t).sin() / (self._a * t + self._b).sin()

    def time(self, log_snr: Time) -> Tensor:
        """(atan(exp(-lambda/2)) - b) / a."""
        t = ((-0.5 * float64(log_snr)).exp().atan() - self._b) / self._a
        return clamp_keeping_slope(t, 0, self.t_max)
