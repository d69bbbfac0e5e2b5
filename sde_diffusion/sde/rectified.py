"""The straight path of rectified flow and flow matching."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.coefficients import Time, float64


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    """Straight path: alpha = 1 - t, sigma = t, lambda = 2 log((1 - t) / t), g^2 = 2 t / (1 - t).

    Args:
        t_min: Smallest time, where samplers end.
        t_max: Largest time, where samplers begin, at most 1. At t = 1 no signal is left: drift and diffusion are
            infinite and eps-prediction is undefined. Hence the default, where the prior neglects alpha = 0.001.

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
        """log t."""
        return t.log()

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """-1 / (1 - t)."""
        return -1 / (1 - t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """1 / t."""
        return 1 / t

    def alpha_rate(self, t: Time) -> Tensor:
        """-1, also at the ends, where the rate of log alpha is singular."""
        return torch.full_like(self.check_time(t), -1.0)

    def sigma_rate(self, t: Time) -> Tensor:
        """1."""
        return torch.ones_like(self.check_time(t))

    def time(self, log_snr: Time) -> Tensor:
        """sigmoid(-lambda / 2)."""
        return torch.sigmoid(-0.5 * float64(log_snr))
