"""Grids that were found for one model by its own samples: lists of log-SNRs, one list for each number of times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers
from sde_diffusion.checks.reprs import shown
from sde_diffusion.sde.grids import Grid, check_walk, finite_log_snr, pin

if TYPE_CHECKING:
    from sde_diffusion.sde.base import SDE


@dataclass(frozen=True)
class TunedGrid(Grid):
    """Lists of log-SNRs lambda, which `sampling.tune_grid` finds for a model; each is a walk from noise to data.

    A walk of N times takes the list of that length. It begins at the path's t_max and ends where the list ends, which
    may be before t_end: with few steps it pays to make the last prediction of x0 at a noise level where there is still
    something to predict. For other numbers of times, with each list as the piecewise linear map from [0, 1] to lambda:

        between two lengths         lambda of both lists, mixed linearly in N
        fewer than the shortest     the shortest list's map
        more than the longest, M    the longest list's map with one more step, (1 - M / N) of the way to t_end in lambda

    Since the lists are in log-SNR, the same grid can be used on any path with these noise levels. If a walk begins
    later than t_max (as for the variation of an image), or t_end lies before a list's end, the log-SNRs are shrunk
    linearly into the range of the walk.

    Args:
        log_snr: The lists, of two numbers or more and of different lengths, each strictly increasing (noise to data).

    Raises:
        ValueError: If there is no list, or they are not such lists; from `times` and `time`, if log-SNR is infinite at
            an end that they need, or if the walk begins after they end.
    """

    log_snr: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        try:
            lists = [as_numbers("log_snr", one) for one in self.log_snr]
            right = bool(lists) and all(
                one.ndim == 1 and len(one) > 1 and bool((one.diff() > 0).all()) for one in lists
            )
        except (TypeError, ValueError):
            right = False
        if not right or len({len(one) for one in lists}) < len(lists):
            raise ValueError(
                "log_snr must be lists of two or more increasing numbers, each of another length; "
                f"got {shown(self.log_snr)}"
            )
        ordered = tuple(sorted((tuple(one.tolist()) for one in lists), key=len))
        object.__setattr__(self, "log_snr", ordered)

    def times(self, sde: SDE, points: int, t_end: float | None = None) -> Tensor:
        """Times of a walk from noise to data; see `Grid.times`, and the class for where the walk ends."""
        points, t_end = check_walk(sde, points, t_end)
        knots = _placed(sde, self._knots(sde, max(points, 2), t_end), t_end)
        return _times(sde, knots, torch.linspace(1, 0, len(knots), dtype=torch.float64), t_end)[:points]

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """Map u to t by the longest list, with one more step down to t_end; see `Grid.time`.

        This is for solvers that choose their own steps, and that must reach t_end.
        """
        return _times(sde, _placed(sde, self._longer(sde, t_end, 1.0), t_end), u, t_end)

    @property
    def _lists(self) -> list[Tensor]:
        return [torch.tensor(one, dtype=torch.float64) for one in self.log_snr]

    def _longer(self, sde: SDE, t_end: float, share: float) -> Tensor:
        """The longest list with one more step, a share of the way to t_end."""
        longest, end = self._lists[-1], finite_log_snr(sde, t_end)
        return torch.cat([longest, torch.lerp(longest[-1:], end, share)]) if end > longest[-1] else longest

    def _knots(self, sde: SDE, points: int, t_end: float) -> Tensor:
        """The list for so many points, two or more."""
        lists, places = self._lists, torch.linspace(0, 1, points, dtype=torch.float64)
        if points > len(lists[-1]):
            return _at(self._longer(sde, t_end, 1 - len(lists[-1]) / points), places)
        if points <= len(lists[0]):
            return _at(lists[0], places)
        below, above = next(pair for pair in itertools.pairwise(lists) if points <= len(pair[1]))
        return torch.lerp(_at(below, places), _at(above, places), (points - len(below)) / (len(above) - len(below)))


def _at(knots: Tensor, places: Tensor) -> Tensor:
    """The piecewise linear map through knots at equal distances in [0, 1], at some places; differentiable in them."""
    place = places * (len(knots) - 1)
    below = place.detach().floor().long().clamp(0, len(knots) - 2)
    return torch.lerp(knots[below], knots[below + 1], place - below)


def _placed(sde: SDE, knots: Tensor, t_end: float) -> Tensor:
    """Log-SNRs, shrunk linearly into the range of a walk if it begins later or ends earlier than they do.

    Raises:
        ValueError: If the walk begins after they end.
    """
    start, end = finite_log_snr(sde, sde.t_max), torch.minimum(knots[-1], sde.log_snr(t_end))
    if not start < end:
        raise ValueError(
            f"this tuned grid ends at log-SNR {knots[-1].item():.4g}, and the walk begins at {start.item():.4g} on "
            f"{sde}: it was found for another path, or the walk begins too late; take another grid"
        )
    return torch.lerp(start, end, (knots - knots[0]) / (knots[-1] - knots[0]))  # the ends exactly


def _times(sde: SDE, knots: Tensor, u: Tensor, t_end: float) -> Tensor:
    """Times of the log-SNRs at u, which falls from 1 (noise) to 0; the two ends exactly, if the knots end at t_end."""
    end = t_end if knots[-1] >= sde.log_snr(t_end) else sde.time(knots[-1]).item()
    return pin(sde.time(_at(knots, 1 - u)), u, sde, end)
