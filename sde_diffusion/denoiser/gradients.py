"""Gradients with respect to x_t inside a denoiser, whatever mode its caller is in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser.prediction import Prediction


class InputGradient:
    """What a denoiser that takes a gradient inside its `forward` does it with.

        def forward(self, x_t, t, **conditions):
            with InputGradient(x_t, conditions) as inside:
                prediction = self.denoiser(inside.x_t, t, **inside.conditions)
                g = inside.gradient(self.log_likelihood(prediction.x0))
            return inside.answer(prediction.shifted(self.step(t) * g))

    Samplers call denoisers under `torch.no_grad`, and Lightning under `torch.inference_mode`, in which `enable_grad`
    has no effect and whose tensors cannot be saved for a gradient: inside, neither holds. Where the caller itself
    differentiates with respect to x_t or a condition, as likelihoods do, the graph is kept, that of the gradient
    included; elsewhere it is freed.

    Args:
        x_t: State, [B, *].
        conditions: As `forward` got them.

    Attributes:
        x_t: The state to compute with, inside.
        conditions: The conditions to compute with, inside.
    """

    def __init__(self, x_t: Tensor, conditions: Mapping[str, Any] | None = None) -> None:
        given = dict(conditions or {})
        inputs = [value for value in (x_t, *given.values()) if isinstance(value, Tensor)]
        self._keeps = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
        self._modes = ExitStack()
        with torch.inference_mode(False):
            self.conditions = {name: _usable(value) for name, value in given.items()}
            # Differentiated by the caller, it is the tensor that the caller knows; else a leaf of its own.
            self.x_t = x_t if x_t.requires_grad and self._keeps else _usable(x_t).detach().requires_grad_()

    def __enter__(self) -> InputGradient:
        self._modes.enter_context(torch.inference_mode(False))
        self._modes.enter_context(torch.enable_grad())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._modes.close()

    def gradient(self, of: Tensor, vector: Tensor | None = None) -> Tensor:
        """A product of a vector with the Jacobian of `of` with respect to x_t; may be asked for several times.

        Args:
            of: What was computed from x_t inside.
            vector: Of the shape of `of`; ones if not given, so that of one number for each sample, [B], each sample's
                own gradient is taken.

        Returns:
            [B, *].
        """
        vector = torch.ones_like(of) if vector is None else vector
        (found,) = torch.autograd.grad(of, self.x_t, vector, retain_graph=True, create_graph=self._keeps)
        return found

    def answer(self, prediction: Prediction) -> Prediction:
        """The prediction for the caller: without the graph, unless the caller differentiates."""
        return prediction if self._keeps else prediction.detach()


def _usable(value: Any) -> Any:
    """A value that may be saved for a gradient, which a tensor made in inference mode may not."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
