r"""A belief about the data: what every spelling of a prediction has in common.

Given x_t = alpha x_0 + sigma eps, a belief x0 = E[x_0 | x_t] fixes all the others:

    eps      = (x_t - alpha x0) / sigma        noise
    score    = -eps / sigma                    grad log q_t(x_t)          (Tweedie's formula)
    velocity = alpha' x0 + sigma' eps          dx/dt of the probability flow

(Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO", appendix; Lipman et al. 2023, equation 15.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.sde import SDE, Time, expand, float64


class Prediction:
    """What a denoiser believes at (x_t, t), in the form x0 = skip x_t + scale output.

    Every spelling is one multiply-add of x_t and output, with coefficients worked out in float64: nothing is lost by
    going through x0 where sigma is small, nor through eps where alpha is small.

    Args:
        sde: The path.
        x_t: State, [B, *].
        t: Time, [] or [B].
        output: What was computed: a network's raw output or a closed form's ingredient, [B, *].
        skip: Coefficient of x_t, [] or [B], float64; 0 if not given.
        scale: Coefficient of output, likewise; 1 if not given.

    Example:
        >>> import torch
        >>> from sde_diffusion import VPSDE
        >>> x = torch.ones(2, 3)
        >>> prediction = Prediction(VPSDE(), x, 0.5, output=torch.zeros(2, 3))  # the belief x0 = 0
        >>> bool((prediction.score == -x / VPSDE().sigma(0.5) ** 2).all())
        True
    """

    def __init__(
        self,
        sde: SDE,
        x_t: Tensor,
        t: Time,
        output: Tensor,
        skip: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        self.sde = sde
        self.x_t = x_t
        self.t = t
        self.output = output
        self.skip = float64(skip)
        self.scale = float64(scale)

    @property
    def x0(self) -> Tensor:
        """Expected data E[x_0 | x_t], [B, *]."""
        return self._combine(self.skip, self.scale)

    @property
    def eps(self) -> Tensor:
        """Expected noise (x_t - alpha x0) / sigma, [B, *]."""
        return self._combine(*self._eps_coefficients())

    @property
    def score(self) -> Tensor:
        """Score grad log q_t(x_t) = -eps / sigma, [B, *]."""
        skip, scale = self._eps_coefficients()
        sigma = self.sde.sigma(self.t)
        return self._combine(-skip / sigma, -scale / sigma)

    @property
    def velocity(self) -> Tensor:
        """Velocity of the probability flow alpha' x0 + sigma' eps, [B, *]."""
        skip, scale = self._eps_coefficients()
        alpha_rate, sigma_rate = self.sde.alpha_rate(self.t), self.sde.sigma_rate(self.t)
        return self._combine(alpha_rate * self.skip + sigma_rate * skip, alpha_rate * self.scale + sigma_rate * scale)

    def _eps_coefficients(self) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.sde.alpha(self.t), self.sde.sigma(self.t)
        return (1 - alpha * self.skip) / sigma, -alpha * self.scale / sigma

    def _combine(self, skip: Tensor, scale: Tensor) -> Tensor:
        # One time for all samples: numbers, and no needless pass.
        if skip.ndim == 0 and skip.device.type == "cpu" and not torch.compiler.is_compiling():
            if not skip.item():
                return self.output if scale.item() == 1 else self.output * scale.item()
            return torch.add(self.x_t * skip.item(), self.output, alpha=scale.item())
        return expand(skip, self.x_t) * self.x_t + expand(scale, self.x_t) * self.output


class Denoiser(nn.Module, ABC):
    """A belief about x_0 given x_t: `denoiser(x_t, t, **conditions)` -> `Prediction`.

    A denoiser that wraps denoisers (guidance, ensembles) is a denoiser again.

    Attributes:
        sde: The path on which it denoises.
    """

    sde: SDE

    @abstractmethod
    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t).

        Args:
            x_t: State, [B, *].
            t: Time, [] or [B].
            **conditions: What the belief is conditioned on, such as `label`, int64 [B].

        Returns:
            The prediction.
        """
