r"""Gaussian paths: how data turns into noise.

A path is a pair of functions of time, `alpha` and `sigma`, with

    x_t = alpha_t x_0 + sigma_t eps,      eps ~ N(0, I),

and everything else follows from `log alpha`, `log sigma` and the log signal-to-noise ratio
`log_snr = lambda = log(alpha^2 / sigma^2)`: the SDE `dx = f x dt + g dw` with

    f = d log alpha / dt,      g^2 = -sigma^2 d lambda / dt,

and, for s < t, with 1 - r = -expm1(lambda_t - lambda_s),

    q(x_t | x_s)      = N( (alpha_t / alpha_s) x_s,  sigma_t^2 (1 - r) )
    q(x_s | x_t, x_0) = N( alpha_s (1 - r) x_0 + (alpha_s / alpha_t) r x_t,  sigma_s^2 (1 - r) ).

These hold for every path, variance-preserving or not (Kingma et al. 2021, "Variational Diffusion Models", appendix A;
Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.checks import check_fields, check_floats
from sde_diffusion.sde.coefficients import Time, check_range, derivative, difference, expand, float64, number
from sde_diffusion.sde.grids import Grid, UniformTime


@dataclass(frozen=True, kw_only=True)
class SDE(ABC):
    """A Gaussian path `x_t = alpha_t x_0 + sigma_t eps` and its forward SDE.

    A subclass defines `log_alpha` and `log_sigma`; the rates, the inverse `time` and everything else are computed from
    them, to float64 accuracy. It may override the rates and the inverse with closed forms, for speed.

    Args:
        t_min: Smallest time at which the path is used, where samplers end and likelihoods begin; 0 <= t_min < t_max.
        t_max: Largest time, where samplers begin.

    Raises:
        ValueError: If not 0 <= t_min < t_max, or if a field that is declared float or int is not a number.
    """

    t_min: float
    t_max: float
    learned: ClassVar[bool] = False
    """Whether it has parameters that training changes: nothing computed from it may then be cached."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.t_min < self.t_max < math.inf:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= t_min < t_max, both finite; got t_min={self.t_min}, "
                f"t_max={self.t_max}"
            )

    # -- what a path defines --------------------------------------------------------------------------------------

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t) for t of shape [] or [B], float64."""

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """Log sigma(t) for t of shape [] or [B], float64; -inf where sigma is zero."""

    # -- what a path may override with a closed form ----------------------------------------------------------------

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """d log alpha / dt, float64; by automatic differentiation unless overridden."""
        return derivative(self.log_alpha, t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """d log sigma / dt, float64; by automatic differentiation unless overridden."""
        return derivative(self.log_sigma, t)

    def time(self, log_snr: Time) -> Tensor:
        """The inverse of `log_snr`: the t in [0, t_max] with log_snr(t) = log_snr, [] or [B].

        Returns:
            t, float64, of the same shape; values beyond [0, t_max] are clamped to its ends. By bisection on t, to the
            last bit, unless overridden.
        """
        target = float64(log_snr)
        with torch.no_grad():
            low, high = torch.zeros_like(target), torch.full_like(target, self.t_max)
            floor = 1e-30 * self.t_max
            for _ in range(140):
                # Geometric bisection, which keeps the relative accuracy of small times; from 0 in factors of 1000.
                middle = torch.where(low > 0, (low * high).sqrt(), (high * 1e-3).clamp(min=floor))
                too_clean = self._log_snr(middle) > target
                low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
            t = 0.5 * (low + high)
        moving = self._log_snr(t).requires_grad  # as a function of the path's own parameters
        if not (target.requires_grad or moving):
            return t
        rate = self.log_snr_rate(t)  # dt = (d target - d lambda at t) / lambda', the implicit function theorem
        if not moving:
            return t + (target - target.detach()) / rate
        for _ in range(2):  # Newton steps of length zero; the second is needed for second derivatives
            missed = target - self._log_snr(t)
            t = t + (missed - missed.detach()) / rate.detach()
        return t

    def log_snr_speed(self, log_snr: Tensor) -> Tensor | None:
        """-d lambda / dt where the log-SNR has these values, [B], of its shape; None: there is nothing to learn in it.

        With gradients to those parameters only that move neither end of the path. The variational bound in continuous
        time does not depend on them, and `DiffusionELBO` learns them by the variance of its estimate.
        """
        return None

    def default_grid(self) -> Grid:
        """The grid that samplers use on this path by default: uniform in t unless overridden."""
        return UniformTime()

    # -- the path -------------------------------------------------------------------------------------------------

    @property
    def whole(self) -> SDE:
        """The path itself; for a part of one (`truncated.TruncatedSDE`), the path of which it is a part."""
        return self

    def alpha(self, t: Time) -> Tensor:
        """Signal scale alpha(t), float64, of t's shape [] or [B]."""
        return self.log_alpha(self.check_time(t)).exp()

    def sigma(self, t: Time) -> Tensor:
        """Noise scale sigma(t), float64, of t's shape [] or [B]."""
        return self.log_sigma(self.check_time(t)).exp()

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio lambda(t) = log(alpha^2 / sigma^2), float64, strictly decreasing in t."""
        return self._log_snr(self.check_time(t))

    def alpha_rate(self, t: Time) -> Tensor:
        """d alpha / dt, float64, of t's shape."""
        t = self.check_time(t)
        return self.log_alpha(t).exp() * self.log_alpha_rate(t)

    def sigma_rate(self, t: Time) -> Tensor:
        """d sigma / dt, float64, of t's shape."""
        t = self.check_time(t)
        return self.log_sigma(t).exp() * self.log_sigma_rate(t)

    def log_snr_rate(self, t: Time) -> Tensor:
        """d lambda / dt < 0, float64, of t's shape."""
        t = self.check_time(t)
        return 2 * (self.log_alpha_rate(t) - self.log_sigma_rate(t))

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Drift f(t) x of the forward SDE, with f = d log alpha / dt.

        Args:
            x: [B, *].
            t: [] or [B].

        Returns:
            [B, *], of x's type.
        """
        return expand(self.log_alpha_rate(self.check_time(t)), x) * x

    def diffusion(self, t: Time) -> Tensor:
        """Diffusion coefficient g(t) of the forward SDE, g^2 = -sigma^2 d lambda / dt; float64, of t's shape.

        Where sigma is zero, the product sigma d log sigma / dt is NaN, so the path must override `sigma_rate` (which
        must be finite there) or `diffusion`.
        """
        t = self.check_time(t)
        sigma = self.log_sigma(t).exp()
        return (2 * sigma * (self.sigma_rate(t) - self.log_alpha_rate(t) * sigma)).sqrt()

    # -- exact kernels --------------------------------------------------------------------------------------------

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Draw from q(x_t | x_0): alpha_t x0 + sigma_t noise.

        Args:
            x0: Data, [B, *].
            t: [] or [B].
            noise: Standard normal, [B, *].

        Returns:
            x_t, [B, *].

        Raises:
            TypeError: If x0 or noise is not a tensor of floats.
            ValueError: If the shapes do not fit, or a time lies outside the path.
        """
        check_floats("noise", noise)
        t = self.check_time(t)
        return expand(self.log_alpha(t).exp(), x0) * x0 + expand(self.log_sigma(t).exp(), x0) * noise

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Kernel q(x_t | x_s) = N(scale x_s, std^2) for s < t.

        Args:
            s: Earlier time, [] or [B].
            t: Later time, [] or [B].

        Returns:
            (scale, std): alpha_t / alpha_s and sigma_t sqrt(-expm1(lambda_t - lambda_s)), float64.

        Raises:
            ValueError: If s > t.
        """
        s, t = self._ordered(s, t)
        scale = difference(self.log_alpha, s, t).exp()
        return scale, self.log_sigma(t).exp() * self._fresh_share(s, t).sqrt()

    def posterior_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (a, b, std) of q(x_s | x_t, x_0) = N(a x_0 + b x_t, std^2) for s < t; float64.

        a = alpha_s (1 - r), b = alpha_t sigma_s^2 / (alpha_s sigma_t^2), std = sigma_s sqrt(1 - r),
        r = exp(lambda_t - lambda_s).

        Raises:
            ValueError: If s > t.
        """
        s, t = self._ordered(s, t)
        fresh = self._fresh_share(s, t)
        b = (difference(self.log_alpha, s, t) - 2 * difference(self.log_sigma, s, t)).exp()
        return self.log_alpha(s).exp() * fresh, b, self.log_sigma(s).exp() * fresh.sqrt()

    def posterior(self, x_t: Tensor, x0: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Kernel q(x_s | x_t, x_0) for s < t, by Bayes' rule on the two Gaussian kernels.

        Args:
            x_t: State at t, [B, *].
            x0: Data, [B, *].
            s: Earlier time, [] or [B].
            t: Later time, [] or [B].

        Returns:
            (mean, std): [B, *], and [] or [B, 1, ...] ready to broadcast against it.

        Raises:
            ValueError: If s > t.
        """
        a, b, std = self.posterior_coefficients(s, t)
        return expand(a, x_t) * x0 + expand(b, x_t) * x_t, expand(std, x_t)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior N(0, sigma(t_max)^2 I), in nats.

        Args:
            x: [B, *].

        Returns:
            [B], float64.
        """
        log_sigma = self.log_sigma(float64(self.t_max))
        flat = x.flatten(1).double()
        square = (flat / expand(log_sigma.exp(), flat)).square().sum(1)
        return -0.5 * square - flat.shape[1] * (0.5 * math.log(2 * math.pi) + number(log_sigma))

    # -- helpers --------------------------------------------------------------------------------------------------

    def on_cpu(self) -> AbstractContextManager[None]:
        """A context in which the path's parameters, if any, are on the CPU: copied once for a walk of many steps."""
        return nullcontext()

    def check_time(self, t: Time) -> Tensor:
        """Convert t to float64 and check that it is in [0, max(1, t_max)], where the path is defined.

        Times on a GPU, or in a compiled graph, are clamped without the check, which would have to wait for the device.

        Raises:
            ValueError: If a time lies outside that range, or is NaN.
        """
        t = float64(t)
        end = max(1.0, self.t_max)
        if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
            if t.ndim == 0 and 0 <= t.item() <= end:  # called several times in each step of a walk: the quick way out
                return t
            check_range(t, end, self)
        return t.clamp(max=end)

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def _fresh_share(self, s: Tensor, t: Tensor) -> Tensor:
        """1 - r = -expm1(lambda_t - lambda_s): the share of sigma_t^2 that is added between s and t."""
        return -torch.expm1(difference(self._log_snr, s, t))

    def _ordered(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        s, t = self.check_time(s), self.check_time(t)
        on_cpu = s.device.type == "cpu" and t.device.type == "cpu"
        if on_cpu and not torch.compiler.is_compiling() and bool((s > t).any()):
            raise ValueError("kernels run from an earlier time s to a later one t: s must not exceed t")
        return s, t
