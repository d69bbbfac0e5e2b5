"""The paths as the papers define them, in 50-digit arithmetic: nothing here comes from the package's formulas."""

from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import torch

from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE

mp.mp.dps = 50
Function = Callable[[mp.mpf], mp.mpf]


@dataclass
class Reference:
    """alpha, sigma^2, drift coefficient f and g^2 of dx = f x dt + g dw, each from the source cited at its maker."""

    alpha: Function
    variance: Function
    f: Function
    g2: Function

    def sigma(self, t: mp.mpf) -> mp.mpf:
        return mp.sqrt(self.variance(t))

    def log_snr(self, t: mp.mpf) -> mp.mpf:
        return mp.log(self.alpha(t) ** 2 / self.variance(t))


def _linear_beta(beta_min: float, beta_max: float) -> tuple[Function, Function]:
    def beta(t):
        return mp.mpf(beta_min) + t * (mp.mpf(beta_max) - mp.mpf(beta_min))

    return beta, lambda t: t * (beta(0) + beta(t)) / 2  # the trapezium: exact, for beta is linear


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Reference:
    """Song et al. 2021, equations 11 and 29."""
    beta, integral = _linear_beta(beta_min, beta_max)
    return Reference(
        lambda t: mp.exp(-integral(t) / 2), lambda t: 1 - mp.exp(-integral(t)), lambda t: -beta(t) / 2, beta
    )


def subvp(beta_min: float = 0.1, beta_max: float = 20.0) -> Reference:
    """Song et al. 2021, equations 14 and 29."""
    beta, integral = _linear_beta(beta_min, beta_max)
    return Reference(
        lambda t: mp.exp(-integral(t) / 2),
        lambda t: (1 - mp.exp(-integral(t))) ** 2,
        lambda t: -beta(t) / 2,
        lambda t: beta(t) * (1 - mp.exp(-2 * integral(t))),
    )


def from_marginals(alpha: Function, variance: Function) -> Reference:
    """f and g^2 for papers that define a path by alpha and sigma: the mean and variance of dx = f x dt + g dw obey
    m' = f m and v' = 2 f v + g^2 (Sarkka & Solin 2019, equation 6.2); numerical differentiation at 50 digits."""

    def f(t):
        return mp.diff(alpha, t) / alpha(t)

    return Reference(alpha, variance, f, lambda t: mp.diff(variance, t) - 2 * f(t) * variance(t))


