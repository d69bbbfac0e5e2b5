"""What samplers of posteriors share: the measurement that their denoiser names, and the known part of a noisy state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.guidance import JacobianFree, MeasurementLikelihood, PosteriorDenoiser, PosteriorMethod
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import SDE, Grid, Time, value_of

_ROUNDING = 1e-9


class PosteriorSampler(Sampler, PosteriorMethod):
    """A sampler of p(x_0 | y). Its denoiser is a `PosteriorDenoiser`, and y is passed as y=.

    Attributes:
        likelihood: The likelihood to use in place of the denoiser's; None if the denoiser's is used, or none is needed.
    """

    likelihood: MeasurementLikelihood | None = None

    def likelihood_and_sampler(self, sampler: Any) -> tuple[MeasurementLikelihood, Any]:
        """Its likelihood, or else the cheapest, and itself; see `PosteriorMethod`."""
        return JacobianFree() if self.likelihood is None else self.likelihood, self


def measured(denoiser: Denoiser, sampler: str) -> PosteriorDenoiser:
    """The denoiser of a walk, which must say what is measured.

    Raises:
        TypeError: If it is not a `PosteriorDenoiser`.
    """
    found = getattr(denoiser, "_orig_mod", denoiser)
    if not isinstance(found, PosteriorDenoiser):
        raise TypeError(
            f"{sampler} needs a PosteriorDenoiser(denoiser, operator, noise), which says what is measured; got "
            f"{shown(type(found))}"
        )
    return found


@dataclass(frozen=True)
class _Through(Grid):
    """A grid in which the time that is nearest to t, but for the ends, is moved there."""

    grid: Grid
    t: float

    def time(self, sde: SDE, u: Tensor, t_end: float) -> Tensor:
        """That of the grid; see `Grid.time`."""
        return self.grid.time(sde, u, t_end)

    def times(self, sde: SDE, points: int, t_end: float | None = None) -> Tensor:
        """See `Grid.times`."""
        times = self.grid.times(sde, points, t_end)
        if points > 2 and value_of(times[-1]) < self.t < value_of(times[0]):
            times = times.clone()
            times[1 + int((times[1:-1] - self.t).abs().argmin())] = self.t
        return times


class KnownPart:
    r"""The part of x_t known from y = A x_0 + noise n: A x_t = alpha y + sqrt(sigma^2 A A^T - alpha^2 noise^2) z.

    The noise of the measurement is counted as a part of that of x_t. Along the eigenvectors of A A^T, with eigenvalues
    e, where it is more than there is in x_t, sigma^2 e < alpha^2 noise^2, nothing is replaced: there the state, which y
    has become by then, is left to the model, as in DDRM. With noise = 0 and orthonormal rows it is alpha y + sigma z.

    From here on the walk's denoiser is the one without the measurement.

    Args:
        run: A walk whose denoiser is a `PosteriorDenoiser`.
        sampler: Name of the sampler, for messages.

    Raises:
        TypeError: See `measured`.
        ValueError: If the eigenvectors of A A^T are not known, or y has another shape than A x_0.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix I.2; Kawar et al. 2022, "Denoising
        Diffusion Restoration Models".
    """

    def __init__(self, run: Walk, sampler: str) -> None:
        posterior = measured(run.denoiser, sampler)
        self.operator, self.variance = posterior.operator, posterior.noise**2
        self.y = run.conditions["y"].to(run.noise.dtype)
        out = self.operator.output_shape(run.noise.dims)
        if self.y.shape[1:] != out:
            raise ValueError(f"y has shape {list(self.y.shape[1:])}, but the operator gives {list(out)}")
        self.noise = run.noise.stream("measurement", out)
        self.draws = 0
        self.sde = run.sde
        try:
            eigenvalues = self.operator.spectrum(out)
        except ValueError as error:
            raise ValueError(
                f"{sampler} replaces the known part of a state, for which the eigenvectors of A A^T are needed: {error}"
            ) from None
        self.least = float(eigenvalues[eigenvalues > 1e-6 * eigenvalues.amax()].amin())
        self.most = float(eigenvalues.amax())
        run.denoiser = posterior.denoiser
        run.conditions = {name: value for name, value in run.conditions.items() if name != "y"}

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        """x_t, [B, *dims], with its known part replaced, with fresh noise at each call."""
        alpha, sigma = value_of(self.sde.alpha(t)), value_of(self.sde.sigma(t))

        def left(eigenvalues: Tensor) -> Tensor:
            return sigma**2 * eigenvalues - alpha**2 * self.variance

        def weight(eigenvalues: Tensor) -> Tensor:
            replaced = left(eigenvalues) >= -_ROUNDING * sigma**2 * eigenvalues
            known = replaced & (eigenvalues > 1e-6 * eigenvalues.amax())
            return torch.where(known, 1 / torch.where(known, eigenvalues, 1.0), 0.0)

        z = self.operator.filter(self.noise.normal(self.draws), lambda e: left(e).clamp(min=0).sqrt())
        self.draws += 1
        return x + self.operator.adjoint(self.operator.filter(alpha * self.y + z - self.operator(x), weight))

    def covers(self, t: Time) -> bool:
        """Whether all that is measured is replaced at t: y has no more noise than x_t."""
        signal, noise = value_of(self.sde.alpha(t)) ** 2 * self.variance, value_of(self.sde.sigma(t)) ** 2 * self.least
        return noise * (1 + _ROUNDING) >= signal

    def through(self, grid: Grid) -> Grid:
        """A grid whose times include the one where x_t is as noisy as y, so that all that y says is taken up there.

        That is the one of the largest eigenvalue of A A^T; for smaller ones it is right to within a step.
        """
        if not self.variance:
            return grid
        return _Through(grid, value_of(self.sde.time(math.log(self.most / self.variance))))

    def projected(self, x0: Tensor) -> Tensor:
        """x0 + A^+ (y - A x0) if the measurement has no noise; else x0 as it is."""
        return x0 if self.variance else x0 + self.operator.pinv(self.y - self.operator(x0))
