"""The factor of a network's first input, c_in, as a function of time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde import SDE


class InputScale(ShowsArguments, ABC):
    """The factor of a network's first input, c_in(t)."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor, sigma_data: float) -> Tensor:
        """c_in, float64, of t's shape."""


class UnitInput(InputScale):
    """c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2), so that the input has unit variance (Karras et al. 2022)."""

    def __call__(self, sde: SDE, t: Tensor, sigma_data: float) -> Tensor:
        """See the class."""
        return ((sde.alpha(t) * sigma_data).square() + sde.sigma(t).square()).rsqrt()


class UnscaledInput(InputScale):
    """c_in = 1: the network sees x_t itself, as those of DDPM and of Song et al. 2021 do."""

    def __call__(self, sde: SDE, t: Tensor, sigma_data: float) -> Tensor:
        """1."""
        return torch.ones_like(t)


INPUT_SCALES: dict[str, type[InputScale]] = {"unit": UnitInput, "none": UnscaledInput}
