r"""Variance-preserving paths whose log-SNR is learned: variational diffusion models.

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

from sde_diffusion.checks import as_number, check_bool, check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde.coefficients import Time, float64
from sde_diffusion.sde.learned import LearnedSDE

_SPEED = 30.0
"""Factor by which schedules move faster than other parameters at the same learning rate: few numbers, far to go."""

_SHORTEST = 0.002
"""Share of the time that is divided equally over the pieces of a `KnotSchedule`, so that none takes no time."""

_LEAST_RATE = 0.002
"""Share of v = t in a `MonotoneSchedule`, so that it rises everywhere and has an inverse."""

_SHAPE_SPEED = 4.0
"""The same factor for the places and the logarithms of the rates of the sigmoids of a `MonotoneSchedule`."""

_OCTAVES = 10
"""The steepest of these sigmoids start 2^10 times as steep as one that takes all of the time."""

_ENDS_SPEED = 10.0
"""Factor by which the ends move faster, to cross their range within thousands of steps."""

_MOST, _LEAST_RANGE = 60.0, 1.0
_START = 13.3  # lambda at t = 0 for data without levels, as in the paper


class NoiseSchedule(nn.Module, ABC):
    """v(t): the share of the way from one end of the log-SNR to the other, strictly increasing, v(0) = 0, v(1) = 1."""

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The value v and dv/dt at t of any shape, in [0, 1]; float64, of t's shape."""

    def inverse(self, v: Tensor) -> Tensor:
        """The t at which v has a value, of its shape; by bisection and Newton's method unless overridden."""
        with torch.no_grad():
            low, high = torch.zeros_like(v), torch.ones_like(v)
            for _ in range(30):
                middle = 0.5 * (low + high)
                early = self(middle)[0] < v
                low, high = torch.where(early, middle, low), torch.where(early, high, middle)
            t = 0.5 * (low + high)
            for _ in range(3):
                found, rate = self(t)
                t = (t + (v - found) / rate).clamp(low, high)
        for _ in range(2):  # Newton steps of length zero, for the derivatives; the second for second derivatives
            found, rate = self(t)
            missed = v - found
            t = t + (missed - missed.detach()) / rate.detach()
        return t


class LinearSchedule(NoiseSchedule):
    """v = t, without parameters."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule`."""
        return t, torch.ones_like(t)

    def inverse(self, v: Tensor) -> Tensor:
        """t = v."""
        return v


