r"""Weightings of the denoising error: w(t) in  E_t [ w(t) |eps_hat - eps|^2 ].

The errors of all quantities are multiples of each other, since x_t is known: alpha (x0_hat - x0) =
-sigma (eps_hat - eps). In terms of eps,

    |x0_hat - x0|^2 = e^-lambda |eps_hat - eps|^2,      |score_hat - score|^2 = |eps_hat - eps|^2 / sigma^2,
    |u_hat - u|^2 = (sigma lambda' / 2)^2 |eps_hat - eps|^2                       (u = alpha' x0 + sigma' eps).

References: Song et al. 2021 (score SDE), equation 7; Kingma & Gao 2023, "Understanding Diffusion Objectives as the
ELBO with Simple Data Augmentation", table 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sde import SDE


class Weighting(ShowsArguments, ABC):
    """w(t), the weight of the squared eps error."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """w(t) for t [B], float64; [B], non-negative."""


class EpsWeighting(Weighting):
    """|eps_hat - eps|^2: w = 1 (Ho et al. 2020, equation 14, "simple")."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)


class ScoreWeighting(Weighting):
    """sigma^2 |score_hat - score|^2: w = 1 (Song & Ermon 2019, equation 6; Song et al. 2021)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """sigma^2 / sigma^2."""
        return torch.ones_like(t)


class X0Weighting(Weighting):
    """|x0_hat - x0|^2: w = e^-lambda."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """e^-lambda."""
        return (-sde.log_snr(t)).exp()


class VelocityWeighting(Weighting):
    """|u_hat - u|^2: w = (sigma lambda' / 2)^2 (Lipman et al. 2023, "Flow Matching", equation 14)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """(sigma lambda' / 2)^2."""
        return (0.5 * sde.sigma(t) * sde.log_snr_rate(t)).square()


class LikelihoodWeighting(Weighting):
    """g^2 |score_hat - score|^2: w = g^2 / sigma^2 = -lambda' (Song et al. 2021, "Maximum Likelihood Training")."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """-lambda'."""
        return -sde.log_snr_rate(t)


class ELBOWeighting(Weighting):
    """w = -lambda' / 2: summed over dimensions and integrated over t, the diffusion term of the negative ELBO in nats.

    References: Kingma et al. 2021, "Variational Diffusion Models", equation 17.
    """

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """-lambda' / 2."""
        return -0.5 * sde.log_snr_rate(t)


class EDMWeighting(Weighting):
    """(s^2 + sigma_data^2) / (s sigma_data)^2 |x0_hat - x0|^2 with s = sigma / alpha: w = s^2 / sigma_data^2 + 1.

    With it, the error of EDM's network output has the same weight at every noise level.

    Args:
        sigma_data: Standard deviation of the data, positive.

    Raises:
        ValueError: If sigma_data is not positive.

    References:
        Karras et al. 2022, equation 8 and table 1.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = as_positive("sigma_data", sigma_data)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """e^-lambda / sigma_data^2 + 1."""
        return (-sde.log_snr(t)).exp() / self.sigma_data**2 + 1


class MinSNRWeighting(Weighting):
    """min(SNR, gamma) |x0_hat - x0|^2: w = min(1, gamma / SNR).

    Args:
        gamma: Largest weight of the error of x0, positive.

    Raises:
        ValueError: If gamma is not positive.

    References:
        Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = as_positive("gamma", gamma, " (5 is usual)")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """min(1, gamma e^-lambda)."""
        return (self.gamma * (-sde.log_snr(t)).exp()).clamp(max=1)
