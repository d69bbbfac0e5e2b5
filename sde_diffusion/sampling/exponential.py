r"""Exponential integrators, written once over the half log-SNR ell = log(alpha / sigma).

With a belief x0(ell) along the walk, the reverse process with noise share eta solves exactly to

    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t
          + alpha_s k h  int_0^1 e^(-k h (1 - tau)) x0(ell_t + h tau) dtau  +  sigma_s sqrt(1 - e^(-2 eta^2 h)) z,

h = ell_s - ell_t > 0, k = 1 + eta^2 (eta = 0: Lu et al. 2022, "DPM-Solver++", proposition 4.1; eta = 1: its appendix on
SDEs; in between by the same variation of constants on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw). A method
replaces x0(ell) by the polynomial through the beliefs at some nodes; its weights are integrals of that polynomial's
Lagrange basis.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_POINTS, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))
_POINTS, _WEIGHTS = 0.5 * (_POINTS + 1), 0.5 * _WEIGHTS  # on [0, 1]


def lagrange_weights(nodes: Tensor, h: Tensor, rate: float) -> Tensor:
    """Weights w_j = rate h int_0^1 e^(-rate h (1 - tau)) L_j(tau) dtau of beliefs at nodes of a step, for many steps.

    By 24-point Gauss-Legendre quadrature: the integrand is a polynomial times a smooth exponential, and unlike the
    closed forms in e^(-h) nothing cancels for small h. Exact to rounding for rate h up to about 20.

    Args:
        nodes: Places of the beliefs in units of the step (0 its beginning, 1 its end), [N, K], different in each row.
        h: Lengths of the steps, [N], positive.
        rate: 1 + eta^2.

    Returns:
        [N, K], float64.
    """
    tau = _POINTS.expand(len(h), -1)
    kernel = rate * h[:, None] * torch.exp(-rate * h[:, None] * (1 - tau)) * _WEIGHTS
    weights = []
    for j in range(nodes.shape[1]):
        others = [i for i in range(nodes.shape[1]) if i != j]
        basis = torch.ones_like(tau)
        for i in others:
            basis = basis * (tau - nodes[:, i : i + 1]) / (nodes[:, j : j + 1] - nodes[:, i : i + 1])
        weights.append((kernel * basis).sum(1))
    return torch.stack(weights, 1)
