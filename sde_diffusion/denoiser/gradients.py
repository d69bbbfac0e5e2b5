"""Gradients with respect to x_t inside a denoiser, whatever mode its caller is in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde import Time


class InputGradient:
    """Context for gradients with respect to x_t inside a denoiser's `forward`.

        def forward(self, x_t, t, **conditions):
            with InputGradient(x_t, conditions, t, self) as inside:
                prediction = self.denoiser(inside.x_t, inside.t, **inside.conditions)
                g = inside.gradient(self.log_likelihood(prediction.x0))
            return inside.answer(prediction.shifted(self.step(t) * g))

    Samplers call denoisers under `torch.no_grad`, and Lightning under `torch.inference_mode`, in which `enable_grad`
    has no effect and whose tensors cannot be saved for backward. The context lifts both. If the caller itself
    differentiates with respect to x_t, t, a condition or a parameter, as likelihoods do, the graph is kept, including
    that of the gradient; otherwise it is freed.

    Args:
        x_t: State, [B, *].
        conditions: The conditions that were passed to `forward`.
        t: Time, [] or [B].
        module: The denoiser whose `forward` it is, of which the parameters may be differentiated.

    Attributes:
        x_t: The state to use inside the context.
        conditions: The conditions to use inside the context.
        t: The time to use inside the context.
        keeps: Whether the caller differentiates, so that the graph is kept.
    """

    def __init__(
        self,
        x_t: Tensor,
        conditions: Mapping[str, Any] | None = None,
        t: Time = 0.0,
        module: nn.Module | None = None,
    ) -> None:
        conditions = dict(conditions or {})
        inputs = [value for value in (x_t, t, *conditions.values()) if isinstance(value, Tensor)]
        inputs += [] if module is None or not torch.is_grad_enabled() else module.parameters()
        self.keeps = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
        self._modes = ExitStack()
        with torch.inference_mode(False):
            self.conditions = {name: recordable(value) for name, value in conditions.items()}
            self.t: Time = recordable(t)
            # The caller's own tensor if the caller differentiates; else a new leaf.
            self.x_t = x_t if x_t.requires_grad and self.keeps else recordable(x_t).detach().requires_grad_()

    def __enter__(self) -> InputGradient:
        self._modes.enter_context(torch.inference_mode(False))
        self._modes.enter_context(torch.enable_grad())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._modes.close()

    def gradient(self, of: Tensor, vector: Tensor | None = None) -> Tensor:
        """Vector-Jacobian product of `of` with respect to x_t; may be called several times.

        Args:
            of: A tensor computed from x_t inside the context.
            vector: A tensor of the shape of `of`; ones by default, which for one number per sample, [B], gives the
                gradient of each.

        Returns:
            [B, *].
        """
        vector = torch.ones_like(of) if vector is None else vector
        (found,) = torch.autograd.grad(of, self.x_t, vector, retain_graph=True, create_graph=self.keeps)
        return found

    def answer(self, prediction: Prediction) -> Prediction:
        """The prediction for the caller: detached, unless the caller differentiates."""
        return prediction if self.keeps else prediction.detach()


def recordable(value: Any) -> Any:
    """A value that can be saved for backward; a tensor made in inference mode is cloned."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
