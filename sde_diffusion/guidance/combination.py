"""Affine combinations of beliefs: what classifier-free guidance, autoguidance and compositions have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import Denoiser, Prediction, repeated
from sde_diffusion.guidance.adjustment import Adjustment
from sde_diffusion.sde import Time


class Combination(Denoiser):
    """score = sum_i w_i score_i with sum_i w_i = 1, of several denoisers, or of one denoiser with several conditions.

    Since the weights sum to one, the same combination holds for x0, eps and the velocity, and each form is combined
    from the same form. A belief whose weight is the number 0 is not computed, and a single one that is left is returned
    bit for bit. Those of the same denoiser are computed in one pass of a larger batch, which counts as several, unless
    it has settings for each sample of a batch.

    A subclass sets `sde` and `sigma_data`, calls `set_costs()` at the end of its constructor, and defines
    `experts`, `weights_at` and `conditions_of`.

    Attributes:
        adjust: Changes the combined belief where there is more than one, by comparison with the last one.
    """

    adjust: Adjustment = Adjustment()

    @property
    def conditions(self) -> Collection[str] | None:
        """Those of the denoiser that is guided, which is the last one."""
        return self.experts[-1].conditions

    @property
    @abstractmethod
    def experts(self) -> Sequence[Denoiser]:
        """The denoiser of each term."""

    @abstractmethod
    def weights_at(self, t: Time | None) -> Sequence[float | Tensor]:
        """The weight of each term at t, a number, [] or [B]; None: at a time at which as many as possible are used."""

    @abstractmethod
    def conditions_of(self, term: int, conditions: Mapping[str, Any], x_t: Tensor) -> dict[str, Any]:
        """The conditions of a term, from those of the call."""

    def set_costs(self) -> None:
        """Set `passes` and `gradients` to the most that a call can cost, and `per_sample`."""
        self.per_sample = self.per_sample or any(expert.per_sample for expert in self.experts)
        used = [expert for expert, w in zip(self.experts, self.weights_at(None), strict=True) if is_used(w)]
        self.passes = sum(expert.passes for expert in used)
        self.gradients = sum(expert.gradients for expert in used)

    def passes_at(self, t: Time) -> int:
        """Network passes that a call at t costs: those of the denoisers whose weight is not zero there."""
        return sum(
            expert.passes_at(t) for expert, w in zip(self.experts, self.weights_at(t), strict=True) if is_used(w)
        )

    def gradients_at(self, t: Time) -> int:
        """Vector-Jacobian products of the network that a call at t costs."""
        return sum(
            expert.gradients_at(t) for expert, w in zip(self.experts, self.weights_at(t), strict=True) if is_used(w)
        )

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t); see `Denoiser.forward`."""
        weights = self.weights_at(t)
        used = [term for term, w in enumerate(weights) if is_used(w)]
        beliefs = self._beliefs({term: self.conditions_of(term, conditions, x_t) for term in used}, x_t, t)
        first, *others = used
        combined = Prediction.affine(beliefs[first], [(beliefs[term], weights[term]) for term in others])
        return self.adjust(combined, beliefs[others[-1]]) if others else combined

    def _beliefs(self, conditions: Mapping[int, dict[str, Any]], x_t: Tensor, t: Time) -> dict[int, Prediction]:
        """The belief of each term, with one pass for those of the same denoiser with conditions of the same names."""
        together: dict[Any, list[int]] = {}
        for term, own in conditions.items():
            expert = self.experts[term]
            alone = (term,) if expert.per_sample else ()  # settings for each sample do not fit a larger batch
            together.setdefault((id(expert), *alone, *sorted(own)), []).append(term)
        found: dict[int, Prediction] = {}
        for terms in together.values():
            own = _joined([conditions[term] for term in terms], x_t)
            n = len(terms)
            times = t.repeat(n) if n > 1 and isinstance(t, Tensor) and t.shape == x_t.shape[:1] else t
            prediction: Prediction = self.experts[terms[0]](torch.cat([x_t] * n) if n > 1 else x_t, times, **own)
            found.update(zip(terms, prediction.chunk(n) if n > 1 else (prediction,), strict=True))
        return found


def check_same(given: Mapping[str, Denoiser], why: str) -> None:
    """Check that denoisers have the same path and the same shape of data, as far as they know it.

    Args:
        given: The denoisers by name of the argument.
        why: End of the message.

    Raises:
        ValueError: If they do not; the message has two that differ.
    """
    (first, one), *others = given.items()
    for name, other in others:
        for what, a, b in (("path", one.sde, other.sde), ("shape of data", one.shape, other.shape)):
            if a != b and None not in (a, b):
                raise ValueError(f"{name} must have the same {what} as {first}, {a}; it has {b}: {why}")


def is_used(w: float | Tensor) -> bool:
    """Whether a belief with this weight is needed; a tensor is not looked at, for it may be on a GPU."""
    return isinstance(w, Tensor) or w != 0


def _joined(several: Sequence[dict[str, Any]], x_t: Tensor) -> dict[str, Any]:
    """The conditions of several copies of a batch, one after the other, from those of each, which have the same names.

    A value that is the same for all, and is not one for each sample, is passed on as it is.
    """
    if len(several) == 1:
        return several[0]
    return {name: _concatenated([one[name] for one in several], x_t) for name in several[0]}


def _concatenated(values: Sequence[Any], x_t: Tensor) -> Any:
    first, batch = values[0], len(x_t)
    if all(value is first for value in values):
        return repeated(first, len(values), batch)
    tensors = [torch.as_tensor(value, device=x_t.device) for value in values]
    dtype, rank = tensors[0].dtype, max(1, *(tensor.ndim for tensor in tensors))
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    tensors = [tensor.to(dtype).reshape(*tensor.shape, *(1,) * (rank - tensor.ndim)) for tensor in tensors]
    sizes = [max(size) for size in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([tensor.expand(batch, *sizes) for tensor in tensors])
