"""Inverse problems: the belief about x_0 given x_t and a measurement."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_finite, check_kind
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser import Denoiser, InputGradient, Prediction, check_denoiser
from sde_diffusion.guidance.guess import Guess
from sde_diffusion.guidance.likelihoods import LIKELIHOODS, MeasurementLikelihood
from sde_diffusion.guidance.operators import Operator
from sde_diffusion.sde import Time, expand, float64, on_device


@dataclass(frozen=True)
class Twist:
    """What a measurement says at one (x_t, t), for samplers that weigh states.

    Attributes:
        prediction: The belief without the measurement.
        shift: delta, by which the measurement moves its x0, [B, *dims].
        log_prob: log p(y | x_t), [B], float64.
        gradients: Vector-Jacobian products that this has cost.
    """

    prediction: Prediction
    shift: Tensor
    log_prob: Tensor
    gradients: int


class PosteriorDenoiser(Denoiser):
    """The belief given a measurement y = A(x_0) + noise n, passed as y=, for a denoiser that does not know it.

    x0 -> x0 + delta, which adds the gradient of log p(y | x_t) to the score, by an approximation of this likelihood.
    `MomentMatching` is exact if x_0 given x_t is Gaussian, for any linear A, once its iterations have converged.

    Args:
        denoiser: The denoiser of the data without a measurement.
        operator: A.
        noise: Standard deviation of the measurement's noise on the scale of x_0, such as 0.05 on [-1, 1]; at least 0.
        likelihood: moment_matching, pseudo_inverse, jacobian_free, row_sum or point_estimate, or a
            `MeasurementLikelihood`.

    Raises:
        TypeError: If denoiser is not a denoiser, or operator not an operator.
        ValueError: If the denoiser takes y itself, noise is negative or not finite, or the likelihood unknown; from a
            call, if y is missing, has another shape than A x_0, or is not finite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        noise: float = 0.05,
        likelihood: str | MeasurementLikelihood = "moment_matching",
    ) -> None:
        super().__init__()
        check_denoiser(denoiser)
        check_kind("operator", operator, Operator)
        if "y" in (denoiser.conditions or ()):
            raise ValueError(
                "denoiser has a condition named y itself, which is the name of the measurement here: a model must have "
                "it under another name, and the posterior of a posterior needs one operator for both measurements"
            )
        self.denoiser, self.operator = denoiser, operator
        self.sde, self.sigma_data = denoiser.sde, denoiser.sigma_data
        self.noise = as_number("noise", noise)
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be a finite number of at least 0, on the scale of x_0; got {shown(noise)}")
        self.likelihood: MeasurementLikelihood = as_instance(
            "likelihood", likelihood, LIKELIHOODS, MeasurementLikelihood
        )
        self.shape, self.per_sample, self.passes = denoiser.shape, denoiser.per_sample, denoiser.passes
        self.gradients = denoiser.gradients + self.likelihood.gradients * denoiser.passes

    @property
    def conditions(self) -> Collection[str] | None:
        """Those of the wrapped denoiser, and y."""
        inner = self.denoiser.conditions
        return None if inner is None else (*inner, "y")

    def passes_at(self, t: Time) -> int:
        """Network passes that a call at t costs: those of the wrapped denoiser."""
        return self.denoiser.passes_at(t)

    def gradients_at(self, t: Time) -> int:
        """Vector-Jacobian products of the network that a call at t costs; one of a belief costs one for each pass."""
        return self.denoiser.gradients_at(t) + self.likelihood.gradients * self.denoiser.passes_at(t)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; y becomes floats [B, *out] from [B, *out] or [1, *out]."""
        others = {name: value for name, value in conditions.items() if name != "y"}
        known = self.denoiser.check_conditions(others, batch, device, wait)
        y = torch.as_tensor(_required(conditions.get("y")), device=device)
        if not y.is_floating_point() or y.ndim < 2 or len(y) not in (1, batch):
            raise ValueError(f"y must be floats [{batch}, ...] or [1, ...]; got {y.dtype} {list(y.shape)}")
        if wait or y.device.type == "cpu":
            check_finite("y", y)
        return {**known, "y": y.expand(batch, *y.shape[1:])}

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t) given y; see `Denoiser.forward`.

        Raises:
            ValueError: If y has another shape than A x_0, or A x_0 is not finite.
        """
        y = _required(conditions.pop("y", None)).to(x_t.dtype)
        if not self.likelihood.gradients and self.operator.linear:
            prediction = self.denoiser(x_t, t, **conditions)
            delta = self.likelihood.shift(self._guess(prediction, y, t, _no_gradient, torch.is_grad_enabled()))
            return prediction.shifted(self._where_known(delta, t))
        with InputGradient(x_t, {**conditions, "y": y}, t, self) as inside:
            t, y = inside.t, inside.conditions.pop("y")
            prediction = self.denoiser(inside.x_t, t, **inside.conditions)
            delta = self.likelihood.shift(self._guess(prediction, y, t, inside.gradient, inside.keeps))
            return inside.answer(prediction.shifted(self._where_known(delta, t)))

    def twist(self, x_t: Tensor, t: Time, **conditions: Any) -> Twist:
        """What `forward` adds to the wrapped denoiser's belief, and log p(y | x_t), without gradients.

        Raises:
            ValueError: If the likelihood has no log p(y | x_t), or y has another shape than A x_0.
        """
        calls: list[Tensor] = []
        y = _required(conditions.pop("y", None)).to(x_t.dtype)
        y = y.expand(len(x_t), *y.shape[1:])
        with torch.no_grad(), InputGradient(x_t, {**conditions, "y": y}, t) as inside:
            t, y = inside.t, inside.conditions.pop("y")
            prediction = self.denoiser(inside.x_t, t, **inside.conditions)

            def gradient(x0: Tensor, u: Tensor) -> Tensor:
                calls.append(u)
                return inside.gradient(x0, u)

            delta, log_prob = self.likelihood.twist(self._guess(prediction, y, t, gradient, False))
            shift, log_prob = self._where_known(delta, t).detach(), self._where_known(log_prob, t).detach()
            count = self.denoiser.gradients_at(t) + len(calls) * self.denoiser.passes_at(t)
            return Twist(prediction.detach(), shift, log_prob, count)

    def _guess(self, prediction: Prediction, y: Tensor, t: Time, gradient: Any, keeps: bool) -> Guess:
        x0 = prediction.x0
        near = self.operator.linearise(x0, create_graph=keeps)
        if near.value.shape != y.shape:
            raise ValueError(f"y has shape {list(y.shape[1:])}, but the operator gives {list(near.value.shape[1:])}")
        if x0.device.type == "cpu" and not bool(near.value.isfinite().all()) and bool(x0.isfinite().all()):
            raise ValueError(f"{self.operator} gives NaN or infinite values for data that have none")
        t = on_device(float64(t), x0.device)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        factor = torch.where(alpha > 0, sigma.square() / torch.where(alpha > 0, alpha, 1.0), 0.0)
        spread = torch.where(alpha > 0, (sigma / torch.where(alpha > 0, alpha, 1.0)).square(), math.inf)
        residual = y - near.value
        return Guess(
            residual=residual if keeps else residual.detach(),
            noise=self.noise**2,
            spread=spread,
            forward=near.forward,
            adjoint=near.adjoint,
            covariance=lambda u: expand(factor, u) * gradient(x0, u),
            filter=self.operator.filter,
            spectrum=lambda: self.operator.spectrum(y.shape[1:]).to(x0.device),
        )

    def _where_known(self, delta: Tensor, t: Time) -> Tensor:
        """Delta, or another value for each sample, or 0 at times at which nothing is known of x_0."""
        alpha = self.sde.alpha(on_device(float64(t), delta.device))
        return torch.where(expand(alpha, delta) > 0, delta, 0.0)

    def extra_repr(self) -> str:
        """The noise and the likelihood."""
        return f"noise={self.noise:g}, likelihood={self.likelihood}"


def _required(y: Any) -> Any:
    if y is None:
        raise ValueError("give the measurement y=, one for each sample or one for all")
    return y


def _no_gradient(x0: Tensor, u: Tensor) -> Tensor:
    raise AssertionError("a likelihood with gradients = 0 asked for a gradient")
