r"""The grid on which a sampler's few steps come nearest to the solution of many steps, for one model.

The times of a walk are increments of log-SNR from its beginning, lambda_i = lambda_0 + e^(theta_1) + ... + e^(theta_i),
and theta minimises the squared distance of the samples to those of the many steps, from the same noise, by the
Levenberg-Marquardt method: a Gauss-Newton step on the residuals, damped until it helps. Derivatives are differences of
walks, so that any sampler of `Sampler`'s interface and any denoiser will do.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_batch, check_count, check_kind
from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.denoiser.conditions import chosen
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.arguments import check_t_end
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.noise import as_seeds
from sde_diffusion.sde import SDE, Grid, KarrasRho, TunedGrid, UniformLogSNR
from sde_diffusion.sde.grids import finite_log_snr

_RHOS = (3.0, 7.0)
_ENDS = (0.35, 0.45, 0.6, 0.7, 0.8, 1.0)
"""Grids to begin with: rho, beside uniform log-SNR, and ends, as shares of the range of log-SNR."""

_STEP = 0.02  # of theta, for differences
_LONGEST = 0.7  # change of theta in one iteration


@dataclass(frozen=True)
class Tuned:
    """What `tune_grid` found.

    Attributes:
        log_snr: Log-SNRs of the walk's times, from noise to data.
        error: Root mean square distance of its samples to the target, over all values.
        untuned: The same for the sampler's own grid.
        walks: Number of walks of all samples that the search took.
    """

    log_snr: list[float]
    error: float
    untuned: float
    walks: int

    @property
    def grid(self) -> TunedGrid:
        """The grid."""
        return TunedGrid([self.log_snr])


def tune_grid(
    sampler: Sampler,
    denoiser: Denoiser,
    target: Tensor,
    seeds: Sequence[int] | None = None,
    starts: Sequence[Grid] = (),
    tries: int = 2,
    iterations: int = 10,
    batch_size: int = 512,
    callback: Callable[[int, float], None] | None = None,
    **conditions: Any,
) -> Tuned:
    """Find the grid on which a sampler's samples come nearest to target samples of the same seeds.

    Several grids are tried first; from the best of them, the search takes up to `iterations` steps of as many walks as
    there are steps of the sampler, and a few more.

    Args:
        sampler: The sampler, with few steps. Its walk must have times of a grid, and no noise.
        denoiser: The denoiser.
        target: Samples of many steps by the same denoiser from the same seeds, [B, *dims]; some hundred are enough.
        seeds: Seeds of the samples, [B]; 0, 1, ... by default.
        starts: Further grids to try first, such as the one that was found for one step less.
        tries: Number of grids that the search begins from.
        iterations: Maximum number of iterations from each.
        batch_size: Maximum number of samples at once.
        callback: Called with the number of walks so far and the smallest error, after each walk.
        **conditions: Passed to the denoiser, such as label=[B].

    Returns:
        The log-SNRs of the times, and the errors.

    Raises:
        TypeError: If the sampler, the denoiser or the target is not one, or the denoiser does not take a condition.
        ValueError: If the sampler takes noise or has no times of a grid, the target is not [B, *dims], or log-SNR is
            infinite where the walk begins or ends.

    References:
        Levenberg 1944; Marquardt 1963. Grids found for a model: Sabour et al. 2024, "Align Your Steps"; Xue et al.
        2024, "Accelerating Diffusion Sampling with Optimized Time Steps".
    """
    check_kind("sampler", sampler, Sampler)
    check_denoiser(denoiser)
    check_batch("target", target)
    for name, value in (("tries", tries), ("iterations", iterations), ("batch_size", batch_size)):
        check_count(name, value)
    if not isinstance(starts, Sequence) or not all(isinstance(grid, Grid) for grid in starts):
        raise TypeError(f"starts must be a list of grids (instances, not names); got {shown(starts)}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of (walks, error); got {shown(callback)}")
    seeds = as_seeds(range(len(target)) if seeds is None else seeds, len(target))
    conditions = denoiser.check_conditions(conditions, len(target), target.device)
    points = _points(sampler, denoiser, target, conditions)
    walks = _Walks(sampler, denoiser, target, seeds, batch_size, conditions, callback)
    own = sampler.grid_on(denoiser.sde)
    untuned = walks.error(walks.theta(own.times(denoiser.sde, points, walks.t_end)))
    begins = [walks.theta(times) for times in _begins(denoiser.sde, (own, *starts), points, walks.t_end)]
    ranked = sorted(begins, key=walks.error)[:tries]
    found = min((_descend(walks.residuals, theta, iterations) for theta in ranked), key=walks.error)
    return Tuned(walks.log_snr(found).tolist(), walks.error(found), untuned, walks.count)


class _Asked(Grid):
    """A grid that remembers for how many times it was asked."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.points = grid, 0

    def times(self, sde: SDE, points: int, t_end: float | None = None) -> Tensor:
        self.points = points
        return self.grid.times(sde, points, t_end)

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        return self.grid.time(sde, u, t_end)


def _points(sampler: Sampler, denoiser: Denoiser, target: Tensor, conditions: dict[str, Any]) -> int:
    """The number of times that a sampler's walk takes.

    Raises:
        ValueError: If there are fewer than two, or the walk has noise of its own.
    """
    asking = copy.copy(sampler)
    asking.grid = asked = _Asked(sampler.grid_on(denoiser.sde))
    one = {name: chosen(value, slice(1), len(target)) for name, value in conditions.items()}
    latent = torch.ones_like(target[:1]) * denoiser.sde.sigma(denoiser.sde.t_max).item()
    pair = [asking(denoiser, target[:1].shape, seeds=[seed], latent=latent, **one).x for seed in (0, 1)]
    if asked.points < 2:
        raise ValueError(f"there is nothing to tune: {sampler} takes no steps between times of a grid")
    if not torch.equal(*pair):
        raise ValueError(f"tune_grid needs a sampler without noise, whose samples have a limit; got {sampler}")
    return asked.points


