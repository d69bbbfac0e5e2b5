r"""The variables y = scale(t) x in which the reverse process can be solved; see `reverse`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser import Prediction
from sde_diffusion.sde import SDE, add, float64, number, times


class Coordinate(ABC):
    """A variable y = scale(t) x in which the reverse process is solved."""

    @abstractmethod
    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """The factor y / x, positive; t: [] or [B], float64. Returns the same shape, float64."""

    @abstractmethod
    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """Drift dy/dt of the reverse process, from the prediction at (x, t); [B, *]."""


@dataclass(frozen=True)
class State(Coordinate):
    """y = x: dy/dt = v - eta^2 g^2 score / 2."""

    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """See the class."""
        if not eta:
            return prediction.velocity
        g = prediction.sde.diffusion(prediction.t)
        return add(prediction.velocity, prediction.score, -number(0.5 * (eta * g) ** 2))


@dataclass(frozen=True)
class NoiseToSignal(Coordinate):
    """y = x / alpha, which has no linear drift: dy/dr = (1 + eta^2) eps with r = sigma / alpha.

    This follows from (v - f x) / alpha = (sigma' - f sigma) eps / alpha = r' eps and g^2 = 2 sigma alpha r'. It needs
    alpha > 0 at the ends of the walk.

    References:
        Song et al. 2021, "Denoising Diffusion Implicit Models", equation 14; Karras et al. 2022, section 4.
    """

    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / alpha."""
        return 1 / sde.alpha(t)

    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """See the class."""
        sde, t = prediction.sde, prediction.t
        rate = -0.5 * sde.log_snr_rate(t) * sde.sigma(t) / sde.alpha(t)  # dr/dt
        return times(prediction.eps, number((1 + eta**2) * rate))


@dataclass(frozen=True)
class UnitVariance(Coordinate):
    """y = x / sqrt(alpha^2 sigma_data^2 + sigma^2), which has unit variance all along the walk.

    If the data are one Gaussian of standard deviation sigma_data, y is constant: the solver only has to follow the
    structure of the data. Likelihoods use it, with sigma_data = 0.25.

    Args:
        sigma_data: Standard deviation of the data, positive; a rough estimate is enough.

    Raises:
        ValueError: If sigma_data is not positive.

    References:
        Karras et al. 2022, section 5 (c_in).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma_data", as_positive("sigma_data", self.sigma_data))

    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / sqrt(alpha^2 sigma_data^2 + sigma^2)."""
        return self._variance(sde, t).rsqrt()

    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """The drift in x plus x times the rate of the scale, times the scale."""
        sde, t = prediction.sde, float64(prediction.t)
        variance = self._variance(sde, t)
        rate = sde.alpha(t) * sde.alpha_rate(t) * self.sigma_data**2 + sde.sigma(t) * sde.sigma_rate(t)
        drift = add(State().drift(prediction, eta), prediction.x_t, -number(rate / variance))
        return times(drift, number(variance.rsqrt()))

    def _variance(self, sde: SDE, t: Tensor) -> Tensor:
        return (sde.alpha(t) * self.sigma_data).square() + sde.sigma(t).square()


COORDINATES: dict[str, type[Coordinate]] = {
    "state": State,
    "noise_to_signal": NoiseToSignal,
    "unit_variance": UnitVariance,
}
"""The coordinates by name, with their default settings."""


def coordinate_of(coordinate: str | Coordinate | None) -> Coordinate | None:
    """The coordinate of a name; one of the user's own, or None, as it is.

    Raises:
        ValueError: If it is something else.
    """
    if coordinate is None:
        return None
    found: Coordinate = as_instance("coordinate", coordinate, COORDINATES, Coordinate)
    return found
