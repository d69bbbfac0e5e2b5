r"""Times at which the variational bound is estimated with the least variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_fraction, check_count
from sde_diffusion.sde import SDE
from sde_diffusion.training.time_sampling import TimeSampling

_UNIFORM = 0.002
"""Share of the draws that are uniform in log-SNR, so that no noise level is forgotten."""


class AdaptiveTimes(TimeSampling, nn.Module):
    r"""Importance sampling of the log-SNR lambda with p(lambda) proportional to the root of M(lambda).

    M is the mean square of 1/2 |eps_hat - eps|^2 at lambda. This p has the least variance of all for one draw: (int
    sqrt(M) dlambda)^2 less the square of the mean. M is measured in training, in `bins` equal parts of the range of
    log-SNR, as a moving average over batches; draws are uniform until every part has been seen. On a learnt path it
    minimises the variance as training its schedule by the gradient of the squared loss would.

    Args:
        bins: Number of parts, at least 2.
        decay: Weight of the past in the moving average, in [0, 1).
        stratified: See `TimeSampling`.

    Raises:
        ValueError: If a value is out of its range.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", section 5.1 (where a network learns the same density).
    """

    moments: Tensor

    def __init__(self, bins: int = 60, decay: float = 0.9, stratified: bool = True) -> None:
        nn.Module.__init__(self)
        TimeSampling.__init__(self, stratified)
        self.bins, self.decay = check_count("bins", bins, least=2), as_fraction("decay", decay)
        self.register_buffer("moments", torch.full((self.bins,), torch.nan, dtype=torch.float64))

    def __call__(self, sde: SDE, n: int, device: torch.device | str = "cpu") -> Tensor:
        """See `TimeSampling.__call__`."""
        return TimeSampling.__call__(self, sde, n, device)

    def density(self, v: Tensor) -> Tensor:
        """p(v) at places v on the way from one end of the log-SNR to the other, v in [0, 1]; of its shape."""
        return self._masses(v.device)[self._bin(v)] * self.bins

    def icdf(self, sde: SDE, u: Tensor) -> Tensor:
        """See `TimeSampling.icdf`; with gradients to a learnt path's ends."""
        masses = self._masses(u.device)
        ends = nn.functional.pad(masses.cumsum(0), (1, 0))
        place = (torch.searchsorted(ends, u.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        v = (place + ((u - ends[place]) / masses[place]).clamp(0, 1)) / self.bins
        first, last = self._ends(sde, u.device)
        return sde.time(first + v * (last - first)).clamp(sde.t_min, sde.t_max)

    def importance(self, sde: SDE, t: Tensor) -> Tensor:
        """See `TimeSampling.importance`."""
        first, last = self._ends(sde, t.device)
        return (first - last) / (-sde.log_snr_rate(t) * self.density(self._place(sde, t)) * (sde.t_max - sde.t_min))

    def observe(self, sde: SDE, t: Tensor, squares: Tensor) -> None:
        """Take these values into the moving average; see `TimeSampling.observe`."""
        with torch.no_grad():
            where = self._bin(self._place(sde, t))
            zeros = torch.zeros(self.bins, dtype=torch.float64, device=t.device)
            counts = zeros.index_add(0, where, torch.ones_like(t))
            means = zeros.index_add(0, where, squares.double()) / counts.clamp(min=1)
            moments = self.moments.to(t.device)
            fresh = torch.where(moments.isnan(), means, self.decay * moments + (1 - self.decay) * means)
            self.moments.copy_(torch.where(counts > 0, fresh, moments))

    def _masses(self, device: torch.device) -> Tensor:
        """Probability of each part, [bins]."""
        roots = self.moments.to(device).sqrt()
        roots = torch.where(roots.isnan().any() | (roots.sum() <= 0), torch.ones_like(roots), roots)
        return (1 - _UNIFORM) * roots / roots.sum() + _UNIFORM / self.bins

    def _bin(self, v: Tensor) -> Tensor:
        return (v * self.bins).long().clamp(0, self.bins - 1)

    def _place(self, sde: SDE, t: Tensor) -> Tensor:
        with torch.no_grad():
            first, last = self._ends(sde, t.device)
            return (first - sde.log_snr(t)) / (first - last)

    @staticmethod
    def _ends(sde: SDE, device: torch.device) -> tuple[Tensor, Tensor]:
        first, last = (
            sde.log_snr(torch.full((), t, dtype=torch.float64, device=device)) for t in (sde.t_min, sde.t_max)
        )
        return first, last

    __repr__ = TimeSampling.__repr__
