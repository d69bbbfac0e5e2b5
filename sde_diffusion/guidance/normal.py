"""Normal log-densities of measurements."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.guidance.guess import Guess

_MOST = 64
"""Largest number of measurements for which a covariance is computed in full."""


def log_normal(squares: Tensor, variances: Tensor) -> Tensor:
    """Log-density of independent normals.

    Args:
        squares: Squares of the numbers over their variances, [1 or B, *].
        variances: [1 or B, *]; another shape * is allowed, if all their number is the same.

    Returns:
        [B], in nats.
    """
    return -0.5 * (squares.flatten(1).sum(1) + (2 * math.pi * variances).log().flatten(1).sum(1))


def dense_normal(guess: Guess) -> tuple[Tensor, Tensor]:
    """With S = noise^2 I + A V A^T in full: S^-1 (y - A x0), [B, *out], and log N(y; A x0, S), [B], float64.

    One vector-Jacobian product for each measurement. The symmetric part of A V A^T is taken, and its negative
    eigenvalues, which the V of a network may have, count as 0.

    Raises:
        ValueError: If there are more than 64 measurements.
    """
    out = guess.residual.shape[1:]
    if (size := out.numel()) > _MOST:
        raise ValueError(
            "log p(y | x_t) of MomentMatching takes one vector-Jacobian product for each measurement, and y has "
            f"{size} (at most {_MOST}): use PseudoInverse"
        )
    unit = torch.eye(size, dtype=guess.residual.dtype, device=guess.residual.device).reshape(size, 1, *out)
    rows = [guess.forward(guess.covariance(guess.adjoint(one.expand_as(guess.residual)))) for one in unit]
    spread = torch.stack([row.flatten(1).double() for row in rows], 1)
    values, vectors = torch.linalg.eigh(0.5 * (spread + spread.mT))
    values = guess.noise + values.clamp(min=0)
    turned = torch.einsum("bme,bm->be", vectors, guess.residual.flatten(1).double())
    solved = torch.einsum("bme,be->bm", vectors, turned / values).to(guess.residual.dtype)
    return solved.reshape(guess.residual.shape), log_normal(turned.square() / values, values)