def _begins(sde: SDE, grids: Sequence[Grid], points: int, t_end: float) -> list[Tensor]:
    """Times to begin a search with, [points] each."""
    start, end = sde.log_snr(sde.t_max), sde.log_snr(t_end)
    found = [grid.times(sde, points, t_end) for grid in grids]
    shapes = [UniformLogSNR(), *(KarrasRho(rho) for rho in _RHOS)]
    for grid, share in itertools.product(shapes, _ENDS):
        found.append(grid.times(sde, points, sde.time(torch.lerp(start, end, share)).item()))
    return found


class _Walks:
    """The walks of a sampler, as a function of theta."""

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        target: Tensor,
        seeds: list[int],
        batch_size: int,
        conditions: dict[str, Any],
        callback: Callable[[int, float], None] | None,
    ) -> None:
        self.sampler, self.denoiser, self.target = copy.copy(sampler), denoiser, target
        self.seeds, self.batch_size, self.conditions, self.callback = seeds, batch_size, conditions, callback
        self.t_end = check_t_end(sampler.t_end, denoiser.sde)
        self.start, self.end = (finite_log_snr(denoiser.sde, t) for t in (denoiser.sde.t_max, self.t_end))
        self.count, self.least = 0, float("inf")
        self._known: dict[tuple[float, ...], float] = {}

    def theta(self, times: Tensor) -> Tensor:
        """The logarithms of the increments of log-SNR between times."""
        return self.denoiser.sde.log_snr(times).diff().log()

    def log_snr(self, theta: Tensor) -> Tensor:
        """Log-SNRs of the times, [N + 1], the inverse of `theta`; rounding must not pass the end."""
        found = torch.cat([self.start.reshape(1), self.start + theta.exp().cumsum(0)])
        return torch.where(found < self.end + 1e-9, found.clamp(max=self.end), found)

    def residuals(self, theta: Tensor) -> Tensor | None:
        """Samples minus target, flat, float64; None if the walk would pass its end or its samples are not finite."""
        log_snr = self.log_snr(theta)
        if log_snr[-1] > self.end or not bool((log_snr.diff() > 1e-6).all()):
            return None
        self.sampler.grid = TunedGrid([log_snr.tolist()])
        parts = [slice(i, i + self.batch_size) for i in range(0, len(self.seeds), self.batch_size)]
        try:
            drawn = torch.cat([self._draw(part) for part in parts])
        except UserError:  # NaN or infinite numbers
            return None
        found = (drawn - self.target).flatten().double()
        error = found.square().mean().sqrt().item()
        self._known[tuple(theta.tolist())] = error
        self.count, self.least = self.count + 1, min(self.least, error)
        if self.callback is not None:
            self.callback(self.count, self.least)
        return found

    def error(self, theta: Tensor) -> float:
        """The root mean square of the residuals; infinity if there are none."""
        key = tuple(theta.tolist())
        if key not in self._known and self.residuals(theta) is None:
            self._known[key] = float("inf")
        return self._known[key]

    def _draw(self, part: slice) -> Tensor:
        own = {name: chosen(value, part, len(self.target)) for name, value in self.conditions.items()}
        seeds, target = self.seeds[part], self.target[part]
        return self.sampler(self.denoiser, target.shape, seeds=seeds, device=target.device, **own).x


def _descend(residuals: Callable[[Tensor], Tensor | None], theta: Tensor, iterations: int) -> Tensor:
    """Minimise the sum of squares of residuals by the Levenberg-Marquardt method, from theta, [N].

    The damping is relative to the diagonal of J^T J, grows by 5 until the error falls, and then shrinks by 4. A point
    where there are no residuals (None) counts as a larger error. It ends when an iteration gains less than 0.1%.
    SciPy's `least_squares` (trf) came to the same errors in 99 and 135 walks where this takes 84 and 102, of UniPC's
    five and seven steps on digits; its method "lm", with these slopes, took 116 for the five.
    """
    here = residuals(theta)
    damping = 0.01
    for _ in range(iterations if here is not None else 0):
        assert here is not None
        slopes = torch.stack([_slope(residuals, theta, here, i) for i in range(len(theta))])
        normal, gradient, before = slopes @ slopes.T, slopes @ here, here.square().sum()
        for _ in range(6):
            damped = normal + torch.diag(damping * normal.diagonal() + 1e-12 * normal.diagonal().max() + 1e-300)
            trial = theta - torch.linalg.solve(damped, gradient).cpu().clamp(-_LONGEST, _LONGEST)
            there = residuals(trial)
            if there is not None and there.square().sum() < before:
                theta, here, damping = trial, there, max(damping / 4, 1e-4)
                break
            damping *= 5
        if not here.square().sum() < 0.999 * before:
            break
    return theta


def _slope(residuals: Callable[[Tensor], Tensor | None], theta: Tensor, here: Tensor, i: int) -> Tensor:
    """The derivative of residuals with respect to theta_i, by a difference to either side; 0 if there is none."""
    for step in (_STEP, -_STEP):
        aside = theta.clone()
        aside[i] += step
        if (there := residuals(aside)) is not None:
            return (there - here) / step
    return torch.zeros_like(here)
