"""What a measurement is compared with at one state of a walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guess:
    """What is known at one (x_t, t) when a measurement is to be taken into account.

    Attributes:
        residual: y - A x0, [B, *out].
        noise: Variance of the measurement's noise, a number.
        spread: r^2 = sigma^2 / alpha^2, the variance of x_t / alpha given x_0, [1 or B, 1, ...] against *out.
        forward: A, near x0: [B, *dims] -> [B, *out].
        adjoint: A^T, near x0: [B, *out] -> [B, *dims].
        covariance: V^T u, [B, *dims] -> [B, *dims]; one vector-Jacobian product of the denoiser.
        filter: f(A A^T) y; see `Operator.filter`.
        spectrum: Eigenvalues of A A^T, [M]; see `Operator.spectrum`.
    """

    residual: Tensor
    noise: float
    spread: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    covariance: Callable[[Tensor], Tensor]
    filter: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
    spectrum: Callable[[], Tensor]
