"""What a lower bound on log p(x) consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

LEAST_DRAWS = 4
"""Fewer draws give no standard error: they say too little of their spread."""


def student_factor(freedom: Tensor | float) -> Tensor:
    """Ratio of the 97.5% quantiles of Student's t, with degrees of freedom of any shape, and the normal distribution.

    With it, value ± 1.96 errors is a 95% confidence interval though the error itself is an estimate of few draws.
    """
    given = torch.as_tensor(freedom, dtype=torch.float64)
    return torch.as_tensor(stdtrit(given.cpu().numpy(), 0.975) / ndtri(0.975), dtype=torch.float64).to(given)


@dataclass
class Bound:
    """A lower bound on log p(x) of a model with latent variables z_1 ... z_T; all in nats, [B], float64.

    The evidence lower bound is E log p(x | z_1) minus the KL divergence of each latent variable. For a diffusion model,
    z_1 is x_{t_end}, the last KL divergence is KL(q(x_{t_max} | x) || p(x_{t_max})), the prior, and the others are the
    steps; `elbo` gives their sum as one.

    Attributes:
        log_prob: The bound.
        reconstruction: E log p(x | z_1).
        kl: KL divergence of each latent variable, z_1 first, [T, B].
        std_error: Error of log_prob due to the draws, scaled so that log_prob ± 1.96 std_error is a 95% confidence
            interval of the bound; None for fewer than 4 draws.
        nfe: Network passes for each sample.
        names: Names of the latent variables; z_1, z_2, ... if empty.
    """

    log_prob: Tensor
    reconstruction: Tensor
    kl: Tensor
    std_error: Tensor | None
    nfe: int
    names: Sequence[str] = ()

    def parts(self) -> dict[str, Tensor]:
        """The terms of the evidence lower bound: reconstruction, and minus each KL divergence; [B] each."""
        names = self.names or [f"z_{t}" for t in range(1, len(self.kl) + 1)]
        return {"reconstruction": self.reconstruction, **dict(zip(names, -self.kl, strict=True))}

    @property
    def elbo(self) -> Tensor:
        """reconstruction - sum of kl: log_prob, unless this is a tighter bound by importance weights; [B]."""
        return self.reconstruction - self.kl.sum(0)

    @property
    def prior(self) -> Tensor:
        """KL divergence of the last latent variable, [B]."""
        return self.kl[-1]

    @property
    def diffusion(self) -> Tensor:
        """Sum of the KL divergences of the others, [B]."""
        return self.kl[:-1].sum(0)
