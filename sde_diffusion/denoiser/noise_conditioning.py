"""The second input of a network, c_noise, as a function of time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde import SDE


class NoiseConditioning(ShowsArguments, ABC):
    """The second input of a network, c_noise(t)."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """c_noise, float64, of t's shape."""


class LogSigma(NoiseConditioning):
    """c_noise = log(sigma / alpha) / 4 = -lambda / 8 (Karras et al. 2022, table 1), on any path.

    lambda is clamped to [-80, 80], beyond any finite noise level in use, so that c_noise is finite where alpha is zero
    (zero terminal SNR) or sigma is zero.
    """

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """-lambda / 8."""
        return -sde.log_snr(t).clamp(-80, 80) / 8


class StepNumber(NoiseConditioning):
    """c_noise = 999 t / t_max, DDPM's step number made continuous (Song et al. 2021, appendix C)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """999 t / t_max."""
        return 999 * t / sde.t_max


class PathTime(NoiseConditioning):
    """c_noise = t, the path's own time, as networks written for one path or for flow matching take it."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """t."""
        return t


NOISE_CONDITIONINGS: dict[str, type[NoiseConditioning]] = {"log_sigma": LogSigma, "step": StepNumber, "time": PathTime}
