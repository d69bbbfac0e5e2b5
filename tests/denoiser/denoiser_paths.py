"""alpha and sigma of each path in 50-digit arithmetic, straight from the papers, and their derivatives."""

import mpmath as mp
import torch

from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE

mp.mp.dps = 50


def _signal(t):  # exp(-B/2), beta from 0.1 to 20 (Song et al. 2021, equation 29)
    return mp.exp(-(mp.mpf(0.1) * t + (20 - mp.mpf(0.1)) * t**2 / 2) / 2)


_LOW = mp.atan(mp.exp(mp.mpf(-7.5)))
_SPAN = mp.pi / 2 - 2 * _LOW  # atan(e^7.5) - atan(e^-7.5)

PATHS: dict[str, tuple[SDE, object, object, list[float]]] = {
    "vp": (VPSDE(), _signal, lambda t: mp.sqrt(1 - _signal(t) ** 2), [1e-5, 1e-3, 0.4, 1.0]),
    "subvp": (SubVPSDE(), _signal, lambda t: 1 - _signal(t) ** 2, [1e-4, 0.1, 0.4, 1.0]),
    "cosine": (
        CosineVPSDE(),
        lambda t: mp.cos(_SPAN * t + _LOW),
        lambda t: mp.sin(_SPAN * t + _LOW),
        [0.0, 1e-3, 0.4, 1.0],
    ),
    "ve": (VESDE(), lambda t: mp.mpf(1), lambda t: mp.mpf(0.01) * (50 / mp.mpf(0.01)) ** t, [0.0, 1e-3, 0.4, 1.0]),
    "edm": (EDMSDE(), lambda t: mp.mpf(1), lambda t: t, [0.002, 0.1, 1.3, 80.0]),
    "rectified": (RectifiedFlow(), lambda t: 1 - t, lambda t: t, [1e-4, 1e-2, 0.4, 0.999]),
}


def column(function, times: list[float]) -> torch.Tensor:
    """The function at the times, [B, 1], float64."""
    return torch.tensor([[float(function(mp.mpf(t)))] for t in times], dtype=torch.float64)


def scales(name: str, times: list[float] | None = None) -> dict[str, torch.Tensor]:
    """t [B], and alpha, sigma, alpha_rate, sigma_rate [B, 1] of a path by its definition."""
    _, alpha, sigma, own = PATHS[name]
    times = own if times is None else times
    return {
        "t": torch.tensor(times, dtype=torch.float64),
        "alpha": column(alpha, times),
        "sigma": column(sigma, times),
        "alpha_rate": column(lambda t: mp.diff(alpha, t), times),
        "sigma_rate": column(lambda t: mp.diff(sigma, t), times),
    }