class KnotSchedule(NoiseSchedule):
    """Straight lines through equally spaced v, whose durations are the softmax of the parameters.

    The density of the log-SNR at uniform t is then constant on each piece, as that of `AdaptiveTimes` is.

    Args:
        pieces: Number of pieces, at least 2.

    Raises:
        ValueError: If it is less.
    """

    def __init__(self, pieces: int = 60) -> None:
        super().__init__()
        self.pieces = check_count("pieces", pieces, least=2)
        self.logits = nn.Parameter(torch.zeros(self.pieces, dtype=torch.float64))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule`."""
        durations, ends = self._pieces()
        place = torch.searchsorted(ends.detach(), t.detach().contiguous(), right=True) - 1
        place = place.clamp(0, self.pieces - 1)
        rate = 1 / (durations[place] * self.pieces)
        return place.double() / self.pieces + (t - ends[place]) * rate, rate

    def inverse(self, v: Tensor) -> Tensor:
        """On the piece that v lies on."""
        durations, ends = self._pieces()
        place = (v * self.pieces).detach().long().clamp(0, self.pieces - 1)
        return ends[place] + (v * self.pieces - place) * durations[place]

    def _pieces(self) -> tuple[Tensor, Tensor]:
        durations = (1 - _SHORTEST) * (_SPEED * self.logits).softmax(0) + _SHORTEST / self.pieces
        return durations, F.pad(durations.cumsum(0), (1, 0))


class MonotoneSchedule(NoiseSchedule):
    """A network with positive weights: l1(t) + l3(sigmoid(l2(l1(t)))), moved and scaled to end at 0 and 1.

    Half of the sigmoids start evenly spread over the time, the others at its two ends, in pairs that are steeper and
    steeper: the best schedules may cross a quarter of the range of log-SNR in a thousandth of the time, at an end. All
    are moved in units of their own widths, and made steeper by factors, so that steps that suit the wide ones do not
    throw the steep ones about.

    Args:
        width: Number of hidden values, at least 1.

    Raises:
        ValueError: If it is less.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", appendix H.
    """

    places: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = check_count("width", width)
        pairs = self.width // 4
        spread = self.width - 2 * pairs
        octaves = _OCTAVES * (torch.arange(pairs, dtype=torch.float64) + 1) / max(pairs, 1)
        inside = (torch.arange(spread, dtype=torch.float64) + 0.5) / spread
        places = torch.cat([inside, torch.zeros_like(octaves), torch.ones_like(octaves)])
        rates = torch.cat([torch.full_like(inside, spread), *[4 * 2**octaves] * 2]).log()
        heights = torch.cat([torch.zeros_like(inside), *[-math.log(2) * octaves] * 2]) - math.log(self.width)
        self.register_buffer("places", places, persistent=False)
        self.slope = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.rates = nn.Parameter(rates / _SHAPE_SPEED)  # logarithms, of the sigmoids
        self.shifts = nn.Parameter(torch.zeros_like(places))
        self.heights = nn.Parameter(heights / _SPEED)  # before softplus

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NoiseSchedule`."""
        raw, rate = self._raw(t)
        (low, high), _ = self._raw(torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device))
        v, rate = (raw - low) / (high - low), rate / (high - low)
        return torch.lerp(v, t, _LEAST_RATE), _LEAST_RATE + (1 - _LEAST_RATE) * rate

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        heights, slope = (F.softplus(_SPEED * part) for part in (self.heights, self.slope))
        rates, shifts = (_SHAPE_SPEED * self.rates).exp(), _SHAPE_SPEED * self.shifts
        inner = torch.sigmoid(rates * (t.unsqueeze(-1) - self.places) - shifts)
        rate = slope + (heights * rates * inner * (1 - inner)).sum(-1)
        return slope * t + (heights * inner).sum(-1), rate


SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "linear": LinearSchedule,
    "knots": KnotSchedule,
    "net": MonotoneSchedule,
}
"""The schedules by name."""


class LearnedVPSDE(ShowsArguments, LearnedSDE):
    """A variance-preserving path with learned ends of the log-SNR, and a schedule between them that may be learned too.

    Args:
        log_snr_max: lambda at t = 0, where learning starts; None: 2 log(4 (L - 1)) for data on L levels, where noise
            no longer hides the level, and 13.3 for other data.
        log_snr_min: lambda at t = 1, less than log_snr_max.
        schedule: v(t), a name of `SCHEDULES` or a `NoiseSchedule`: linear, knots, or net (`MonotoneSchedule()`).
        learn_ends: Whether the ends are learned.
        levels: L, for data on levels in [-1, 1].

    Raises:
        ValueError: If the schedule is unknown, or the ends are not in order, or beyond 60 in size.
    """

    def __init__(
        self,
        log_snr_max: float | None = None,
        log_snr_min: float = -5.0,
        schedule: str | NoiseSchedule = "linear",
        learn_ends: bool = True,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        if log_snr_max is None:
            log_snr_max = _START if levels is None else 2 * math.log(4 * (check_count("levels", levels, least=2) - 1))
        self.log_snr_max = as_number("log_snr_max", log_snr_max)
        self.log_snr_min = as_number("log_snr_min", log_snr_min)
        if not -_MOST <= self.log_snr_min < self.log_snr_max <= _MOST:
            raise ValueError(
                f"a learned path needs -{_MOST:g} <= log_snr_min < log_snr_max <= {_MOST:g}; got {log_snr_min:g} and "
                f"{log_snr_max:g}"
            )
        self.schedule: NoiseSchedule = as_instance("schedule", schedule, SCHEDULES, NoiseSchedule)
        self.learn_ends = check_bool("learn_ends", learn_ends)
        self.moves = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=self.learn_ends)

    def ends(self) -> Tensor:
        """lambda at t = 0 and at t = 1, [2], with gradients."""
        start = torch.tensor([self.log_snr_max, self.log_snr_min], dtype=torch.float64, device=self.moves.device)
        first, last = (start + _ENDS_SPEED * self.moves).clamp(-_MOST, _MOST)
        return torch.stack([first, torch.minimum(last, first - _LEAST_RANGE)])

    def log_snr_speed(self, log_snr: Tensor) -> Tensor:
        """See `SDE.log_snr_speed`."""
        first, last = self.ends().detach()
        t = self.schedule.inverse(((first - log_snr) / (first - last)).clamp(0, 1))
        rate: Tensor = self.schedule(t)[1]
        found: Tensor = (first - last) * rate
        return found

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
        """See `SDE.time`; by the schedule's inverse."""
        first, last = self.ends()
        return self.schedule.inverse(((first - float64(log_snr)) / (first - last)).clamp(0, 1))

    __repr__ = ShowsArguments.__repr__

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._line(t)[0]

    def _line(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.ends()
        v, rate = self.schedule(t)
        return first + (last - first) * v, (last - first) * rate
