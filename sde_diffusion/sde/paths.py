r"""The six paths of the field, each through log alpha and log sigma.

No `1 - exp(...)` anywhere: near t = 0 that loses every digit (in float32, 1 - e^-B is off by 1.2% at t = 1e-5).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sde_diffusion.sde.base import SDE, Time, float64
from sde_diffusion.sde.grids import Grid, KarrasRho


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """What the two paths with beta(t) = beta_min + t (beta_max - beta_min) share: alpha = exp(-B/2), and B^-1."""

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
        # The root of the quadratic in the form that does not cancel for small b.
        return 2 * b / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b).sqrt())


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance-preserving path: log alpha = -B/2, sigma = sqrt(-expm1(-B)), lambda = -log expm1(B), g^2 = beta.

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2. With a grid of N times it is DDPM (see `grids.BetaTable`).

    Args:
        beta_min: beta at t = 0, positive.
        beta_max: beta at t = 1, at least beta_min.
        t_min: Where samplers and likelihoods end.
        t_max: Where samplers begin.

    Raises:
        ValueError: If not 0 < beta_min <= beta_max, or not 0 <= t_min < t_max.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equations 11 and 29; Ho et al. 2020, DDPM.
    """

    def log_sigma(self, t: Tensor) -> Tensor:
        """log(-expm1(-B))/2."""
        return 0.5 * (-torch.expm1(-self.integral(t))).log()

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """Beta / (2 expm1(B))."""
        return 0.5 * self.beta(t) / torch.expm1(self.integral(t))

    def diffusion(self, t: Time) -> Tensor:
        """Sqrt beta, at t = 0 too, where d sigma / dt is infinite."""
        return self.beta(self.check_time(t)).sqrt()

    def time(self, log_snr: Time) -> Tensor:
        """T with B(t) = softplus(-lambda)."""
        return self._invert_integral(softplus(-float64(log_snr), threshold=math.inf))


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP path: log alpha = -B/2, sigma = -expm1(-B), lambda = -2 log(2 sinh(B/2)), g^2 = -beta expm1(-2B).

    Its variance stays below the VP path's: alpha^2 + sigma = 1, so alpha^2 is not sigmoid(lambda).

    Args:
        beta_min: beta at t = 0, positive.
        beta_max: beta at t = 1, at least beta_min.
        t_min: Where samplers and likelihoods end.
        t_max: Where samplers begin.

    Raises:
        ValueError: If not 0 < beta_min <= beta_max, or not 0 <= t_min < t_max.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equations 14 and 29.
    """

    def log_sigma(self, t: Tensor) -> Tensor:
        """log(-expm1(-B))."""
        return (-torch.expm1(-self.integral(t))).log()

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """Beta / expm1(B)."""
        return self.beta(t) / torch.expm1(self.integral(t))

    def sigma_rate(self, t: Time) -> Tensor:
        """Beta exp(-B), at t = 0 too, where the rate of log sigma is infinite."""
        t = self.check_time(t)
        return self.beta(t) * (-self.integral(t)).exp()

    def time(self, log_snr: Time) -> Tensor:
        """T with B(t) = 2 asinh(exp(-lambda/2) / 2)."""
        return self._invert_integral(2 * torch.asinh(0.5 * (-0.5 * float64(log_snr)).exp()))


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Cosine path: alpha = cos phi, sigma = sin phi, lambda = -2 log tan phi, g^2 = 2 a tan phi, phi = a t + b.

    a and b are set by the log-SNR at the two ends, tan b = exp(-log_snr_max / 2), tan(a + b) = exp(-log_snr_min / 2),
    so that neither end is singular.

    Args:
        log_snr_min: lambda at t = 1.
        log_snr_max: lambda at t = 0.
        t_min: Where samplers and likelihoods end.
        t_max: Where samplers begin, at most 1.

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
        """Log cos phi."""
        return self._phi_from_end(t).sin().log()

    def log_sigma(self, t: Tensor) -> Tensor:
        """Log sin phi."""
        return (self._a * t + self._b).sin().log()

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """-a tan phi."""
        return -self._a * (self._a * t + self._b).sin() / self._phi_from_end(t).sin()

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """A / tan phi."""
        return self._a * self._phi_from_end(t).sin() / (self._a * t + self._b).sin()

    def time(self, log_snr: Time) -> Tensor:
        """(atan(exp(-lambda/2)) - b) / a."""
        return (((-0.5 * float64(log_snr)).exp().atan() - self._b) / self._a).clamp(0, self.t_max)


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance-exploding path: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, lambda = -2 log sigma.

    g^2 = 2 sigma^2 log(sigma_max / sigma_min). With L geometric levels it is NCSN (see `grids.GeometricLevels`).

    Args:
        sigma_min: sigma at t = 0, positive.
        sigma_max: sigma at t = 1, above sigma_min; about the largest distance between two data points.
        t_min: Where samplers and likelihoods end.
        t_max: Where samplers begin.

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
        """Log sigma_min + t log(sigma_max / sigma_min)."""
        return math.log(self.sigma_min) + t * self._rate

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """log(sigma_max / sigma_min)."""
        return torch.full_like(t, self._rate)

    def time(self, log_snr: Time) -> Tensor:
        """log(sigma / sigma_min) / log(sigma_max / sigma_min), clamped at t = 0."""
        return ((-0.5 * float64(log_snr) - math.log(self.sigma_min)) / self._rate).clamp(min=0)


@dataclass(frozen=True)
class EDMSDE(SDE):
    """EDM's path: alpha = 1, sigma = t, lambda = -2 log t, g^2 = 2 t. Time is the noise level.

    Args:
        sigma_min: Smallest noise level, the default of t_min; positive.
        sigma_max: Largest noise level, the default of t_max.
        t_min: Where samplers and likelihoods end; sigma_min if not given.
        t_max: Where samplers begin; sigma_max if not given.

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
        _check_sigmas(self, self.sigma_min, self.sigma_max)
        for name, default in (("t_min", self.sigma_min), ("t_max", self.sigma_max)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        """Log t."""
        return t.log()

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """1 / t."""
        return 1 / t

    def sigma_rate(self, t: Time) -> Tensor:
        """1, at t = 0 too, where the rate of log sigma is infinite."""
        return torch.ones_like(self.check_time(t))

    def time(self, log_snr: Time) -> Tensor:
        """exp(-lambda / 2)."""
        return (-0.5 * float64(log_snr)).exp()

    def default_grid(self) -> Grid:
        """EDM's own, rho = 7: uniform steps in t = sigma would spend nearly all of them on pure noise."""
        return KarrasRho()


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    """Straight path: alpha = 1 - t, sigma = t, lambda = 2 log((1 - t) / t), g^2 = 2 t / (1 - t).

    Args:
        t_min: Where samplers and likelihoods end.
        t_max: Where samplers begin, at most 1. At t = 1 itself no signal is left: drift and diffusion are infinite
            and eps-prediction undefined there, hence the default of 0.999, whose prior is off by alpha = 0.001.

    Raises:
        ValueError: If not 0 <= t_min < t_max <= 1.

    References:
        Liu et al. 2023, "Flow Straight and Fast", equation 1; Lipman et al. 2023, "Flow Matching", example II.
    """

    _: KW_ONLY
    t_min: float = 1e-5
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_max > 1:
            raise ValueError(f"RectifiedFlow ends at t = 1; got t_max={self.t_max}")

    def log_alpha(self, t: Tensor) -> Tensor:
        """log1p(-t)."""
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        """Log t."""
        return t.log()

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """-1 / (1 - t)."""
        return -1 / (1 - t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """1 / t."""
        return 1 / t

    def alpha_rate(self, t: Time) -> Tensor:
        """-1, at both ends too, where the rate of log alpha or the scale alone is singular."""
        return torch.full_like(self.check_time(t), -1.0)

    def sigma_rate(self, t: Time) -> Tensor:
        """1."""
        return torch.ones_like(self.check_time(t))

    def time(self, log_snr: Time) -> Tensor:
        """sigmoid(-lambda / 2)."""
        return torch.sigmoid(-0.5 * float64(log_snr))


def _check_sigmas(sde: SDE, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"{type(sde).__name__} needs 0 < sigma_min < sigma_max; got sigma_min={sigma_min}, sigma_max={sigma_max}"
        )
