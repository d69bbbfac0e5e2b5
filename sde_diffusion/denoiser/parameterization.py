"""What a network's output means: x0 = skip x_t + scale F."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde import SDE


class Parameterization(ShowsArguments, ABC):
    """What the network's output means: x0 = skip x_t + scale F."""

    @abstractmethod
    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """(skip, scale) at t.

        Args:
            sde: The path.
            t: [] or [B], float64.
            sigma_data: Standard deviation of the data.

        Returns:
            Two float64 tensors of t's shape.

        Raises:
            ValueError: If this parameterization is not defined on the path.
        """

    def check(self, sde: SDE) -> None:
        """Check that the parameterization is defined on the path.

        Raises:
            ValueError: If it is not.
        """


class Eps(Parameterization):
    """F = eps, the noise: x0 = (x_t - sigma F) / alpha (Ho et al. 2020, equation 15)."""

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """1/alpha and -sigma/alpha."""
        alpha = sde.alpha(t)
        return 1 / alpha, -sde.sigma(t) / alpha


class X0(Parameterization):
    """F = x0, the data."""

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros_like(t), torch.ones_like(t)


class Velocity(Parameterization):
    """F = alpha' x0 + sigma' eps, the velocity of the path, rescaled by its root mean square over the data.

    The rescaling, 1 / sqrt(alpha'^2 sigma_data^2 + sigma'^2), leaves rectified flow's eps - x0 as it is up to a
    constant and keeps the output of order one on paths whose velocity is not (VE: up to 400; VP: infinite at t = 0).
    References: Lipman et al. 2023, "Flow Matching", equation 15; Liu et al. 2023, equation 1.
    """

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """Solve x_t = alpha x0 + sigma eps and u = alpha' x0 + sigma' eps for x0."""
        sigma = sde.sigma(t)
        ratio = sde.alpha_rate(t) / sde.sigma_rate(t)
        determinant = sde.alpha(t) - ratio * sigma
        return 1 / determinant, -sigma * (ratio.square() * sigma_data**2 + 1).sqrt() / determinant


class V(Parameterization):
    """F = v = alpha eps - sigma x0: x0 = alpha x_t - sigma F, on paths with alpha^2 + sigma^2 = 1.

    References: Salimans & Ho 2022, "Progressive Distillation", appendix D.
    """

    def check(self, sde: SDE) -> None:
        """Check that alpha^2 + sigma^2 = 1 all along the path."""
        t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
        total = sde.alpha(t).square() + sde.sigma(t).square()
        if bool(((total - 1).abs() > 1e-9).any()):
            raise ValueError(
                "prediction 'v' is defined on variance-preserving paths only (alpha^2 + sigma^2 = 1: VPSDE, "
                f"CosineVPSDE), not on {sde}; on this path use 'velocity', 'edm', 'eps', 'x0' or 'score'"
            )

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """alpha and -sigma."""
        return sde.alpha(t), -sde.sigma(t)


class Score(Parameterization):
    """F = sigma times the score: x0 = (x_t + sigma F) / alpha (Song & Ermon 2020, NCSNv2: s(x, sigma) = F / sigma)."""

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """1/alpha and sigma/alpha."""
        alpha = sde.alpha(t)
        return 1 / alpha, sde.sigma(t) / alpha


class EDM(Parameterization):
    """Karras et al. 2022, table 1, on any path by way of the noise-to-signal ratio s = sigma / alpha.

    skip = sigma_data^2 / (s^2 + sigma_data^2) / alpha and scale = s sigma_data / sqrt(s^2 + sigma_data^2): the output
    has unit variance at every noise level, and the error of F is amplified as little as possible.
    """

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """The two scalars, through alpha^2 sigma_data^2 + sigma^2, finite also where alpha is zero."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = (alpha * sigma_data).square() + sigma.square()
        return alpha * sigma_data**2 / variance, sigma * sigma_data / variance.sqrt()


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "eps": Eps,
    "x0": X0,
    "velocity": Velocity,
    "v": V,
    "score": Score,
    "edm": EDM,
}
