r"""Distributions of training times: t = icdf(u), u uniform on [0, 1].

Each distribution is given by its inverse distribution function, so that u can be drawn independently, or stratified
over the batch (low-discrepancy sampling: Kingma et al. 2021, "Variational Diffusion Models", appendix I.1), or fixed
for validation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_bool
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde import SDE, NoiseLevels, Number, number, value_of


class TimeSampling(ShowsArguments, ABC):
    """A distribution of training times on [t_min, t_max], given by its inverse distribution function.

    Args:
        stratified: Draw one u in each of B equal strata of [0, 1], with a common random shift, in place of B
            independent u. The expectation is the same, with less variance.
    """

    learned: ClassVar[bool] = False
    """Whether it changes in training, by what `observe` is told."""

    def __init__(self, stratified: bool = False) -> None:
        self.stratified = check_bool("stratified", stratified)

    @abstractmethod
    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """The t with P(time <= t) = u for u [B], float64 in [0, 1]; [B], float64."""

    def importance(self, sde: SDE, t: Tensor) -> Tensor:
        """The factor by which the loss at t [B] is multiplied, [B], float64.

        For importance sampling, it is the ratio of the uniform density to this one, so that the loss is an average over
        uniform t. For other distributions it is 1: they are part of the objective.
        """
        return torch.ones_like(t)

    def observe(self, sde: SDE, t: Tensor, squares: Tensor) -> None:
        """Be told (|eps_hat - eps|^2 / 2)^2, [B], at training times t [B]; only where `learned`."""
        return

    def __call__(self, sde: SDE, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw n times with torch's global generator, [n], float64, on the device."""
        if self.stratified:
            u = torch.arange(n, dtype=torch.float64, device=device) / n
            u = (u + torch.rand((), dtype=torch.float64, device=device)) % 1
        else:
            u = torch.rand(n, dtype=torch.float64, device=device)
        return self.icdf(sde, u)

    def strata(self, sde: SDE, n: int) -> Tensor:
        """The fixed times icdf((i + 1/2) / n), [n], float64, for a validation loss without randomness."""
        return self.icdf(sde, (torch.arange(n, dtype=torch.float64) + 0.5) / n)


class UniformTimes(TimeSampling):
    """t uniform on [t_min, t_max] (Song et al. 2021, equation 7)."""

    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """t_min + u (t_max - t_min)."""
        return sde.t_min + u * (sde.t_max - sde.t_min)


class ImportanceTimes(TimeSampling):
    """Importance sampling with p(t) proportional to g^2 / sigma^2 = -lambda', so that lambda is uniform.

    With likelihood or ELBO weighting, weight times importance is then constant, which minimises the variance. The path
    needs a finite lambda(t_min), for some paths t_min > 0.

    References:
        Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", section 5.1.
    """

    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """lambda^-1(lambda(t_min) - u (lambda(t_min) - lambda(t_max)))."""
        high, span = self._range(sde, u.device)
        return sde.time(high - u * span).clamp(sde.t_min, sde.t_max)

    def importance(self, sde: SDE, t: Tensor) -> Tensor:
        """(lambda(t_min) - lambda(t_max)) / (-lambda'(t) (t_max - t_min))."""
        _, span = self._range(sde, t.device)
        return -span / (sde.log_snr_rate(t) * (sde.t_max - sde.t_min))

    @staticmethod
    def _range(sde: SDE, device: torch.device) -> tuple[Number, Number]:
        ends = _ends(sde, device)
        high, low = (number(end) if end.device.type == "cpu" else end for end in ends)
        if ends[0].device.type == "cpu" and not math.isfinite(value_of(high - low)):
            raise ValueError(
                f"importance sampling needs a finite log-SNR at both ends of {sde}; got {high:g} and {low:g}: "
                "give the path t_min > 0 and t_max < 1"
            )
        return high, high - low


class LogNormalTimes(TimeSampling):
    """log(sigma / alpha) ~ N(mean, std^2), truncated to the path's range.

    Args:
        mean: P_mean.
        std: P_std, positive.
        stratified: See `TimeSampling`.

    Raises:
        ValueError: If std is not positive.

    References:
        Karras et al. 2022, table 1 (P_mean = -1.2, P_std = 1.2).
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = False) -> None:
        super().__init__(stratified)
        self.mean, self.std = as_number("mean", mean), as_positive("std", std)

    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """lambda^-1(-2 (mean + std Phi^-1(u))), Phi truncated to the path's range."""
        log_s = -0.5 * torch.stack(_ends(sde, u.device))
        ends = (log_s - self.mean) / self.std
        # Phi loses all digits in its upper tail: a range mostly there is mirrored into the lower tail, where Phi is
        # computed with erfc (torch's ndtr is 0 below -9).
        mirror = torch.where(ends.sum() > 0, -1.0, 1.0)
        low, high = 0.5 * torch.special.erfc(-mirror * ends / math.sqrt(2))
        quantile = mirror * torch.special.ndtri((low + u * (high - low)).clamp(1e-300, 1 - 1e-16))
        return sde.time(-2 * (self.mean + self.std * quantile)).clamp(sde.t_min, sde.t_max)


class DiscreteTimes(TimeSampling):
    """The times of discrete noise levels, all with equal probability: DDPM's steps, or NCSN's noise levels.

    Args:
        levels: The noise levels.
        stratified: See `TimeSampling`.

    Raises:
        TypeError: If levels is not a `NoiseLevels`.

    References:
        Ho et al. 2020, algorithm 1; Song & Ermon 2019, equation 6.
    """

    def __init__(self, levels: NoiseLevels, stratified: bool = False) -> None:
        super().__init__(stratified)
        if not isinstance(levels, NoiseLevels):
            raise TypeError(f"levels must be a table of noise levels, such as BetaTable(); got {levels!r}")
        self.levels = levels

    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """The time of noise level floor(u N)."""
        level_times = _level_times.__wrapped__ if sde.learned else _level_times  # not cached while a path is learned
        times = level_times(self.levels, sde, u.device)
        return times[(u * len(times)).long().clamp(max=len(times) - 1)]


def _ends(sde: SDE, device: torch.device) -> list[Tensor]:
    """Log-SNR at t_min and t_max, on the device for a learned path, else on the CPU."""
    place = device if sde.learned else torch.device("cpu")
    return [sde.log_snr(torch.full((), t, dtype=torch.float64, device=place)) for t in (sde.t_min, sde.t_max)]


@lru_cache(maxsize=8)
def _level_times(levels: NoiseLevels, sde: SDE, device: torch.device) -> Tensor:
    return levels.level_times(sde).to(device)
