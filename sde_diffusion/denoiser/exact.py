"""Predictions in closed form, and the exact denoiser of a finite data set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_count, check_finite, check_floats
from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser.base import Denoiser
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
        check_like(x_t, self.data)
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


def check_like(x: Tensor, data: Tensor, one_for_more: bool = False) -> None:
    """Check that x is a batch [B, *] of data [K, *], or [B, ..., *] if a single component may be broadcast."""
    check_floats("x", x)
    same = x.shape[1:] if not one_for_more else x.shape[1:][-(data.ndim - 1) :]
    if same != data.shape[1:]:
        raise ValueError(f"x must be [B, {', '.join(map(str, data.shape[1:]))}], as the data are; got {list(x.shape)}")
