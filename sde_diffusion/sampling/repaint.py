"""RePaint: replacement with jumps back up, so that the unknown part can adapt to what is known."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.sampling.measured import KnownPart, PosteriorSampler
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import Grid, add_, numbers


class RePaint(PosteriorSampler):
    """DDPM with the known part of x_t replaced; every `jump` steps it is noised again by as many, `resamples` times.

    The denoiser is a `PosteriorDenoiser` for its operator and noise, and y is passed as y=; see `Replacement`, which is
    RePaint with one resample. As the number of resamples grows, the mean converges to the posterior's where that is
    close to Gaussian; with noise in y, to within an error that falls with the number of steps. Modes do not mix where
    noise is small.

    Network passes: steps + jump (resamples - 1) n, with n = ceil((steps - jump) / jump) jumps of each round: 2,410 by
    default. A jump up is one draw from q(x_t | x_s), the composition of its steps. With noise in y there are fewer, as
    none begins at a noise level below that of y, where nothing is replaced that would bring y back.

    Args:
        steps: Number of noise levels, at least 2.
        jump: Number of steps of a jump, from 1 to steps - 1.
        resamples: How often the steps of a jump are taken, at least 1.
        grid: See `Sampler`.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If a number is out of range; from a call, see `Replacement`.
        TypeError: From a call, if the denoiser is not a `PosteriorDenoiser`.

    References:
        Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", algorithm 1 and its
        published schedule of jumps.
    """

    always_shown = ("steps", "jump", "resamples")

    def __init__(
        self,
        steps: int = 250,
        jump: int = 10,
        resamples: int = 10,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, grid)
        self.steps = check_count("steps", steps, least=2)
        self.jump = check_count("jump", jump, most=self.steps - 1)
        self.resamples = check_count("resamples", resamples)

    def levels(self, lowest: int = 0) -> list[int]:
        """Number of each noise level that the walk visits, in order; 0 is t_end. No jump begins below `lowest`."""
        jumps = (level for level in range(0, self.steps - self.jump, self.jump) if level >= lowest)
        left = dict.fromkeys(jumps, self.resamples - 1)
        visited = [self.steps - self.denoise]
        while (here := visited[-1]) > 0 or left.get(0):
            if left.get(here):
                left[here] -= 1
                visited.append(here + self.jump)
            else:
                visited.append(here - 1)
        return visited

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Down the grid and up again; see `Sampler.walk`."""
        sde, known = run.sde, KnownPart(run, type(self).__name__)
        times = known.through(self.grid_on(sde)).times(sde, self.steps + (not self.denoise), run.t_end)
        levels = self.levels(sum(not known.covers(t) for t in times))
        down = numbers(torch.stack(sde.posterior_coefficients(times[1:], times[:-1]), 1).flip(0))
        times = times.flip(0)
        up = numbers(torch.stack(sde.transition(times[: -self.jump], times[self.jump :]), 1))
        last = {level: place for place, level in enumerate(levels)}
        run.plan(times)
        x = known(x, times[levels[0]])
        for place, here in enumerate(levels):
            if last[here] == place:
                x = run.visit(x, times[here])
            if place + 1 == len(levels):
                break
            if levels[place + 1] > here:
                scale, std = up[here]
                x = add_(x * scale, run.normal(place), std)
            else:
                from_x0, from_x, std = down[here - 1]
                x0 = run.predict(x, times[here]).x0
                x = add_(x * from_x, x0, from_x0)
                del x0
                x = known(add_(x, run.normal(place), std), times[here - 1])
        return known.projected(run.predict(x, times[0]).x0) if self.denoise else x
