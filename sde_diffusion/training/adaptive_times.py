r"""Times at which the variational bound is estimated, spread over the log-SNR with a density that is learned.

In continuous time the bound depends on the two ends of the path alone. Between them, only the distribution of the
log-SNR affects the variance of the estimate: a density p(v) of v = (lambda_0 - lambda) / (lambda_0 - lambda_1), the
place in [0, 1].
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_fraction, check_count
from sde_diffusion.distributed import summed
from sde_diffusion.sde import SDE
from sde_diffusion.training.time_sampling import TimeSampling

_UNIFORM = 0.002
"""Share of the draws that are uniform in log-SNR, so that no noise level is forgotten."""


class LogSNRTimes(TimeSampling):
    """A distribution of the place v, the share of the way from one end of the log-SNR to the other.

    The loss at t, multiplied by `importance`, has a gradient in the ends of a learned path, with which lambda moves as
    v stays, and none in what lies between them: the bound does not depend on it.
    """

    @abstractmethod
    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """The v with P(place <= v) = u for u [B], float64 in [0, 1]; [B], without gradient."""

    @abstractmethod
    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """p(v) at the places of t [B]; [B], float64, without gradient."""

    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """See `TimeSampling.icdf`; with gradients to a learned path's ends."""
        first, last = _ends(sde, u.device)
        return sde.time(first + self.quantile(sde, u) * (last - first)).clamp(sde.t_min, sde.t_max)

    def importance(self, sde: SDE, t: Tensor) -> Tensor:
        """See `TimeSampling.importance`."""
        first, last = _ends(sde, t.device)
        return (first - last) / (-sde.log_snr_rate(t) * self.density(sde, t) * (sde.t_max - sde.t_min))


class ScheduleTimes(LogSNRTimes):
    """t uniform on [t_min, t_max]: a learned schedule is itself the distribution of the noise levels.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", section 5.1.
    """

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """See `LogSNRTimes.quantile`."""
        return _place(sde, sde.t_min + u * (sde.t_max - sde.t_min))

    @torch.no_grad()
    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """See `LogSNRTimes.density`."""
        first, last = _ends(sde, t.device)
        return (first - last) / (-sde.log_snr_rate(t) * (sde.t_max - sde.t_min))


class AdaptiveTimes(LogSNRTimes, nn.Module):
    r"""Importance sampling of the log-SNR lambda with p(lambda) proportional to the root of M(lambda).

    M is the mean square of 1/2 |eps_hat - eps|^2 at lambda. This p has the least variance of all for one draw: (int
    sqrt(M) dlambda)^2 less the square of the mean. M is measured in training, in `bins` equal parts of the range of
    log-SNR, as a moving average over batches; draws are uniform until every part has been seen. With several processes
    the batch is that of all of them, and M is the same in each. On a learned path it minimises the variance as training
    its schedule by the gradient of the squared loss would.

    Args:
        bins: Number of parts, at least 2.
        decay: Weight of the past in the moving average, in [0, 1).
        stratified: See `TimeSampling`.

    Raises:
        ValueError: If a value is out of its range.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", section 5.1 (where a network learns the same density).
    """

    learned = True
    moments: Tensor

    def __init__(self, bins: int = 60, decay: float = 0.97, stratified: bool = True) -> None:
        nn.Module.__init__(self)
        LogSNRTimes.__init__(self, stratified)
        self.bins, self.decay = check_count("bins", bins, least=2), as_fraction("decay", decay)
        self.register_buffer("moments", torch.full((self.bins,), torch.nan, dtype=torch.float64))

    def __call__(self, sde: SDE, n: int, device: torch.device | str = "cpu") -> Tensor:
        """See `TimeSampling.__call__`."""
        return TimeSampling.__call__(self, sde, n, device)

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """See `LogSNRTimes.quantile`."""
        masses = self._masses(u.device)
        ends = nn.functional.pad(masses.cumsum(0), (1, 0))
        part = (torch.searchsorted(ends, u.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        return (part + ((u - ends[part]) / masses[part]).clamp(0, 1)) / self.bins

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """See `LogSNRTimes.density`."""
        return self._masses(t.device)[self._part(sde, t)] * self.bins

    @torch.no_grad()
    def observe(self, sde: SDE, t: Tensor, squares: Tensor) -> None:
        """Take these values into the moving average, but for NaN and infinity; see `TimeSampling.observe`."""
        part, finite = self._part(sde, t), squares.isfinite()
        both = torch.stack([finite.double(), torch.where(finite, squares.double(), 0.0)])
        zeros = torch.zeros(2, self.bins, dtype=torch.float64, device=t.device)
        counts, sums = summed(zeros.index_add(1, part, both))
        means = sums / counts.clamp(min=1)
        moments = self.moments.to(t.device)
        fresh = torch.where(moments.isnan(), means, self.decay * moments + (1 - self.decay) * means)
        self.moments.copy_(torch.where(counts > 0, fresh, moments))

    def _masses(self, device: torch.device) -> Tensor:
        """Probability of each part, [bins]."""
        roots = self.moments.to(device).sqrt()
        roots = torch.where(roots.isnan().any() | (roots.sum() <= 0), torch.ones_like(roots), roots)
        return (1 - _UNIFORM) * roots / roots.sum() + _UNIFORM / self.bins

    def _part(self, sde: SDE, t: Tensor) -> Tensor:
        return (_place(sde, t) * self.bins).long().clamp(0, self.bins - 1)

    __repr__ = TimeSampling.__repr__


@torch.no_grad()
def _place(sde: SDE, t: Tensor) -> Tensor:
    first, last = _ends(sde, t.device)
    return (first - sde.log_snr(t)) / (first - last)


def _ends(sde: SDE, device: torch.device) -> tuple[Tensor, Tensor]:
    first, last = (sde.log_snr(torch.full((), t, dtype=torch.float64, device=device)) for t in (sde.t_min, sde.t_max))
    return first, last
