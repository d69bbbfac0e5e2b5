"""The part of a path up to an earlier time, for walks that begin there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.coefficients import Time
from sde_diffusion.sde.grids import Grid


@dataclass(frozen=True, kw_only=True, repr=False)
class TruncatedSDE(SDE):
    """A path up to t_max: the same functions of time, so that grids and coefficients are those of [t_end, t_max].

    A denoiser keeps the whole path: its network may have learned times in units of that path's t_max.

    Args:
        path: The path.
        t_min: See `SDE`.
        t_max: See `SDE`; at most that of the path.

    Raises:
        ValueError: If not 0 <= t_min < t_max.
    """

    path: SDE

    @property
    def learned(self) -> bool:  # type: ignore[override]
        """That of the path."""
        return self.path.learned

    @property
    def whole(self) -> SDE:
        """The path of which it is a part."""
        return self.path.whole

    def __repr__(self) -> str:
        return f"{self.path} up to t={self.t_max:g}"

    def log_alpha(self, t: Tensor) -> Tensor:
        """That of the path."""
        return self.path.log_alpha(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        """That of the path."""
        return self.path.log_sigma(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """That of the path."""
        return self.path.log_alpha_rate(t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """That of the path."""
        return self.path.log_sigma_rate(t)

    def alpha_rate(self, t: Time) -> Tensor:
        """That of the path."""
        return self.path.alpha_rate(t)

    def sigma_rate(self, t: Time) -> Tensor:
        """That of the path."""
        return self.path.sigma_rate(t)

    def diffusion(self, t: Time) -> Tensor:
        """That of the path."""
        return self.path.diffusion(t)

    def time(self, log_snr: Time) -> Tensor:
        """That of the path."""
        return self.path.time(log_snr)

    def check_time(self, t: Time) -> Tensor:
        """That of the path."""
        return self.path.check_time(t)

    def default_grid(self) -> Grid:
        """That of the path."""
        return self.path.default_grid()

    def on_cpu(self) -> AbstractContextManager[None]:
        """That of the path."""
        return self.path.on_cpu()
