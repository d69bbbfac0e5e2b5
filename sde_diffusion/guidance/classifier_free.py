"""Classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_fraction, as_number
from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser import Denoiser, Prediction, check_denoiser, repeated
from sde_diffusion.guidance.interval import NoiseInterval
from sde_diffusion.sde import Time, float64, number


class UntrainedError(ValueError):
    """The unconditional model is needed, but no null value of a condition is given."""


class ClassifierFreeGuidance(Denoiser):
    """score = score_u + w (score_c - score_u), from the unconditional and the conditional score of one denoiser.

    w = 1 is the conditional model and w = 0 the unconditional one, in one network pass each. Otherwise both are
    evaluated in one pass of twice the batch, which counts as two. (In papers w is often one less.) Samples do not
    follow p_c^w p_u^(1-w), which has this score only at t = 0, and those of the reverse SDE have another distribution
    than those of the probability flow. `log_likelihood` of a guided denoiser is the density of its own flow.

    Args:
        denoiser: A denoiser that was trained with and without the conditions.
        scale: w, at least 0.
        null: For each condition that the unconditional model does not get, the value that means "none", such as
            {"label": n_classes}: a number, or a tensor of the shape of one sample's condition. Other conditions are
            passed in both cases.
        interval: (low, high): guide where sigma / alpha is in this interval, and use the conditional model alone, in
            one pass, elsewhere. The edges are smooth: see `NoiseInterval`. None: guide everywhere.
        rescale: phi in [0, 1]: the guided x0 is multiplied by 1 - phi + phi std(x0_c) / std(x0), with the standard
            deviation of each sample over its dimensions. It reduces the contrast that a large scale adds to images.

    Raises:
        TypeError: If denoiser is not a denoiser, or null not a mapping.
        ValueError: If scale is negative or not finite, null names no condition of the denoiser, the interval is empty
            or outside the path's, or rescale outside [0, 1]; from a call, if none of the conditions of `null` is given.

    References:
        Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6; Kynkaanniemi et al. 2024, "Applying
        Guidance in a Limited Interval"; Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are
        Flawed", section 3.4 (there of the network's output, here of x0).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        null: Mapping[str, Any] | None = None,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__()
        check_denoiser(denoiser)
        self.denoiser, self.sde, self.sigma_data = denoiser, denoiser.sde, denoiser.sigma_data
        self.scale = as_number("scale", scale)
        if not 0 <= self.scale < math.inf:
            raise ValueError(
                f"scale must be a finite number of at least 0 (1: the conditional model, 0: the unconditional one; a "
                f"paper's w is often this less 1); got {shown(scale)}"
            )
        self.null = self._check_null({} if null is None else null)
        self.interval = NoiseInterval.of(interval, self.sde)
        self.rescale = as_fraction("rescale", rescale)
        most = max(self._beliefs(w) for w in (self.scale, 1.0 if self.interval is None else 0.5 * (1 + self.scale)))
        self.passes = most * denoiser.passes

    def _check_null(self, null: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(null, Mapping):
            raise TypeError(f"null must map conditions to values, such as {{'label': 10}}; got {shown(null)}")
        known = self.denoiser.conditions
        if known is not None and (strange := [name for name in null if name not in known]):
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"null names {', '.join(strange)}, and {type(self.denoiser).__name__} {takes}")
        if not null and self.scale != 1:
            raise UntrainedError(
                "null must say which value of a condition stands for none, such as {'label': 10} for 10 classes; it "
                "names no condition"
            )
        return dict(null)

    @property
    def conditions(self) -> Collection[str] | None:
        """The conditions of the wrapped denoiser."""
        return self.denoiser.conditions

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; calls that of the wrapped denoiser.

        Raises:
            ValueError: Also if none of the conditions of `null` is given, and the scale needs one.
        """
        known = self.denoiser.check_conditions(conditions, batch, device, wait)
        self._left_out(known)
        return known

    def _left_out(self, conditions: Mapping[str, Any]) -> list[str]:
        """The names of the given conditions that the unconditional model does not get."""
        found = [name for name in self.null if conditions.get(name) is not None]
        if not found and self.scale not in (0, 1):
            needed = " or ".join(f"{name}=" for name in self.null)
            raise ValueError(f"guidance with scale={self.scale:g} needs a condition to go by: give {needed}")
        return found

    def weight(self, t: Time) -> float | Tensor:
        """w at t: a number if t is a single time on the CPU (unless a gradient passes through), else of t's shape."""
        if self.interval is None:
            return self.scale
        t = float64(t)
        w = 1 + (self.scale - 1) * self.interval.window(self.sde.log_snr(t))
        return number(w) if t.ndim == 0 and t.device.type == "cpu" else w

    @staticmethod
    def _beliefs(w: float | Tensor) -> int:
        """Number of predictions that a weight needs."""
        return 2 if isinstance(w, Tensor) or w not in (0, 1) else 1

    def passes_at(self, t: Time) -> int:
        """Network passes that a call at t costs: those of the denoiser, twice unless w is 0 or 1 there."""
        return self._beliefs(self.weight(t)) * self.denoiser.passes_at(t)

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t); see `Denoiser.forward`.

        Raises:
            ValueError: If none of the conditions of `null` is given, and the scale needs one.
        """
        left_out, w = self._left_out(conditions), self.weight(t)
        if self._beliefs(w) == 1:
            nulls = {name: self._null(name, x_t) for name in (self.null if w == 0 else ())}
            one: Prediction = self.denoiser(x_t, t, **{**conditions, **nulls})
            return one
        both = {name: repeated(value, 2, len(x_t)) for name, value in conditions.items()}
        for name in left_out:
            null = self._null(name, x_t)
            given = torch.as_tensor(conditions[name], device=x_t.device).expand_as(null)
            dtype = torch.promote_types(null.dtype, given.dtype)
            both[name] = torch.cat([null.to(dtype), given.to(dtype)])
        times = t.repeat(2) if isinstance(t, Tensor) and t.shape == x_t.shape[:1] else t
        unconditional, conditional = self.denoiser(torch.cat([x_t, x_t]), times, **both).chunk(2)
        return self._rescaled(Prediction.lerp(unconditional, conditional, w), conditional)

    def _null(self, name: str, x_t: Tensor) -> Tensor:
        """The null value of a condition for each sample, [B, *]."""
        value = self.null[name]
        if isinstance(value, Tensor):
            return value.to(x_t.device, non_blocking=True).expand(len(x_t), *value.shape)
        return torch.full((len(x_t),), value, device=x_t.device)

    def _rescaled(self, guided: Prediction, conditional: Prediction) -> Prediction:
        if not self.rescale:
            return guided
        x0 = guided.x0
        now, wanted = (x.flatten(1).std(1, correction=0) for x in (x0, conditional.x0))
        factor = torch.where(now > 0, wanted / now - 1, 0.0)  # one dimension has no contrast
        return guided.shifted(self.rescale * factor.reshape(-1, *(1,) * (x0.ndim - 1)) * x0)

    def extra_repr(self) -> str:
        """The arguments other than the denoiser."""
        ends = None if self.interval is None else (self.interval.low, self.interval.high)
        return f"scale={self.scale:g}, null={shown(self.null)}, interval={ends}, rescale={self.rescale:g}"
