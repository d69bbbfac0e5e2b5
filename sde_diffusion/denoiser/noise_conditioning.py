"""The second input of a network, c_noise, as a function of time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive, check_count
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde import SDE


class NoiseConditioning(ShowsArguments, ABC):
    """The second input of a network, c_noise(t)."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """c_noise, float64, of t's shape."""


def log_noise_level(sde: SDE, t: Tensor) -> Tensor:
    """log(sigma / alpha) = -lambda / 2.

    lambda is clamped to [-80, 80], beyond any finite noise level in use, so that the result is finite where alpha is
    zero (zero terminal SNR) or sigma is zero.
    """
    return -sde.log_snr(t).clamp(-80, 80) / 2


class LogSigma(NoiseConditioning):
    """c_noise = log(sigma / alpha) / 4 (Karras et al. 2022, table 1), on any path."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """log(sigma / alpha) / 4."""
        return log_noise_level(sde, t) / 4


class StepNumber(NoiseConditioning):
    """c_noise = 999 t / t_max, DDPM's step number made continuous (Song et al. 2021, appendix C)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """999 t / t_max."""
        return 999 * t / sde.t_max


class ReversedStepNumber(NoiseConditioning):
    """c_noise = (n - 1) (1 - t / t_max), NCSN's level number, counted from the noisy end (Song & Ermon 2019).

    Args:
        n: Number of levels, at least 2.
    """

    def __init__(self, n: int = 1000) -> None:
        self.n = check_count("n", n, least=2)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """(n - 1) (1 - t / t_max)."""
        return (self.n - 1) * (1 - t / sde.t_max)


class LogNoiseLevel(NoiseConditioning):
    """c_noise = log(factor sigma / alpha), as NCSN++ takes it.

    Args:
        factor: Positive; 1/2 for a network of images on [0, 1], where noise is half of that on [-1, 1].
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = as_positive("factor", factor)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """log(factor sigma / alpha)."""
        return math.log(self.factor) + log_noise_level(sde, t)


class PathTime(NoiseConditioning):
    """c_noise = t, the path's own time, as networks written for one path or for flow matching take it."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """t."""
        return t


class TableStep(NoiseConditioning):
    """c_noise = i, the position in a table of noise levels, between its entries by linear interpolation in log-SNR.

    A network of N discrete steps was trained at its N noise levels and told their numbers; at level i of the table it
    is told exactly i, on any path, and beyond the ends of the table the number of the end.

    Args:
        alphas_bar: The table, alpha_i^2 on a variance-preserving path, falling, each in (0, 1); two or more.

    Raises:
        ValueError: If the numbers are not such a table.
    """

    def __init__(self, alphas_bar: Sequence[float]) -> None:
        table = torch.as_tensor(alphas_bar, dtype=torch.float64)
        falling = table.ndim == 1 and len(table) > 1 and bool((table.diff() < 0).all())
        if not (falling and float(table[-1]) > 0 and float(table[0]) < 1):
            raise ValueError("alphas_bar must be two or more falling numbers between 0 and 1")
        self.alphas_bar = table.tolist()
        self._levels = -torch.logit(table)  # minus log-SNR, rising

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.alphas_bar)} levels)"

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """i."""
        levels = self._levels.to(t.device)
        level = -sde.log_snr(t)
        before = torch.searchsorted(levels, level.contiguous(), right=True).sub(1).clamp(0, len(levels) - 2)
        return (before + (level - levels[before]) / (levels[before + 1] - levels[before])).clamp(0, len(levels) - 1)


NOISE_CONDITIONINGS: dict[str, type[NoiseConditioning]] = {"log_sigma": LogSigma, "step": StepNumber, "time": PathTime}
