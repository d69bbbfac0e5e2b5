"""The exact denoiser of a Gaussian mixture given a linear measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers, check_floats
from sde_diffusion.denoiser.mixture import GaussianMixtureDenoiser

Linear = Callable[[Tensor], Tensor] | Tensor
"""A linear measurement: a function from [B, *dims] to [B, *out], or a matrix [M, D] that acts on flattened data."""


class MixturePosteriorDenoiser(GaussianMixtureDenoiser):
    """Exact denoiser of a Gaussian mixture given a linear measurement y = A x_0 + noise n; see `condition`.

    Args:
        mixture: The mixture.
        operator: A.
        noise: Standard deviation of the measurement's noise, a number or [*out], at least 0.

    Raises:
        ValueError: If the operator is not linear, noise is negative, or it is 0 and A C_k A^T is singular.
    """

    conditions: Collection[str] | None = ("y",)
    matrix: Tensor
    gain: Tensor
    factor: Tensor

    def __init__(self, mixture: GaussianMixtureDenoiser, operator: Linear, noise: float | Tensor) -> None:
        means, dims = mixture.means, mixture.means.shape[1:]
        matrix, out = _matrix(operator, dims)
        std = as_numbers("noise", noise).broadcast_to(out).flatten()
        if not bool((std >= 0).all()):
            raise ValueError("noise must be at least 0")
        covariances = mixture.covariances()
        cross = covariances @ matrix.T  # C_k A^T, [K, D, M]
        factor, failed = torch.linalg.cholesky_ex(matrix @ cross + torch.diag(std.square()))
        if bool(failed.any()):
            raise ValueError("y has no density: with noise = 0, A C_k A^T must have an inverse")
        gain = torch.cholesky_solve(cross.mT, factor).mT
        rest = torch.eye(matrix.shape[1], dtype=torch.float64, device=matrix.device) - gain @ matrix
        # Joseph's form, which stays positive semidefinite when rounded.
        kept = rest @ covariances @ rest.mT + (gain * std.square()) @ gain.mT
        super().__init__(mixture.sde, means, covariances=kept, weights=mixture.log_weights.exp())
        self.out = tuple(out)
        self.sigma_data = mixture.sigma_data
        self.register_buffer("matrix", matrix)
        self.register_buffer("gain", gain)
        self.register_buffer("factor", factor)

    def log_evidence(self, y: Tensor) -> Tensor:
        """log p(y) = log sum_k w_k N(y; A m_k, A C_k A^T + noise^2 I), in nats.

        Args:
            y: [B, *out].

        Returns:
            [B], float64.
        """
        return self._innovation(y)[1].logsumexp(1)

    def given(self, y: Tensor) -> GaussianMixtureDenoiser:
        """The mixture p(x_0 | y) for one measurement y, [*out]."""
        y = as_numbers("y", y)
        if tuple(y.shape) != self.out:
            raise ValueError(f"y must be one measurement of shape {list(self.out)}; got {list(y.shape)}")
        means, log_weights = self._means({"y": y.unsqueeze(0)})
        weights = log_weights[0].exp().clamp(min=torch.finfo(torch.float64).tiny)
        return GaussianMixtureDenoiser(self.sde, means[0], covariances=self.covariances(), weights=weights)

    def _means(self, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if conditions.get("y") is None:
            raise ValueError(f"give the measurement y=, [B, {', '.join(map(str, self.out))}]")
        offset, joint = self._innovation(conditions["y"])
        shift = torch.einsum("kdm,bkm->bkd", self.gain, offset)
        return self.means + shift.reshape(len(shift), *self.means.shape), joint.log_softmax(1)

    def _innovation(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y - A m_k, [B, K, M], and log w_k N(y; A m_k, A C_k A^T + noise^2 I), [B, K]."""
        if tuple(y.shape[1:]) != self.out:
            raise ValueError(f"y must be [B, {', '.join(map(str, self.out))}]; got {list(y.shape)}")
        offset = y.double().flatten(1).unsqueeze(1) - self.means.flatten(1) @ self.matrix.T
        white = torch.linalg.solve_triangular(self.factor, offset.unsqueeze(3), upper=False).squeeze(3)
        logdet = 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        size = offset.shape[2] * math.log(2 * math.pi)
        return offset, self.log_weights - 0.5 * (white.square().sum(2) + logdet + size)


def _matrix(operator: Linear, dims: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """The matrix [M, D] of a linear operator, and the shape of its output."""
    size = math.prod(dims)
    if isinstance(operator, Tensor):
        check_floats("operator", operator)
        if operator.ndim != 2 or operator.shape[1] != size:
            raise ValueError(
                f"operator must be a matrix [M, {size}], one column a dimension; got {list(operator.shape)}"
            )
        return operator.double(), (len(operator),)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *dims)
    columns = operator(unit)
    probe = torch.linspace(-1, 1, size, dtype=torch.float64).reshape(1, *dims)
    expected = torch.einsum("d,d...->...", probe.flatten(), columns)
    if not torch.allclose(operator(probe)[0], expected, rtol=1e-6, atol=1e-6):
        raise ValueError("operator must be linear: A(a x + b y) = a A(x) + b A(y)")
    return columns.flatten(1).T, tuple(columns.shape[1:])
