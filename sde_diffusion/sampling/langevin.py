"""Langevin dynamics at fixed noise levels: NCSN's sampler, and the step that correctors use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive, check_count
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.walk import Walk, singular
from sde_diffusion.sde import Grid, Number, UniformLogSNR, expand, number, numbers


def langevin_step(x: Tensor, score: Tensor, z: Tensor, step_size: Tensor) -> Tensor:
    """x + eps score + sqrt(2 eps) z.

    Args:
        x: [B, *].
        score: Score at x, [B, *].
        z: Standard normal, [B, *].
        step_size: eps, [] or [B].

    Returns:
        [B, *].
    """
    return torch.addcmul(x, expand(step_size, x), score).addcmul_(expand((2 * step_size).sqrt(), x), z)


class AnnealedLangevin(Sampler):
    r"""NCSN's sampler: steps_per_level Langevin steps at each noise level, from the noisiest to the cleanest.

    x <- x + a_i score + sqrt(2 a_i) z with a_i = step_size (sigma_i / sigma_L)^2. Between noise levels y = x / alpha,
    in which NCSN is defined, is unchanged: x <- (alpha_i+1 / alpha_i) x. With `denoise` the result is the belief x0 =
    (x + sigma_L^2 score) / alpha_L. Network passes: levels * steps_per_level, plus one with `denoise`. The frames of a
    trajectory are the states at the beginning of each noise level.

    NCSNv2's rules for the number of noise levels and the step size are meant for images, and leave too much variance
    in few dimensions (benchmarks/README.md): use more noise levels and a small step size there, or another sampler.

    Args:
        levels: Number of noise levels L, at least 2; `ncsnv2_levels` by default.
        steps_per_level: Number of steps T at each noise level, at least 1.
        step_size: epsilon, positive; `ncsnv2_step_size` by default.
        grid: See `Sampler`; uniform in log-SNR (geometric in sigma / alpha) by default.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If levels < 2, steps_per_level < 1 or step_size is not positive; from a call, if the path is
            singular at an end of the walk.

    References:
        Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution", algorithm 1;
        Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", algorithm 1.
    """

    def __init__(
        self,
        levels: int | None = None,
        steps_per_level: int = 5,
        step_size: float | None = None,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, UniformLogSNR() if grid is None else grid)
        also = ", or None for NCSNv2's rule"
        self.levels = None if levels is None else check_count("levels", levels, least=2, also=also)
        self.steps_per_level = check_count("steps_per_level", steps_per_level)
        self.step_size = None if step_size is None else as_positive("step_size", step_size, also)

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk down the noise levels; see `Sampler.walk`."""
        run.check_correctable(type(self).__name__)
        sde = run.sde
        span = (
            0.5 * (sde.log_snr(run.t_end) - sde.log_snr(sde.t_max)).item()
        )  # log of the largest over the smallest sigma / alpha
        if not math.isfinite(span):
            raise singular(sde)
        levels = self.levels or ncsnv2_levels(x[0].numel(), span)
        times = self.grid_on(sde).times(sde, levels, run.t_end)
        sigma = sde.sigma(times)
        alpha = numbers(sde.alpha(times))
        if self.step_size is None:
            relative: Number = ncsnv2_step_size(math.exp(span / (levels - 1)), self.steps_per_level)
        else:
            relative = number(self.step_size / sigma[-1].square())
        run.plan(times)
        for level, t in enumerate(times):
            if level:
                x = x * (alpha[level] / alpha[level - 1])
            x = run.visit(x, t)
            for j in range(self.steps_per_level):
                score = run.predict(x, t).score
                z = run.normal(level * self.steps_per_level + j)
                x = langevin_step(x, score, z, relative * sigma[level].square())
                del score, z
        return run.predict(x, times[-1]).x0 if self.denoise else x


def ncsnv2_levels(dimensions: int, span: float) -> int:
    """Number of geometric noise levels whose neighbouring shells of noise overlap by half.

    The ratio gamma of two noise levels solves Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3
    gamma) = 1/2, which for all but the smallest D is gamma = sqrt(2 D) / (sqrt(2 D) - 3); where that exceeds 2, 2 is
    taken.

    Args:
        dimensions: D.
        span: log of the largest over the smallest noise level.

    Returns:
        L, at least 2.

    References:
        Song & Ermon 2020, technique 2 and proposition 2.
    """
    root = math.sqrt(2 * dimensions)
    gamma = min(2.0, root / (root - 3)) if root > 3 else 2.0
    return max(2, 1 + math.ceil(span / math.log(gamma)))


def ncsnv2_step_size(gamma: float, steps_per_level: int) -> float:
    """Step size over sigma^2 with which T Langevin steps take the variance of one noise level to that of the next.

    e with (1 - e)^(2T) (gamma^2 - v) + v closest to 1, v = 2 e / (1 - (1 - e)^2): the variance ratio after T steps.

    Args:
        gamma: Ratio of two consecutive noise levels, above 1.
        steps_per_level: Number of steps T.

    Returns:
        e = step_size / sigma_L^2, in (0, 1).

    References:
        Song & Ermon 2020, technique 4 and proposition 3.
    """
    e = torch.logspace(-9, 0, 20001, dtype=torch.float64)[:-1]
    stationary = 2 / (2 - e)
    ratio = (1 - e) ** (2 * steps_per_level) * (gamma**2 - stationary) + stationary
    return float(e[(ratio - 1).abs().argmin()])
