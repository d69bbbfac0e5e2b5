r"""Denoisers of Gaussian mixtures in closed form, against which samplers, likelihoods and guidance are tested.

For data from a mixture of N(m_k, C_k) the marginal at time t is again a mixture, q_t(x) = sum_k w_k N(x; alpha m_k,
alpha^2 C_k + sigma^2 I). E[x_0 | x_t] is the mean of the components' posterior means, weighted by their
responsibilities p(k | x_t). Given a linear measurement y = A x_0 + noise, the posterior p(x_0 | y) is a mixture too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers, check_count
from sde_diffusion.denoiser.base import Denoiser, check_times
from sde_diffusion.denoiser.exact import ExactPrediction, check_like
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde import SDE, Time, check_sde, float64, on_device

if TYPE_CHECKING:
    from sde_diffusion.denoiser.mixture_posterior import Linear, MixturePosteriorDenoiser


class GaussianMixtureDenoiser(Denoiser):
    """Exact denoiser of a Gaussian mixture.

    x0 = sum_k p(k | x_t) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k)), computed in the
    eigenvectors of C_k, which are found once.

    Args:
        sde: The path.
        means: Component means m_k, [K, *].
        stds: Component standard deviations for diagonal C_k, broadcastable to [K, *] (a number, [K], or [K, *]);
            non-negative.
        weights: Component weights w_k, [K], positive, normalised to sum to one; equal by default.
        covariances: Full covariances C_k in place of stds, [K, D, D] with D the number of dimensions of one data
            point; symmetric, without negative eigenvalues.

    Raises:
        TypeError: If sde is not a path, or an argument is neither numbers nor a tensor.
        ValueError: If the shapes do not fit, a number is not finite, a std or an eigenvalue is negative, a covariance
            not symmetric, a weight not positive, or not exactly one of stds and covariances is given.
    """

    conditions: Collection[str] | None = ()
    means: Tensor
    stds: Tensor
    basis: Tensor | None
    log_weights: Tensor

    def __init__(
        self,
        sde: SDE,
        means: Tensor,
        stds: Tensor | float | None = None,
        weights: Tensor | None = None,
        covariances: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_sde(sde)
        self.sde = sde
        means = as_numbers("means", means)
        if means.ndim < 2 or not len(means):
            raise ValueError(f"means must have shape [K, *] with at least one data dimension; got {list(means.shape)}")
        weights = torch.ones(len(means), dtype=torch.float64) if weights is None else as_numbers("weights", weights)
        if weights.shape != means.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {len(means)} positive numbers; got {weights.tolist()}")
        if (stds is None) == (covariances is None):
            raise ValueError("give either stds or covariances")
        basis = None
        if covariances is not None:
            stds, basis = _principal(as_numbers("covariances", covariances), means)
        self.register_buffer("means", means)
        self.register_buffer("stds", _diagonal(as_numbers("stds", stds), means).clone())
        self.register_buffer("basis", basis)  # [K, D, D], eigenvectors in columns, with stds along them; None: the axes
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        second = (self.means.square() + self.stds.square()).flatten(1).mean(1)
        self.sigma_data = math.sqrt(float((weights / weights.sum()) @ second))

    def extra_repr(self) -> str:
        """The arguments, abbreviated."""
        return f"sde={self.sde}, components={len(self.stds)}, shape={list(self.stds.shape[1:])}"

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t), computed in float64; see `Denoiser.forward`."""
        share, means, pull = self._at(x_t, t, conditions)
        x0, score = (torch.einsum("bk,bkd->bd", share, v.flatten(2)) for v in (means, -pull))
        return ExactPrediction(self.sde, x_t, t, x0.reshape(x_t.shape), score.reshape(x_t.shape))

    def log_prob(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Exact log-density of the marginal q_t, in nats.

        Args:
            x: [B, *].
            t: [] or [B].
            **conditions: Those that the denoiser takes.

        Returns:
            [B], float64.
        """
        return self._joint_log_prob(x, t, conditions)[0].logsumexp(1)

    def log_responsibility(self, x_t: Tensor, t: Time, **conditions: Any) -> Tensor:
        """log p(k | x_t), of the component that x_0 came from: the exact classifier of the components.

        Args:
            x_t: [B, *].
            t: [] or [B].
            **conditions: Those that the denoiser takes.

        Returns:
            [B, K], float64.
        """
        return self._joint_log_prob(x_t, t, conditions)[0].log_softmax(1)

    def covariance(self, x_t: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Cov[x_0 | x_t] = sum_k p(k | x_t) (C_k(t) + x0_k x0_k^T) - x0 x0^T, of flattened data.

        C_k(t) = sigma^2 C_k (alpha^2 C_k + sigma^2 I)^-1 is the covariance within component k. It equals
        (sigma^2 / alpha) d x0 / d x_t.

        Args:
            x_t: [B, *].
            t: [] or [B].
            **conditions: Those that the denoiser takes.

        Returns:
            [B, D, D], float64.
        """
        share, means, _ = self._at(x_t, t, conditions)
        alpha, sigma = self._scales(t, self.stds.ndim)
        within = ((self.stds * sigma).square() / self._variance(alpha, sigma)).flatten(2)
        inner = torch.diag_embed(within)
        if self.basis is not None:
            inner = self.basis @ inner @ self.basis.mT
        centred = means.flatten(2) - torch.einsum("bk,bkd->bd", share, means.flatten(2)).unsqueeze(1)
        return (share[..., None, None] * (inner + centred.unsqueeze(3) * centred.unsqueeze(2))).sum(1)

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
        deviation = self.stds[component] * noise
        if self.basis is not None:
            deviation = (self.basis[component] @ deviation.flatten(1).unsqueeze(2)).reshape(deviation.shape)
        return self.means[component] + deviation

    def posterior(self, operator: Linear, noise: float | Tensor) -> MixturePosteriorDenoiser:
        """The exact denoiser of x_0 given x_t and a measurement y = A x_0 + noise n, to be passed as y=.

        Args:
            operator: A.
            noise: Standard deviation of the measurement's noise, a number or [*out], at least 0.

        Returns:
            A denoiser that takes y=, [B, *out], or [1, *out] for all samples.

        Raises:
            ValueError: If the operator is not linear, or noise is 0 and A C_k A^T is singular.
        """
        from sde_diffusion.denoiser.mixture_posterior import MixturePosteriorDenoiser

        return MixturePosteriorDenoiser(self, operator, noise)

    def condition(self, operator: Linear, y: Tensor, noise: float | Tensor) -> GaussianMixtureDenoiser:
        """The exact denoiser given one measurement y = A x_0 + noise n: that of p(x_0 | y), a mixture again.

        With K_k = C_k A^T (A C_k A^T + noise^2 I)^-1, its means are m_k + K_k (y - A m_k), its covariances
        (I - K_k A) C_k, and its weights proportional to w_k N(y; A m_k, A C_k A^T + noise^2 I).

        Args:
            operator: A.
            y: One measurement, [*out].
            noise: Standard deviation of its noise, a number or [*out], at least 0.

        Returns:
            The mixture.

        Raises:
            ValueError: If y has another shape, the operator is not linear, or noise is 0 and A C_k A^T singular.
        """
        return self.posterior(operator, noise).given(y)

    def covariances(self) -> Tensor:
        """C_k of flattened data, [K, D, D], float64."""
        found = torch.diag_embed(self.stds.flatten(1).square())
        return found if self.basis is None else self.basis @ found @ self.basis.mT

    def _means(self, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Means, [1 or B, K, *], and log-weights, [1 or B, K]."""
        return self.means.unsqueeze(0), self.log_weights.unsqueeze(0)

    def _at(self, x_t: Tensor, t: Time, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """p(k | x_t), [B, K], the components' posterior means, [B, K, *], and minus their scores, [B, K, *]."""
        joint, means, pull = self._joint_log_prob(x_t, t, conditions)
        step = self._scales(t, x_t.ndim)[0] * self.stds.square() * pull
        return joint.softmax(1), means + self._turned(step, back=True), self._turned(pull, back=True)

    def _joint_log_prob(self, x: Tensor, t: Time, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k + log q_t(x | k), [B, K], the means, and offset / variance along the eigenvectors, [B, K, *]."""
        check_like(x, self.stds, one_for_more=len(self.stds) == 1 and self.basis is None)
        t = check_times(t, len(x))
        alpha, sigma = self._scales(t, x.ndim)
        means, log_weights = self._means(conditions)
        offset = self._turned(x.double().unsqueeze(1) - alpha * means)
        variance = self._variance(alpha, sigma)
        exponent = (offset.square() / variance + (2 * math.pi * variance).log()).flatten(2).sum(2)
        return log_weights - 0.5 * exponent, means, offset / variance

    def _scales(self, t: Time, ndim: int) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shaped [1 or B, 1, 1, ...] to broadcast against [B, K, *], for x of so many axes."""
        t = on_device(float64(t), self.stds.device)
        shape = (-1, *(1,) * ndim)
        return self.sde.alpha(t).reshape(shape), self.sde.sigma(t).reshape(shape)

    def _variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The components' variances at t along their eigenvectors, [1 or B, K, *]."""
        return (alpha * self.stds).square() + sigma.square()

    def _turned(self, v: Tensor, back: bool = False) -> Tensor:
        """Vectors [B, K, *] in the coordinates of each component's eigenvectors, or back from them."""
        if self.basis is None:
            return v
        return torch.einsum("bke,kde->bkd" if back else "bkd,kde->bke", v.flatten(2), self.basis).reshape(v.shape)


class GaussianDenoiser(GaussianMixtureDenoiser):
    """Exact denoiser of one Gaussian N(m, C): x0 = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m).

    Args:
        sde: The path.
        mean: m, [*].
        std: Standard deviations for a diagonal C, broadcastable to [*]; non-negative.
        covariance: A full C in place of std, [D, D].

    Raises:
        ValueError: If the shapes do not fit, or a std or eigenvalue is negative; see `GaussianMixtureDenoiser`.
    """

    def __init__(
        self, sde: SDE, mean: Tensor, std: Tensor | float | None = None, covariance: Tensor | None = None
    ) -> None:
        mean = as_numbers("mean", mean)
        if mean.ndim == 0:
            raise ValueError("mean must have at least one dimension: the shape of one data point")
        stds = None if std is None else _diagonal(as_numbers("std", std), mean, "std").unsqueeze(0)
        covariances = None if covariance is None else as_numbers("covariance", covariance).unsqueeze(0)
        super().__init__(sde, mean.unsqueeze(0), stds, covariances=covariances)


def _principal(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations, [K, *], along the eigenvectors, [K, D, D]."""
    size = math.prod(means.shape[1:])
    if covariances.shape != (len(means), size, size):
        raise ValueError(f"covariances must be [{len(means)}, {size}, {size}]; got {list(covariances.shape)}")
    largest = covariances.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    skew = (covariances - covariances.mT).abs().amax((1, 2)) / largest
    values, vectors = torch.linalg.eigh(0.5 * (covariances + covariances.mT))
    if not bool((skew <= 1e-6).all()) or not bool((values[:, 0] >= -1e-6 * largest).all()):
        raise ValueError("covariances must be symmetric and have no negative eigenvalues")
    return values.clamp(min=0).sqrt().reshape(means.shape), vectors


def _diagonal(std: Tensor, mean: Tensor, name: str = "stds") -> Tensor:
    """Broadcast standard deviations, non-negative, to the means' shape."""
    if not bool((std >= 0).all()):
        raise ValueError(f"{name} must not be negative")
    if name == "stds" and std.ndim == 1 and len(std) == len(mean):
        std = std.reshape(-1, *(1,) * (mean.ndim - 1))
    try:
        return std.broadcast_to(mean.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the means' shape {list(mean.shape)}; got shape {list(std.shape)}"
        ) from None
