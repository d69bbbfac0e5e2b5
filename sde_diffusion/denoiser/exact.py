r"""Denoisers in closed form, against which samplers and likelihoods are tested.

For data from a Gaussian mixture (or a finite set, a mixture of points) the marginal at time t is again a mixture,
q_t(x) = sum_k w_k N(x; alpha m_k, alpha^2 s_k^2 + sigma^2), and E[x_0 | x_t] is the mean of the components' posterior
means, weighted by their responsibilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers, check_count, check_finite, check_floats
from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser.base import Denoiser, check_times
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde import SDE, Time, check_sde, expand, float64, on_device


class ExactPrediction(Prediction):
    """A prediction with both x0 and the score in float64, each cast to the state's type by itself.

    Computing the score as (alpha x0 - x_t) / sigma^2 in the state's type would magnify its rounding by 1 / sigma^2: in
    float32, on the rectified path at t = 1e-5, no digits would be left.

    Args:
        sde: The path.
        x_t: State, [B, *].
        t: Time, [] or [B].
        x0: E[x_0 | x_t], [B, *], float64.
        score: grad log q_t(x_t), [B, *], float64.
    """

    def __init__(self, sde: SDE, x_t: Tensor, t: Time, x0: Tensor, score: Tensor) -> None:
        super().__init__(sde, x_t, t, x0.to(x_t.dtype))
        self._x0 = x0
        self._score = score

    @property
    def eps(self) -> Tensor:
        """Expected noise -sigma score, [B, *]."""
        return self._eps().to(self.x_t.dtype)

    @property
    def score(self) -> Tensor:
        """Score grad log q_t(x_t), [B, *]."""
        return self._score.to(self.x_t.dtype)

    @property
    def velocity(self) -> Tensor:
        """Velocity of the probability flow alpha' x0 + sigma' eps, [B, *]."""
        alpha_rate = expand(self.sde.alpha_rate(self.t), self._x0)
        sigma_rate = expand(self.sde.sigma_rate(self.t), self._x0)
        return (alpha_rate * self._x0 + sigma_rate * self._eps()).to(self.x_t.dtype)

    def _eps(self) -> Tensor:
        return -expand(self.sde.sigma(self.t), self._score) * self._score


class GaussianMixtureDenoiser(Denoiser):
    """Exact denoiser of a Gaussian mixture with diagonal covariances.

    x0 = sum_k p(k | x_t) (m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (x_t - alpha m_k)).

    Args:
        sde: The path.
        means: Component means, [K, *].
        stds: Component standard deviations, broadcastable to [K, *] (a number, [K], or [K, *]); non-negative.
        weights: Component weights, [K], positive, normalised to sum to one; equal by default.

    Raises:
        TypeError: If sde is not a path, or an argument is neither numbers nor a tensor.
        ValueError: If the shapes do not fit, a number is not finite, a std is negative, or a weight is not positive.
    """

    conditions = ()
    means: Tensor
    stds: Tensor
    log_weights: Tensor

    def __init__(self, sde: SDE, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        super().__init__()
        check_sde(sde)
        self.sde = sde
        means, stds = as_numbers("means", means), as_numbers("stds", stds)
        if means.ndim < 2 or not len(means):
            raise ValueError(f"means must have shape [K, *] with at least one data dimension; got {list(means.shape)}")
        if stds.ndim == 1 and len(stds) == len(means):
            stds = stds.reshape(-1, *(1,) * (means.ndim - 1))
        weights = torch.ones(len(means), dtype=torch.float64) if weights is None else as_numbers("weights", weights)
        if weights.shape != means.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {len(means)} positive numbers; got {weights.tolist()}")
        if not bool((stds >= 0).all()):
            raise ValueError("stds must not be negative")
        self.register_buffer("means", means)
        self.register_buffer("stds", _fit(stds, means, "stds").clone())
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        second = (self.means.square() + self.stds.square()).flatten(1).mean(1)
        self.sigma_data = math.sqrt(float((weights / weights.sum()) @ second))

    def extra_repr(self) -> str:
        """The arguments, abbreviated."""
        return f"sde={self.sde}, components={len(self.means)}, shape={list(self.means.shape[1:])}"

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t), computed in float64; see `Denoiser.forward`."""
        alpha, sigma = self._scales(t)
        offset, variance = self._marginals(x_t, alpha, sigma)
        responsibility = self._joint_log_prob(offset, variance).softmax(1)
        pull = offset / variance  # minus the score of each component
        means = self.means + alpha * self.stds.square() * pull
        x0, score = (torch.einsum("bk,bkd->bd", responsibility, v.flatten(2)) for v in (means, -pull))
        return ExactPrediction(self.sde, x_t, t, x0.reshape(x_t.shape), score.reshape(x_t.shape))

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """Exact log-density of the marginal q_t, in nats.

        Args:
            x: [B, *].
            t: [] or [B].

        Returns:
            [B], float64.
        """
        check_floats("x", x)
        return self._joint_log_prob(*self._marginals(x, *self._scales(check_times(t, len(x))))).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of the data distribution (t = 0).

        Args:
            n: Number of points.
            generator: Source of randomness; torch's default generator if None.

        Returns:
            [n, *], float64.
        """
        n = check_count("n", n)
        device = self.means.device if generator is None else generator.device
        component = torch.multinomial(self.log_weights.exp().to(device), n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], dtype=torch.float64, generator=generator, device=device)
        component, noise = component.to(self.means.device), noise.to(self.means.device)
        return self.means[component] + self.stds[component] * noise

    def _scales(self, t: Time) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shaped [1 or B, 1, 1, ...] to broadcast against [B, K, *]."""
        t = on_device(float64(t), self.means.device)
        shape = (-1, *(1,) * self.means.ndim)
        return self.sde.alpha(t).reshape(shape), self.sde.sigma(t).reshape(shape)

    def _marginals(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x - alpha m_k, [B, K, *], and the components' variances at t, [1 or B, K, *]."""
        _check_like(x, self.means, one_for_more=len(self.means) == 1)
        return x.double().unsqueeze(1) - alpha * self.means, (alpha * self.stds).square() + sigma.square()

    def _joint_log_prob(self, offset: Tensor, variance: Tensor) -> Tensor:
        """log w_k + log N(x; k), [B, K]."""
        exponent = (offset.square() / variance + (2 * math.pi * variance).log()).flatten(2).sum(2)
        return self.log_weights - 0.5 * exponent


class GaussianDenoiser(GaussianMixtureDenoiser):
    """Exact denoiser of one Gaussian N(mean, diag std^2): x0 = m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha m).

    Args:
        sde: The path.
        mean: [*].
        std: Broadcastable to [*]; non-negative.

    Raises:
        ValueError: If the shapes do not fit or a std is negative.
    """

    def __init__(self, sde: SDE, mean: Tensor, std: Tensor | float) -> None:
        mean, std = as_numbers("mean", mean), as_numbers("std", std)
        if mean.ndim == 0:
            raise ValueError("mean must have at least one dimension: the shape of one data point")
        super().__init__(sde, mean.unsqueeze(0), _fit(std, mean, "std").unsqueeze(0))


class EmpiricalDenoiser(Denoiser):
    """Exact denoiser of a finite data set: x0 = sum_i softmax_i(-|x_t - alpha x_i|^2 / (2 sigma^2)) x_i.

    A network of unlimited capacity would learn it; sampling with it returns the data points.

    Args:
        sde: The path.
        data: The data points, [N, *].
        chunk: Number of data points compared at once, at least 1; memory is limited to about B x chunk numbers.

    Raises:
        TypeError: If sde is not a path, or data are not a tensor of floats.
        ValueError: If data are empty, not finite or have no data dimension, or chunk < 1.

    References:
        Karras et al. 2022, appendix B.3, equation 57.
    """

    conditions = ()
    data: Tensor

    def __init__(self, sde: SDE, data: Tensor, chunk: int = 16384) -> None:
        super().__init__()
        check_sde(sde)
        check_floats("data", data)
        if data.ndim < 2 or not len(data):
            raise ValueError(f"data must have shape [N, *] with N >= 1; got {list(data.shape)}")
        check_finite("data", data)
        self.sde = sde
        self.chunk = check_count("chunk", chunk, also=" (data points compared at once)")
        self.register_buffer("data", data.detach().clone())
        self.sigma_data = float(data.double().square().mean().sqrt())

    def extra_repr(self) -> str:
        """The arguments, abbreviated."""
        return f"sde={self.sde}, data={shown(self.data)}, chunk={self.chunk}"

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t), with a streaming softmax over chunks of the data; see `Denoiser.forward`."""
        _check_like(x_t, self.data)
        t = float64(t)
        alpha, sigma = (on_device(c, x_t.device).reshape(-1, 1) for c in (self.sde.alpha(t), self.sde.sigma(t)))
        x = x_t.flatten(1).double()
        top = torch.full((len(x), 1), -math.inf, dtype=torch.float64, device=x.device)
        mass = torch.zeros_like(top)
        total = torch.zeros_like(x)
        for start in range(0, len(self.data), self.chunk):
            points = self.data[start : start + self.chunk].flatten(1).double()
            # |x - alpha y|^2 without |x|^2, on which the softmax does not depend.
            distance = alpha.square() * points.square().sum(1) - 2 * alpha * (x @ points.T)
            logits = -distance / (2 * sigma.square())
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            rescale = (top - new_top).exp()
            weights = (logits - new_top).exp()
            mass = mass * rescale + weights.sum(1, keepdim=True)
            total = total * rescale + weights @ points
            top = new_top
        x0 = total / mass
        score = (alpha * x0 - x) / sigma.square()
        return ExactPrediction(self.sde, x_t, t, x0.reshape(x_t.shape), score.reshape(x_t.shape))


def _fit(std: Tensor, mean: Tensor, name: str) -> Tensor:
    """Broadcast standard deviations to the means' shape."""
    try:
        return std.broadcast_to(mean.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the means' shape {list(mean.shape)}; got shape {list(std.shape)}"
        ) from None


def _check_like(x: Tensor, data: Tensor, one_for_more: bool = False) -> None:
    """Check that x is a batch [B, *] of data [K, *], or [B, ..., *] if a single component may be broadcast."""
    check_floats("x", x)
    same = x.shape[1:] if not one_for_more else x.shape[1:][-(data.ndim - 1) :]
    if same != data.shape[1:]:
        raise ValueError(f"x must be [B, {', '.join(map(str, data.shape[1:]))}], as the data are; got {list(x.shape)}")
