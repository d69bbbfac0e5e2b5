r"""Variance-preserving paths whose log-SNR is learnt: variational diffusion models.

    alpha^2 = sigmoid(lambda),   sigma^2 = sigmoid(-lambda),   lambda(t) = lambda_0 + (lambda_1 - lambda_0) v(t),

with v, the schedule, rising from 0 at t = 0 to 1 at t = 1. In continuous time the variational bound depends on the path
only through the two ends; v decides how much its estimate from random times varies.

References: Kingma et al. 2021, "Variational Diffusion Models", sections 3.2 and 5.1, appendix H.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_bool, check_count, check_kind
from sde_diffusion.sde.coefficients import Time, float64
from sde_diffusion.sde.learned import LearnedSDE

_SLOWNESS = 0.1
"""Ends are learnt by steps that are smaller by this factor: the bound is flat around its optimum."""

_MOST = 60.0


class NoiseSchedule(nn.Module, ABC):
    """v(t): the share of the way from one end of the log-SNR to the other, strictly increasing, v(0) = 0, v(1) = 1."""

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """V and its derivative dv/dt at t of any shape, in [0, 1]; float64, of t's shape."""

    def inverse(self, v: Tensor) -> Tensor | None:
        """The t at which v has a value, of its shape; None: it has no closed form."""
        return None


class LinearSchedule(NoiseSchedule):
    """v = t, without parameters."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule`."""
        return t, torch.ones_like(t)

    def inverse(self, v: Tensor) -> Tensor:
        """V itself."""
        return v


class KnotSchedule(NoiseSchedule):
    """Straight lines between equally spaced times, whose rises are the softmax of the parameters.

    Args:
        knots: Number of pieces, at least 2.

    Raises:
        ValueError: If it is less.
    """

    def __init__(self, knots: int = 50) -> None:
        super().__init__()
        self.knots = check_count("knots", knots, least=2)
        self.logits = nn.Parameter(torch.zeros(self.knots, dtype=torch.float64))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule`."""
        rises = self.logits.softmax(0)
        ends = F.pad(rises.cumsum(0), (1, 0))
        place = (t * self.knots).detach().long().clamp(0, self.knots - 1)
        rate = rises[place] * self.knots
        return ends[place] + rate * (t - place.double() / self.knots), rate

    def inverse(self, v: Tensor) -> Tensor:
        """On the piece whose ends v lies between."""
        rises = self.logits.softmax(0)
        ends = F.pad(rises.cumsum(0), (1, 0))
        place = (torch.searchsorted(ends.detach(), v.detach().contiguous(), right=True) - 1).clamp(0, self.knots - 1)
        return (place + (v - ends[place]) / rises[place]) / self.knots


class MonotoneSchedule(NoiseSchedule):
    """A network with positive weights: l1(t) + l3(sigmoid(l2(l1(t)))), moved and scaled to end at 0 and 1.

    Args:
        width: Number of hidden values, at least 1.

    Raises:
        ValueError: If it is less.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", appendix H.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = check_count("width", width)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(3, self.width, generator=generator, dtype=torch.float64)
        self.slope = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.rates = nn.Parameter(2 + 0.5 * start[0])  # of the sigmoids, before softplus
        self.middles = nn.Parameter((torch.arange(self.width, dtype=torch.float64) + 0.5) / self.width)
        self.heights = nn.Parameter(torch.full((self.width,), -math.log(self.width), dtype=torch.float64))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule`."""
        raw, rate = self._raw(t)
        (low, high), _ = self._raw(torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device))
        return (raw - low) / (high - low), rate / (high - low)

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rates, heights, slope = F.softplus(self.rates), F.softplus(self.heights), F.softplus(self.slope)
        inner = torch.sigmoid(4 * rates * (t.unsqueeze(-1) - self.middles))
        rate = slope + (4 * heights * rates * inner * (1 - inner)).sum(-1)
        return slope * t + (heights * inner).sum(-1), rate


class LearnedVPSDE(LearnedSDE):
    """A variance-preserving path with learnt ends of the log-SNR, and a schedule between them that may be learnt too.

    Args:
        log_snr_max: lambda at t = 0, where learning starts. With L levels about 2 log(4 (L - 1)); 13.3 for 256.
        log_snr_min: lambda at t = 1, less than log_snr_max.
        schedule: v(t); linear by default.
        learn_ends: Whether the ends are learnt.

    Raises:
        TypeError: If schedule is not a `NoiseSchedule`.
        ValueError: If the ends are not in order, or beyond 60 in size.
    """

    def __init__(
        self,
        log_snr_max: float = 13.3,
        log_snr_min: float = -5.0,
        schedule: NoiseSchedule | None = None,
        learn_ends: bool = True,
    ) -> None:
        super().__init__()
        check_kind("schedule", schedule, NoiseSchedule, or_none=True)
        self.log_snr_max, self.log_snr_min = (
            as_number("log_snr_max", log_snr_max),
            as_number("log_snr_min", log_snr_min),
        )
        if not -_MOST <= self.log_snr_min < self.log_snr_max <= _MOST:
            raise ValueError(
                f"a learnt path needs -{_MOST:g} <= log_snr_min < log_snr_max <= {_MOST:g}; got {log_snr_min} and "
                f"{log_snr_max}"
            )
        self.schedule = LinearSchedule() if schedule is None else schedule
        self.learn_ends = check_bool("learn_ends", learn_ends)
        self.moves = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=self.learn_ends)

    def ends(self) -> Tensor:
        """lambda at t = 0 and at t = 1, [2], with gradients."""
        start = torch.tensor([self.log_snr_max, self.log_snr_min], dtype=torch.float64, device=self.moves.device)
        return start + _SLOWNESS * self.moves

    def log_alpha(self, t: Tensor) -> Tensor:
        """1/2 log sigmoid(lambda)."""
        return 0.5 * F.logsigmoid(self._log_snr(t))

    def log_sigma(self, t: Tensor) -> Tensor:
        """1/2 log sigmoid(-lambda)."""
        return 0.5 * F.logsigmoid(-self._log_snr(t))

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """1/2 sigmoid(-lambda) lambda'."""
        log_snr, rate = self._line(t)
        return 0.5 * torch.sigmoid(-log_snr) * rate

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """-1/2 sigmoid(lambda) lambda'."""
        log_snr, rate = self._line(t)
        return -0.5 * torch.sigmoid(log_snr) * rate

    def time(self, log_snr: Time) -> Tensor:
        """See `SDE.time`; in closed form where the schedule has an inverse."""
        target = float64(log_snr)
        first, last = self.ends()
        found = self.schedule.inverse(((first - target) / (first - last)).clamp(0, 1))
        return super().time(target) if found is None else found

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._line(t)[0]

    def _line(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.ends()
        v, rate = self.schedule(t)
        return first + (last - first) * v, (last - first) * rate
