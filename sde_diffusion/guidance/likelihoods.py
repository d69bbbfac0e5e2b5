r"""Approximations of p(y | x_t), the likelihood of a measurement given a noisy state.

With V = Cov[x_0 | x_t], which is (sigma^2 / alpha) J for J = d x0 / d x_t, all of them move the belief x0 by

    delta = V^T A^T S^-1 (y - A x0),

and differ in S, the covariance of y given x_t, and in V. Only `MomentMatching`, with enough iterations, is exact for
every Gaussian. Those with a known S also have log p(y | x_t) = log N(y; A x0, S).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_count
from sde_diffusion.checks.reprs import ShowsArguments, shown
from sde_diffusion.guidance.guess import Guess
from sde_diffusion.guidance.method import PosteriorMethod
from sde_diffusion.guidance.normal import dense_normal, log_normal


class MeasurementLikelihood(ShowsArguments, PosteriorMethod):
    """An approximation of p(y | x_t).

    Attributes:
        gradients: Vector-Jacobian products of the denoiser that a call costs.
    """

    gradients: int

    def likelihood_and_sampler(self, sampler: Any) -> tuple[MeasurementLikelihood, Any]:
        """This likelihood, and the sampler; see `PosteriorMethod`."""
        return self, sampler

    @abstractmethod
    def shift(self, guess: Guess) -> Tensor:
        """delta, by which the belief x0 moves, [B, *dims]."""

    def log_prob(self, guess: Guess) -> Tensor:
        """log p(y | x_t), in nats, up to a constant that does not depend on x_t; [B], float64.

        Raises:
            ValueError: If it is not known, or too costly.
        """
        others = [kind.__name__ for kind in LIKELIHOODS.values() if kind.log_prob is not type(self).log_prob]
        raise ValueError(f"{self} has no log p(y | x_t), which particles need: use {', '.join(others)}")

    def twist(self, guess: Guess) -> tuple[Tensor, Tensor]:
        """`shift` and `log_prob` at once.

        Raises:
            ValueError: See `log_prob`.
        """
        return self.shift(guess), self.log_prob(guess)


class MomentMatching(MeasurementLikelihood):
    """S = noise^2 I + A V A^T: exact for Gaussian data and any linear A, once its iterations have converged.

    S^-1 is applied by conjugate gradients, which need as many iterations as S has distinct eigenvalues, at most one for
    each measurement; fewer correct x0 by less than they should. V of a network is neither symmetric nor positive, so
    that an iteration may meet negative curvature: where p^T S p <= noise^2 p^T p / 2, that sample stops. The product
    V^T A^T p that an iteration needs is also its contribution to delta, so that none is left to be computed at the end.
    A sample also stops where only rounding is left. With noise = 0 measurements must not contradict each other, as
    rounded ones of a blur do: give the noise of the rounding.

    log p(y | x_t) needs all of S: M + 1 vector-Jacobian products for M measurements, at most 64, whatever `iterations`.
    Its symmetric part is taken, without negative eigenvalues of A V A^T.

    Args:
        iterations: Number of iterations, at least 1; each costs one vector-Jacobian product.

    References:
        Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization", section 4.
    """

    def __init__(self, iterations: int = 3) -> None:
        self.iterations = check_count("iterations", iterations)

    @property
    def gradients(self) -> int:  # type: ignore[override]
        """One for each iteration."""
        return self.iterations

    def shift(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.shift`."""
        rest = direction = guess.residual
        size = first = _dot(rest, rest)
        rounding = 16 * torch.finfo(rest.dtype).eps
        going, steepest = size > 0, torch.zeros_like(size)
        delta: Tensor | None = None
        for _ in range(self.iterations):
            moved = guess.covariance(guess.adjoint(direction))
            image = guess.noise * direction + guess.forward(moved)
            curvature, length = _dot(direction, image), _dot(direction, direction)
            # Beyond what rounding leaves of the residual or of the curvature, iterations would only amplify it.
            steepest = torch.maximum(steepest, curvature / torch.where(length > 0, length, 1.0))
            least = torch.clamp(rounding * steepest, min=0.5 * guess.noise) * length
            going = going & (size > rounding**2 * first) & (curvature > least)
            length = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
            step = _like(length, moved) * moved
            delta = step if delta is None else delta + step
            rest = rest - _like(length, rest) * image
            new = _dot(rest, rest)
            direction = rest + _like(torch.where(going, new / torch.where(size > 0, size, 1.0), 0.0), rest) * direction
            size = new
        assert delta is not None
        return delta

    def log_prob(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.log_prob`."""
        return dense_normal(guess)[1]

    def twist(self, guess: Guess) -> tuple[Tensor, Tensor]:
        """See `MeasurementLikelihood.twist`; with the S of `log_prob`."""
        solved, log_prob = dense_normal(guess)
        return guess.covariance(guess.adjoint(solved)), log_prob


class PseudoInverse(MeasurementLikelihood):
    """S = noise^2 I + q^2 A A^T with q^2 = r^2 s^2 / (s^2 + r^2), r = sigma / alpha: exact for N(m, s^2 I).

    Args:
        sigma_data: s, the standard deviation of the data in all directions, positive.

    References:
        Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", with s = 1.
    """

    gradients = 1

    def __init__(self, sigma_data: float = 1.0) -> None:
        self.sigma_data = as_positive("sigma_data", sigma_data)

    def shift(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.shift`."""
        return guess.covariance(guess.adjoint(_whitened(guess, self.sigma_data)))

    def log_prob(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.log_prob`."""
        return _log_prob(guess, self.sigma_data)


class JacobianFree(MeasurementLikelihood):
    """V = q^2 I in S and in delta, without derivatives of the denoiser: exact for N(m, s^2 I).

    Along an eigenvector of A A^T with eigenvalue e, the residual is corrected by the factor q^2 e / (noise^2 + q^2 e),
    with the q^2 of `PseudoInverse`; for s = inf, q = r. With noise = 0 the factor is 1, and 0 where e is below 1e-6 of
    the largest: x0 + A^+ (y - A x0), whatever s.

    With s = inf and data N(0, s^2) of which one number is measured, the probability flow ends with standard deviation s
    (noise / s)^(s^2 / (s^2 - noise^2)): for noise = s / 5, 5% less than the posterior's. What is not measured keeps its
    variance with any sampler.

    Args:
        sigma_data: s, the standard deviation of the data in all directions, positive; None: infinite. See
            `PseudoInverse`.

    References:
        Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (DDNM); Zhu et al.
        2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration" (DiffPIR).
    """

    gradients = 0

    def __init__(self, sigma_data: float | None = 1.0) -> None:
        self.sigma_data = math.inf if sigma_data is None else as_positive("sigma_data", sigma_data)

    def shift(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.shift`."""
        weighted = _whitened(guess, self.sigma_data)
        return guess.adjoint(_like(_variance(guess, self.sigma_data), weighted) * weighted)

    def log_prob(self, guess: Guess) -> Tensor:
        """That of `PseudoInverse`; see `MeasurementLikelihood.log_prob`."""
        return _log_prob(guess, self.sigma_data)


class RowSum(MeasurementLikelihood):
    """S = noise^2 I + diag(A V A^T 1), its row sums: exact if A V A^T is diagonal (TMPD).

    Row sums may be negative where numbers are negatively correlated; they count as 0.

    References:
        Boys et al. 2023, "Tweedie Moment Projected Diffusions for Inverse Problems".
    """

    gradients = 2

    def shift(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.shift`."""
        total = self._total(guess)
        return guess.covariance(guess.adjoint(torch.where(total > 0, guess.residual / total, 0.0)))

    def log_prob(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.log_prob`."""
        total = self._total(guess).double()
        return log_normal(guess.residual.double().square() / total, total)

    def _total(self, guess: Guess) -> Tensor:
        """The diagonal of S, [B, *out]."""
        sums = guess.forward(guess.covariance(guess.adjoint(torch.ones_like(guess.residual))))
        return guess.noise + sums.clamp(min=0)


class PointEstimate(MeasurementLikelihood):
    """S = noise^2 I: the belief is taken for x_0 itself (DPS, per sample). Samples are far too certain.

    For x_0 ~ N(0, s^2), A = 1 and k = s^2 / (2 noise^2) the probability flow ends at 2 sqrt(k) D(sqrt(k)) y, D being
    Dawson's function, with standard deviation s e^-k; the posterior has 2 k / (2 k + 1) y and s / sqrt(1 + 2 k).

    Args:
        scale: Factor of the likelihood's gradient.

    References:
        Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", there with a step size in
        place of 1 / noise^2 that depends on the number of steps.
    """

    gradients = 1

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = as_number("scale", scale)
        if not self.scale >= 0:
            raise ValueError(f"scale must be at least 0; got {shown(scale)}")

    def shift(self, guess: Guess) -> Tensor:
        """See `MeasurementLikelihood.shift`."""
        if not guess.noise:
            raise ValueError("PointEstimate divides by the noise: give noise > 0, or use JacobianFree")
        return guess.covariance(guess.adjoint(guess.residual * (self.scale / guess.noise)))

    def log_prob(self, guess: Guess) -> Tensor:
        """scale log N(y; A x0, noise^2 I); see `MeasurementLikelihood.log_prob`."""
        variance = torch.full_like(guess.residual, guess.noise, dtype=torch.float64)
        return self.scale * log_normal(guess.residual.double().square() / variance, variance)


LIKELIHOODS: dict[str, type[MeasurementLikelihood]] = {
    "moment_matching": MomentMatching,
    "pseudo_inverse": PseudoInverse,
    "jacobian_free": JacobianFree,
    "row_sum": RowSum,
    "point_estimate": PointEstimate,
}


def _variance(guess: Guess, sigma_data: float) -> Tensor:
    """q^2 = 1 / (1 / s^2 + 1 / r^2)."""
    return 1 / (sigma_data**-2 + 1 / guess.spread)


def _whitened(guess: Guess, sigma_data: float) -> Tensor:
    """(noise^2 I + q^2 A A^T)^-1 (y - A x0); without noise, 0 where the eigenvalue is below 1e-6 of the largest."""
    q2 = _variance(guess, sigma_data)

    def response(eigenvalues: Tensor) -> Tensor:
        total = guess.noise + _like(q2, eigenvalues) * eigenvalues
        floor = 0.0 if guess.noise else 1e-6 * _like(q2, eigenvalues) * eigenvalues.amax()
        return torch.where(total > floor, 1 / torch.where(total > floor, total, 1.0), 0.0)

    return guess.filter(guess.residual, response)


def _log_prob(guess: Guess, sigma_data: float) -> Tensor:
    """log N(y; A x0, noise^2 I + q^2 A A^T), [B]."""
    square = _dot(guess.residual, _whitened(guess, sigma_data)).double().unsqueeze(1)
    values = guess.noise + _variance(guess, sigma_data).double().reshape(-1, 1) * guess.spectrum()
    return log_normal(square, values)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, [B]."""
    return (a * b).flatten(1).sum(1)


def _like(c: Tensor, x: Tensor) -> Tensor:
    """Coefficients [1 or B, ...] of one number for each sample, to multiply x, [B, *]."""
    return c.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
