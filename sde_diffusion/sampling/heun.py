"""EDM's sampler: Heun's method for y = x / alpha as a function of r = sigma / alpha, with optional churn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_count
from sde_diffusion.sampling.arguments import NO_STEP_LEFT
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.walk import Walk, singular
from sde_diffusion.sde import Grid, KarrasRho, add_, float64, number, numbers, value_of


class HeunSampler(Sampler):
    r"""Heun's second-order method for dy/dr = (y - x0) / r; with churn > 0 some noise is added before each step.

    With churn, each step first raises r to r' = r (1 + min(churn / steps, sqrt 2 - 1)), at most to the path's end, by
    adding noise of standard deviation churn_noise sqrt(r'^2 - r^2). With `denoise` the last step goes to r = 0 by
    Euler's method, which returns x0: 2 steps - 1 network passes. Without it there are `steps` steps down to t_end and
    2 steps passes. Order 2; with churn, weak order 2 if churn / steps < sqrt 2 - 1 and churn_noise = 1.

    The last step has churn too, as in EDM's algorithm: with churn and `denoise`, x0 is the belief at r' of t_end (up to
    sqrt 2 times as noisy), not at t_end. In 2 to 4 steps the method fails, with churn even more: the variance at t_end
    is many times the data's (benchmarks/README.md).

    Args:
        steps: Number of noise levels, at least 1.
        churn: S_churn, at least 0.
        churn_min: Smallest r at which noise is added (S_tmin).
        churn_max: Largest r at which noise is added (S_tmax).
        churn_noise: S_noise, the factor of the added noise, positive.
        grid: See `Sampler`; `KarrasRho()` by default.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1, churn < 0 or churn_noise <= 0; from a call, if the path is singular at an end of the
            walk.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithms 1 and 2;
        on other paths by the change of variables of its section 4.
    """

    always_shown = ("steps",)

    def __init__(
        self,
        steps: int = 18,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        churn_noise: float = 1.0,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, KarrasRho() if grid is None else grid)
        self.steps = check_count("steps", steps)
        self.churn = as_number("churn", churn)
        if not self.churn >= 0:
            raise ValueError(f"churn must not be negative; got {churn!r}")
        self.churn_min, self.churn_max = as_number("churn_min", churn_min), as_number("churn_max", churn_max)
        self.churn_noise = as_positive("churn_noise", churn_noise)

    def walk(self, x: Tensor, run: Walk, up: bool = False) -> Tensor:
        """Walk down the grid, or up it without a belief at the end; see `Sampler.walk`."""
        sde, denoise = run.sde, self.denoise and not up
        times = self.grid_on(sde).times(sde, self.steps + (not self.denoise), run.t_end)
        times = times.flip(0) if up else times
        alpha, r = numbers(sde.alpha(times)), numbers((-0.5 * sde.log_snr(times)).exp())
        finite = math.isfinite(value_of(r[0])) and math.isfinite(value_of(r[-1]))
        if not finite or 0 in r[1:] or not r[0]:  # y or the slope is infinite
            raise singular(sde)
        run.plan(times)
        starts, raised = self._raised(run, times)
        raised_alpha, raised_r = numbers(sde.alpha(starts)), numbers(raised)
        for step, (here, scale) in enumerate(zip(raised_r, raised_alpha, strict=True)):
            x = run.visit(x, times[step])
            last = step + 1 == len(r)
            if last and not denoise:
                break
            if here > r[step]:
                more = self.churn_noise * number(float64(here**2 - r[step] ** 2).sqrt())
                x = add_(x * (scale / alpha[step]), run.normal(step), scale * more)
            x0 = run.predict(x, starts[step]).x0
            if last:
                return x0
            # With x = a y and r' = q r: Euler's step is y' = q y + (1 - q) x0. Half of it, (y + y') / 2, is kept; the
            # slope at its end adds (r' - r) / 2 r' (y' - x0'). Beside x', nothing else is kept for the second pass.
            a, q = alpha[step + 1], r[step + 1] / here
            half = add_(x * (0.5 * a * (1 + q) / scale), x0, 0.5 * a * (1 - q))
            x = add_(x * (a * q / scale), x0, a * (1 - q))
            del x0
            share = 0.5 * (1 - here / r[step + 1])
            half = add_(half, x, share)
            x = add_(half, run.predict(x, times[step + 1]).x0, -a * share)
            del half
        return x

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """The same number of Heun's steps, up; see `Sampler.climb`."""
        if self.churn:
            raise ValueError(f"only the deterministic walk (churn = 0) can be inverted; got churn={self.churn}")
        if self.steps == 1 and self.denoise:
            raise ValueError(NO_STEP_LEFT)
        return self.walk(x, run, up=True)

    def _raised(self, run: Walk, times: Tensor) -> tuple[Tensor, Tensor]:
        """Times and r at which the steps begin, after churn."""
        r = (-0.5 * run.sde.log_snr(times)).exp()
        gain = min(self.churn / self.steps, math.sqrt(2) - 1)
        churned = (r >= self.churn_min) & (r <= self.churn_max)
        if not gain or not bool(churned.any()):
            return times, r
        raised = torch.where(churned, r * (1 + gain), r).clamp(max=r[0])
        starts = torch.where(raised > r, run.sde.time(-2 * raised.log()), times).clamp(max=run.sde.t_max)
        return starts, (-0.5 * run.sde.log_snr(starts)).exp()
