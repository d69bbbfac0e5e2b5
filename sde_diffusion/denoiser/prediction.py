r"""A denoiser's belief about the data, in each of its equivalent forms.

Given x_t = alpha x_0 + sigma eps, the belief x0 = E[x_0 | x_t] determines all other forms:

    eps      = (x_t - alpha x0) / sigma        noise
    score    = -eps / sigma                    grad log q_t(x_t)          (Tweedie's formula)
    velocity = alpha' x0 + sigma' eps          dx/dt of the probability flow

(Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO", appendix; Lipman et al. 2023, equation 15.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number
from sde_diffusion.sde import SDE, Time, expand, float64


class Prediction:
    """A denoiser's belief at (x_t, t): x0 = skip x_t + scale output, and from it eps, score and velocity.

    Each form is computed directly, as one multiply-add of x_t and output with coefficients in float64, so that no
    digits are lost by going through x0 where sigma is small, or through eps where alpha is small.

    Args:
        sde: The path.
        x_t: State, [B, *].
        t: Time, [] or [B].
        output: A network's raw output, or x0 itself, [B, *].
        skip: Coefficient of x_t, [] or [B], float64; 0 by default.
        scale: Coefficient of output, [] or [B], float64; 1 by default.

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
        # One time for all samples: plain numbers save kernels, unless gradients must reach a learned path.
        one = skip.ndim == 0 and skip.device.type == "cpu" and not torch.compiler.is_compiling()
        if one and not (skip.requires_grad or scale.requires_grad):
            if not skip.item():
                return self.output if scale.item() == 1 else self.output * scale.item()
            return torch.add(self.x_t * skip.item(), self.output, alpha=scale.item())
        return expand(skip, self.x_t) * self.x_t + expand(scale, self.x_t) * self.output

    @staticmethod
    def lerp(a: Prediction, b: Prediction, w: float | Tensor) -> Prediction:
        """(1 - w) a + w b, of any two beliefs at the same (x_t, t); see `affine`.

        Args:
            a: The belief at w = 0, bit for bit.
            b: The belief at w = 1, bit for bit.
            w: A number or [B], one for each sample. It may lie outside [0, 1], as in guidance.

        Returns:
            The combined belief.

        Raises:
            ValueError: If w is not a number, or the number of weights is neither one nor B.
        """
        return Prediction.affine(a, [(b, w)])

    @staticmethod
    def affine(base: Prediction, others: Sequence[tuple[Prediction, float | Tensor]]) -> Prediction:
        """base + sum_i w_i (other_i - base), of any beliefs at the same (x_t, t), networks' or closed forms.

        Each form (x0, eps, score, velocity) is affine in x0 with the same coefficients, so each is combined from the
        same form of the beliefs, and no digits are lost in conversions.

        Args:
            base: A belief; its weight is 1 - sum_i w_i.
            others: Further beliefs and their weights, each a number or [B], one for each sample.

        Returns:
            The combined belief; `base` itself if all weights are the number 0, or the only other one if its weight is
            the number 1.

        Raises:
            ValueError: If a weight is not a number, or the number of weights is neither one nor B.
        """
        terms = [(other, _weight(w, len(base.x_t))) for other, w in others]
        terms = [(other, w) for other, w in terms if isinstance(w, Tensor) or w != 0]
        if not terms:
            return base
        (first, weight), *more = terms
        if not more and not isinstance(weight, Tensor) and weight == 1:
            return first

        def form(name: str) -> Tensor:
            start = getattr(base, name)
            found = torch.lerp(start, getattr(first, name), expand_weight(weight, start))
            for other, w in more:
                found = found + expand_weight(w, start) * (getattr(other, name) - start)
            return found

        def expand_weight(w: float | Tensor, like: Tensor) -> Any:
            return expand(w, like) if isinstance(w, Tensor) else w

        return _FormByForm(base.sde, base.x_t, base.t, form)

    def shifted(self, delta: Tensor) -> Prediction:
        """The belief with x0 + delta in place of x0.

        score += alpha / sigma^2 delta, eps -= alpha / sigma delta, velocity += (alpha' - alpha sigma' / sigma) delta
        (both terms have the same sign, so nothing cancels). To add g to the score, use delta = sigma^2 / alpha g, or 0
        where alpha is 0. Where sigma^2 is 0 in the state's type, x_t says all of x_0, and only x0 is shifted.

        Args:
            delta: [B, *].

        Returns:
            The shifted belief.
        """
        sde, t, delta = self.sde, float64(self.t), delta.to(self.x_t.dtype)

        def form(name: str) -> Tensor:
            value: Tensor = getattr(self, name)
            if name == "x0":
                return value + delta
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            noisy = sigma.square() > torch.finfo(delta.dtype).tiny  # else delta, of order sigma^2, is 0
            sigma = torch.where(noisy, sigma, 1.0)
            if name == "velocity":
                coefficient = sde.alpha_rate(t) - alpha * sde.sigma_rate(t) / sigma
            else:
                coefficient = {"eps": -alpha / sigma, "score": alpha / sigma.square()}[name]
            return value + expand(torch.where(noisy, coefficient, 0.0), value) * delta

        return _FormByForm(sde, self.x_t, t, form)

    def chunk(self, n: int) -> tuple[Prediction, ...]:
        """Split the batch into n equal parts, such as n batches that were evaluated in one network pass."""
        form = functools.cache(lambda name: getattr(self, name).chunk(n))
        t = float64(self.t)
        times = t.chunk(n) if t.shape == self.x_t.shape[:1] else (t,) * n

        def part(i: int, x_t: Tensor) -> Prediction:
            return _FormByForm(self.sde, x_t, times[i], lambda name: form(name)[i])

        return tuple(part(i, x_t) for i, x_t in enumerate(self.x_t.chunk(n)))

    def detach(self) -> Prediction:
        """The belief without its autograd graph."""
        return _FormByForm(self.sde, self.x_t.detach(), self.t, lambda name: getattr(self, name).detach())


class _FormByForm(Prediction):
    """A belief of which a function computes each form by itself: the result of arithmetic on predictions.

    Args:
        sde: The path.
        x_t: State, [B, *].
        t: Time, [] or [B].
        form: Function from "x0", "eps", "score" or "velocity" to [B, *].
    """

    def __init__(self, sde: SDE, x_t: Tensor, t: Time, form: Callable[[str], Tensor]) -> None:
        super().__init__(sde, x_t, t, form("x0"))
        self._form = form

    @property
    def eps(self) -> Tensor:
        """Expected noise, [B, *]."""
        return self._form("eps")

    @property
    def score(self) -> Tensor:
        """Score, [B, *]."""
        return self._form("score")

    @property
    def velocity(self) -> Tensor:
        """Velocity of the probability flow, [B, *]."""
        return self._form("velocity")


def _weight(w: float | Tensor, batch: int) -> float | Tensor:
    """A weight of a belief: a number, or a float64 tensor, [] or [B]."""
    if not isinstance(w, Tensor) or (w.ndim == 0 and w.device.type == "cpu" and not w.requires_grad):
        return as_number("w", w)
    if w.shape not in ((), (1,), (batch,)):
        raise ValueError(f"w must be a number or [{batch}], one for each sample; got {list(w.shape)}")
    return float64(w)
