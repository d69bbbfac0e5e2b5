r"""Denoisers made of a raw network F and four scalars.

    x0 = c_skip(t) x_t + c_out(t) F(c_in(t) x_t, c_noise(t)),      c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2),

so that the network sees unit-variance inputs on every path (Karras et al. 2022, section 5). What F learns is a choice
of (c_skip, c_out): a `Parameterization`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.base import Denoiser, Prediction
from sde_diffusion.sde import SDE, Time, expand, float64


class Parameterization(ABC):
    """What the network's output means: x0 = skip x_t + scale F."""

    @abstractmethod
    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """(skip, scale) at t.

        Args:
            sde: The path.
            t: [] or [B], float64.
            sigma_data: Standard deviation of the data.

        Returns:
            Two float64 tensors of t's shape.

        Raises:
            ValueError: If this parameterization is not defined on the path.
        """

    def check(self, sde: SDE) -> None:  # noqa: B027  most are defined on every path
        """See that the parameterization is defined on the path.

        Raises:
            ValueError: If it is not.
        """


class Eps(Parameterization):
    """F = eps, the noise: x0 = (x_t - sigma F) / alpha (Ho et al. 2020, equation 15)."""

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """1/alpha and -sigma/alpha."""
        alpha = sde.alpha(t)
        return 1 / alpha, -sde.sigma(t) / alpha


class X0(Parameterization):
    """F = x0, the data."""

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros_like(t), torch.ones_like(t)


class Velocity(Parameterization):
    """F = alpha' x0 + sigma' eps, the velocity of the path, rescaled by its root mean square over the data.

    The rescaling, 1 / sqrt(alpha'^2 sigma_data^2 + sigma'^2), leaves rectified flow's eps - x0 as it is up to a
    constant and keeps the output of order one on paths whose velocity is not (VE: up to 400; VP: infinite at t = 0).
    References: Lipman et al. 2023, "Flow Matching", equation 15; Liu et al. 2023, equation 1.
    """

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """Solve x_t = alpha x0 + sigma eps and u = alpha' x0 + sigma' eps for x0."""
        sigma = sde.sigma(t)
        ratio = sde.alpha_rate(t) / sde.sigma_rate(t)
        determinant = sde.alpha(t) - ratio * sigma
        return 1 / determinant, -sigma * (ratio.square() * sigma_data**2 + 1).sqrt() / determinant


class V(Parameterization):
    """F = v = alpha eps - sigma x0: x0 = alpha x_t - sigma F, on paths with alpha^2 + sigma^2 = 1.

    References: Salimans & Ho 2022, "Progressive Distillation", appendix D.
    """

    def check(self, sde: SDE) -> None:
        """See that alpha^2 + sigma^2 = 1 all along the path."""
        t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
        total = sde.alpha(t).square() + sde.sigma(t).square()
        if bool(((total - 1).abs() > 1e-9).any()):
            raise ValueError(
                "prediction 'v' is defined on variance-preserving paths only (alpha^2 + sigma^2 = 1: VPSDE, "
                f"CosineVPSDE), not on {sde}; on this path use 'velocity', 'edm', 'eps', 'x0' or 'score'"
            )

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """alpha and -sigma."""
        return sde.alpha(t), -sde.sigma(t)


class Score(Parameterization):
    """F = sigma times the score: x0 = (x_t + sigma F) / alpha (Song & Ermon 2020, NCSNv2: s(x, sigma) = F / sigma)."""

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """1/alpha and sigma/alpha."""
        alpha = sde.alpha(t)
        return 1 / alpha, sde.sigma(t) / alpha


class EDM(Parameterization):
    """Karras et al. 2022, table 1, on any path by way of the noise-to-signal ratio s = sigma / alpha.

    skip = sigma_data^2 / (s^2 + sigma_data^2) / alpha and scale = s sigma_data / sqrt(s^2 + sigma_data^2): the output
    has unit variance at every noise level, and the error of F is amplified as little as possible.
    """

    def coefficients(self, sde: SDE, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
        """The two scalars, through alpha^2 sigma_data^2 + sigma^2, finite also where alpha is zero."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = (alpha * sigma_data).square() + sigma.square()
        return alpha * sigma_data**2 / variance, sigma * sigma_data / variance.sqrt()


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "eps": Eps,
    "x0": X0,
    "velocity": Velocity,
    "v": V,
    "score": Score,
    "edm": EDM,
}


class NoiseConditioning(ABC):
    """What the network is told of the time: c_noise(t)."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """c_noise, float64, of t's shape."""


class LogSigma(NoiseConditioning):
    """c_noise = log(sigma / alpha) / 4 = -lambda / 8 (Karras et al. 2022, table 1), on any path.

    lambda is held to [-80, 80], beyond any finite noise level in use, so that the network is told a number where alpha
    is zero (zero terminal SNR) or sigma is.
    """

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """-lambda / 8."""
        return -sde.log_snr(t).clamp(-80, 80) / 8


class StepNumber(NoiseConditioning):
    """c_noise = 999 t / t_max, DDPM's step number made continuous (Song et al. 2021, appendix C)."""

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """999 t / t_max."""
        return 999 * t / sde.t_max


NOISE_CONDITIONINGS: dict[str, type[NoiseConditioning]] = {"log_sigma": LogSigma, "step": StepNumber}


class NetworkDenoiser(Denoiser):
    """A raw network made a denoiser: x0 = c_skip x_t + c_out F(c_in x_t, c_noise).

    Args:
        sde: The path.
        network: F(x, c_noise, **conditions), with x [B, *] and c_noise [] or [B], float32 or wider.
        prediction: What F predicts: eps, x0, velocity, v, score or edm.
        sigma_data: Standard deviation of the data as the model sees it, positive.
        noise_conditioning: What F is told of the time: log_sigma (log(sigma/alpha)/4) or step (999 t/t_max).

    Raises:
        ValueError: If a name is unknown, the prediction is not defined on the path, or sigma_data is not positive or
            not finite.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 7.
    """

    def __init__(
        self,
        sde: SDE,
        network: nn.Module,
        prediction: str = "edm",
        sigma_data: float = 0.5,
        noise_conditioning: str = "log_sigma",
    ) -> None:
        super().__init__()
        for what, name, allowed in (
            ("prediction", prediction, PARAMETERIZATIONS),
            ("noise_conditioning", noise_conditioning, NOISE_CONDITIONINGS),
        ):
            if name not in allowed:
                raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {name!r}")
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data (the data's standard deviation) must be positive, finite; got {sigma_data}")
        self.sde = sde
        self.network = network
        self.sigma_data = float(sigma_data)
        self.parameterization = PARAMETERIZATIONS[prediction]()
        self.parameterization.check(sde)
        self.noise_conditioning = NOISE_CONDITIONINGS[noise_conditioning]()

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t); see `Denoiser.forward`."""
        t = float64(t)
        skip, scale = self.parameterization.coefficients(self.sde, t, self.sigma_data)
        c_in = ((self.sde.alpha(t) * self.sigma_data).square() + self.sde.sigma(t).square()).rsqrt()
        # Never in half precision: 999 t has no digits left there, and the networks' embeddings take float32.
        c_noise = self.noise_conditioning(self.sde, t)
        c_noise = c_noise.to(device=x_t.device, dtype=torch.promote_types(x_t.dtype, torch.float32))
        output = self.network(expand(c_in, x_t) * x_t, c_noise, **conditions)
        return Prediction(self.sde, x_t, t, output.to(x_t.dtype), skip, scale)
