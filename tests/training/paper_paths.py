"""The six paths from the papers' own formulas, in 50-digit arithmetic, with derivatives by differences."""

from collections.abc import Callable

import mpmath as mp
import torch

from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE

mp.mp.dps = 50

Scale = Callable[[mp.mpf], mp.mpf]


def _signal(t: mp.mpf) -> mp.mpf:  # exp(-B/2), beta from 0.1 to 20 (Song et al. 2021, equation 29)
    return mp.exp(-(mp.mpf("0.1") * t + (20 - mp.mpf("0.1")) * t**2 / 2) / 2)


_LOW = mp.atan(mp.exp(mp.mpf("-7.5")))
_SPAN = mp.pi / 2 - 2 * _LOW

PATHS: dict[str, tuple[SDE, Scale, Scale]] = {
    "vp": (VPSDE(), _signal, lambda t: mp.sqrt(1 - _signal(t) ** 2)),
    "subvp": (SubVPSDE(), _signal, lambda t: 1 - _signal(t) ** 2),
    "cosine": (CosineVPSDE(), lambda t: mp.cos(_SPAN * t + _LOW), lambda t: mp.sin(_SPAN * t + _LOW)),
    "ve": (VESDE(), lambda t: mp.mpf(1), lambda t: mp.mpf("0.01") * 5000**t),
    "edm": (EDMSDE(), lambda t: mp.mpf(1), lambda t: t),
    "rectified": (RectifiedFlow(), lambda t: 1 - t, lambda t: t),
}


def column(function: Scale, times: torch.Tensor) -> torch.Tensor:
    """The function at the times, [B, 1], float64."""
    return torch.tensor([[float(function(mp.mpf(t)))] for t in times.tolist()], dtype=torch.float64)


def scales(name: str, times: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """alpha, sigma, alpha' and sigma' at the times, [B, 1] each."""
    _, alpha, sigma = PATHS[name]
    h = mp.mpf("1e-20")

    def rate(function: Scale) -> Scale:
        return lambda t: (function(t + h) - function(t - h)) / (2 * h)

    return tuple(column(f, times) for f in (alpha, sigma, rate(alpha), rate(sigma)))


def spread(sde: SDE, n: int = 7) -> torch.Tensor:
    """Times over the whole path, both ends included, denser at the clean one, [n]."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    return sde.t_min + u.square() * (sde.t_max - sde.t_min)