def cosine(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> Reference:
    """Hoogeboom et al. 2023, section 3: log_snr(t) = -2 log tan(a t + b), variance-preserving."""
    b = mp.atan(mp.exp(-mp.mpf(log_snr_max) / 2))
    a = mp.atan(mp.exp(-mp.mpf(log_snr_min) / 2)) - b
    return from_marginals(lambda t: mp.cos(a * t + b), lambda t: mp.sin(a * t + b) ** 2)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Reference:
    """Song et al. 2021, equation 9 and appendix C: g^2 = d sigma^2 / dt."""
    low, high = mp.mpf(sigma_min), mp.mpf(sigma_max)

    def variance(t):
        return low**2 * (high / low) ** (2 * t)

    return Reference(lambda t: mp.mpf(1), variance, lambda t: mp.mpf(0), lambda t: mp.diff(variance, t))


def edm(**_: float) -> Reference:
    """Karras et al. 2022, table 1 (last column): sigma(t) = t, s(t) = 1; dx = sqrt(2 sigma' sigma) dw (equation 6)."""
    return Reference(lambda t: mp.mpf(1), lambda t: t**2, lambda t: mp.mpf(0), lambda t: 2 * t)


def rectified(**_: float) -> Reference:
    """Liu et al. 2023, equation 1: straight lines between data and noise."""
    return from_marginals(lambda t: 1 - t, lambda t: t**2)


# Path, reference, times from 1e-6 to the end. Non-default parameters beside the defaults.
CASES: dict[str, tuple[SDE, Reference, list[float]]] = {
    "vp": (VPSDE(), vp(), [1e-6, 1e-5, 1e-3, 0.1, 0.37, 0.8, 1.0]),
    "vp-constant": (VPSDE(3.0, 3.0), vp(3.0, 3.0), [1e-6, 1e-3, 0.5, 1.0]),
    "vp-long": (VPSDE(0.02, 7.5, t_max=1.7), vp(0.02, 7.5), [1e-6, 1e-2, 0.5, 1.0, 1.7]),
    "subvp": (SubVPSDE(), subvp(), [1e-6, 1e-5, 1e-3, 0.1, 0.37, 0.8, 1.0]),
    "subvp-other": (SubVPSDE(0.5, 9.0), subvp(0.5, 9.0), [1e-6, 1e-2, 0.5, 1.0]),
    "cosine": (CosineVPSDE(), cosine(), [0.0, 1e-6, 1e-3, 0.1, 0.37, 0.8, 0.999, 1.0]),
    "cosine-wide": (CosineVPSDE(-25.0, 30.0), cosine(-25.0, 30.0), [1e-6, 1e-2, 0.4, 0.99, 1.0]),
    "ve": (VESDE(), ve(), [0.0, 1e-6, 1e-3, 0.1, 0.37, 0.8, 1.0]),
    "ve-other": (VESDE(0.002, 378.0), ve(0.002, 378.0), [1e-6, 1e-2, 0.5, 1.0]),
    "edm": (EDMSDE(), edm(), [1e-6, 0.002, 0.1, 0.8, 7.0, 80.0]),
    "edm-other": (EDMSDE(0.01, 300.0), edm(), [1e-6, 0.01, 1.5, 300.0]),
    "rectified": (RectifiedFlow(), rectified(), [1e-6, 1e-5, 1e-3, 0.1, 0.37, 0.8, 0.999]),
    "rectified-whole": (RectifiedFlow(t_max=1.0), rectified(), [1e-6, 0.5, 0.999999]),
}
SIX = ("vp", "subvp", "cosine", "ve", "edm", "rectified")

# Path, alpha and sigma of the six with their defaults, and four times, near the ends and between.
_TIMES: dict[str, list[float]] = {
    "vp": [1e-5, 1e-3, 0.4, 1.0],
    "subvp": [1e-4, 0.1, 0.4, 1.0],
    "cosine": [0.0, 1e-3, 0.4, 1.0],
    "ve": [0.0, 1e-3, 0.4, 1.0],
    "edm": [0.002, 0.1, 1.3, 80.0],
    "rectified": [1e-4, 1e-2, 0.4, 0.999],
}
PATHS: dict[str, tuple[SDE, Function, Function, list[float]]] = {
    name: (CASES[name][0], CASES[name][1].alpha, CASES[name][1].sigma, _TIMES[name]) for name in SIX
}


def column(function: Function, times: list[float]) -> torch.Tensor:
    """The function at the times, [B, 1], float64."""
    return torch.tensor([[float(function(mp.mpf(t)))] for t in times], dtype=torch.float64)


def scales(name: str, times: list[float] | None = None) -> dict[str, torch.Tensor]:
    """t [B], and alpha, sigma, alpha_rate, sigma_rate [B, 1] of one of PATHS by its definition."""
    _, alpha, sigma, own = PATHS[name]
    times = own if times is None else times
    return {
        "t": torch.tensor(times, dtype=torch.float64),
        "alpha": column(alpha, times),
        "sigma": column(sigma, times),
        "alpha_rate": column(lambda t: mp.diff(alpha, t), times),
        "sigma_rate": column(lambda t: mp.diff(sigma, t), times),
    }


def spread(sde: SDE, n: int = 7) -> torch.Tensor:
    """Times along the path, both ends included, denser at the clean one, [n]."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    return sde.t_min + u.square() * (sde.t_max - sde.t_min)
