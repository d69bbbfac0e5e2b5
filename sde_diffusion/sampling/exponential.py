r"""Exponential integrators, in terms of the half log-SNR ell = log(alpha / sigma).

With the prediction x0(ell) along the walk, the exact solution of the reverse process with noise scale eta is

    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t
          + alpha_s k h  int_0^1 e^(-k h (1 - tau)) x0(ell_t + h tau) dtau  +  sigma_s sqrt(1 - e^(-2 eta^2 h)) z,

h = ell_s - ell_t > 0, k = 1 + eta^2: the variation of constants on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw
(eta = 0: Lu et al. 2022, "DPM-Solver++", proposition 4.1; eta = 1: its section 5 on SDEs). A method replaces x0(ell) by
the polynomial through the predictions at some nodes; its weights are integrals of the Lagrange basis polynomials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.sde import SDE


@cache
def _quadrature(points: int) -> tuple[Tensor, Tensor]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1], exact for polynomials of degree 2 points - 1."""
    with torch.inference_mode(False):  # they are kept, perhaps for a path that is learned
        tau, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(points))
        return 0.5 * (tau + 1), 0.5 * weights


@dataclass
class Steps:
    """The scales of N steps from times t to times s, float64, [N] each.

    Attributes:
        h: ell_s - ell_t, the length in half log-SNR, positive.
        alpha_s: alpha at the end of the step.
        ratio: sigma_s / sigma_t.
        sigma_s: sigma at the end of the step.
    """

    h: Tensor
    alpha_s: Tensor
    ratio: Tensor
    sigma_s: Tensor

    @classmethod
    def between(cls, sde: SDE, t: Tensor, s: Tensor) -> Steps:
        """The steps of a path from t to s < t, [N] each."""
        ends = sde.log_snr(torch.cat([t, s]))
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(
                f"exponential integrators need a finite log-SNR all along the walk, and {sde} is singular at an end: "
                "give it t_min > 0 (or the sampler t_end > 0) and t_max < 1"
            )
        sigma_s = sde.sigma(s)
        return cls(0.5 * (sde.log_snr(s) - sde.log_snr(t)), sde.alpha(s), sigma_s / sde.sigma(t), sigma_s)

    def part(self, index: slice) -> Steps:
        """Some of the steps."""
        return Steps(self.h[index], self.alpha_s[index], self.ratio[index], self.sigma_s[index])

    def from_x(self, eta: float = 0.0) -> Tensor:
        """Coefficient of x_t, [N]."""
        return self.ratio * torch.exp(-(eta**2) * self.h)

    def from_noise(self, eta: float) -> Tensor:
        """Coefficient of the fresh noise, [N]."""
        return self.sigma_s * (-torch.expm1(-2 * eta**2 * self.h)).sqrt()

    def from_predictions(self, nodes: Tensor, eta: float = 0.0) -> Tensor:
        """Coefficients of the predictions x0 at nodes, in units of the step (0 its beginning, 1 its end); [N, K]."""
        return self.alpha_s.unsqueeze(1) * lagrange_weights(nodes, self.h, 1 + eta**2)


def lagrange_weights(nodes: Tensor, h: Tensor, rate: float) -> Tensor:
    """Weights w_j = rate h int_0^1 e^(-rate h (1 - tau)) L_j(tau) dtau of predictions at nodes of each step.

    By 64-point Gauss-Legendre quadrature, which is exact to rounding for rate h up to a few hundred; unlike the closed
    forms in e^(-h) it has no cancellation for small h. With rate 0 as few points as are exact for the polynomials.

    Args:
        nodes: Positions of the predictions in units of the step, [N, K], different within each row.
        h: Lengths of the steps, [N], positive.
        rate: 1 + eta^2; 0 gives h int L_j, the weights of Adams' methods.

    Returns:
        [N, K], float64.
    """
    tau, weights = _quadrature(64 if rate else max(4, (nodes.shape[1] + 1) // 2))
    length = h.unsqueeze(1) * (rate or 1.0)
    kernel = length * torch.exp(-(h.unsqueeze(1) * rate) * (1 - tau)) * weights
    return (kernel.unsqueeze(1) * _basis(nodes, tau)).sum(2)


def _basis(nodes: Tensor, tau: Tensor) -> Tensor:
    """Lagrange's polynomials, of which the j-th is 1 at node j and 0 at the others, at some tau; [N, K, len(tau)]."""
    own = torch.eye(nodes.shape[1], dtype=torch.bool)
    gaps = (nodes.unsqueeze(2) - nodes.unsqueeze(1)).masked_fill(own, 1.0)
    factors = (tau - nodes.reshape(len(nodes), 1, -1, 1)) / gaps.unsqueeze(3)
    return factors.masked_fill(own.unsqueeze(2), 1.0).prod(2)


def step_weights(steps: Steps, nodes: Tensor, eta: float = 0.0) -> Tensor:
    """Coefficients of the predictions x0 at nodes, the first of which is the beginning of the step (0); [N, K].

    With two nodes the weight of the slope is half of phi = alpha_s (1 - e^(-k h)), as in DPM-Solver++(2M) and UniPC: of
    the same order as the exact integral, and better in few steps (benchmarks/README.md). Otherwise the weights are the
    exact integrals of the Lagrange polynomials.
    """
    if nodes.shape[1] != 2:
        return steps.from_predictions(nodes, eta)
    phi = steps.alpha_s * -torch.expm1(-(1 + eta**2) * steps.h)
    other = 0.5 * phi / nodes[:, 1]
    return torch.stack([phi - other, other], 1)


def looking_back(points: Tensor, order: int) -> Iterator[tuple[slice, Tensor]]:
    """Nodes of the last `order` predictions for each step of a walk; of fewer in the first steps.

    Args:
        points: Where the predictions are (ell, or another coordinate), [N + 1], monotone.
        order: Number of predictions, at least 1.

    Yields:
        (steps, nodes): a run of steps and their nodes in units of each step, [len, K], the newest first.
    """
    n = len(points) - 1
    for first in range(min(order, n)):
        known = first + 1
        steps = slice(first, n if known == order else first + 1)
        index = torch.arange(n)[steps]
        back = torch.stack([points[index - j] for j in range(known)], 1)
        yield steps, (back - points[index].unsqueeze(1)) / (points[index + 1] - points[index]).unsqueeze(1)
