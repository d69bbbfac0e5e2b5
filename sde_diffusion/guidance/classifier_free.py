"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.errors import did_you_mean
from sde_diffusion.guidance.adjustment import Adjustment
from sde_diffusion.guidance.combination import Combination, is_used
from sde_diffusion.guidance.scale import GuidanceScale, Scale
from sde_diffusion.sde import Time


class UntrainedError(ValueError):
    """The unconditional model is needed, but no null value of a condition is given."""


class ClassifierFreeGuidance(Combination):
    """score = score_u + w (score_c - score_u), from the unconditional and the conditional score of one denoiser.

    w = 1 is the conditional model and w = 0 the unconditional one, in one network pass each, bit for bit. Otherwise
    both are evaluated in one pass of twice the batch, which counts as two. (In papers w is often one less.) Samples do
    not follow p_c^w p_u^(1-w), which has this score only at t = 0, and those of the reverse SDE have another
    distribution than those of the probability flow; the Langevin steps of a `PredictorCorrector` bring them to it.
    `log_likelihood` of a guided denoiser is the density of its own flow.

    With a negative condition n, from which samples are to move away,

        score = score_u + w (score_c - score_u) - v (score_n - score_u),

    in one pass of three times the batch. By default v = w - 1, as if n took the place of the unconditional model:
    score_n + w (score_c - score_n), in two passes.

    CFG++ (Chung et al. 2024) is not a combination of beliefs: for DDIM it equals this guidance with a scale that grows
    without bound with the number of steps.

    Args:
        denoiser: A denoiser that was trained with and without the conditions.
        scale: w, at least 0: a number, one for each sample [B], or a function from the log-SNR lambda, [] or [B], to a
            number or a tensor of its shape.
        null: For each condition that the unconditional model does not get, the value that means "none", such as
            {"label": n_classes}: a number, or a tensor of the shape of one sample's condition. Other conditions are
            passed in both cases.
        interval: (low, high): guide where sigma / alpha is in this interval, and use the conditional model alone, in
            one pass, elsewhere. The edges are smooth: see `NoiseInterval`. None: guide everywhere.
        rescale: phi in [0, 1], against the contrast that a large scale adds to images; see `Adjustment`.
        threshold: p in (0, 1], such as 0.995, for data in [-1, 1]: dynamic thresholding; see `Adjustment`.
        parallel: eta >= 0, the factor of the part of the guidance that is parallel to x0_c; see `Adjustment`.
        negative: Values of the negative condition, such as {"label": 7}, in the same form as `null`.
        negative_scale: v, at least 0, in the same form as `scale`; None: w - 1.

    Raises:
        TypeError: If denoiser is not a denoiser, or null or negative not a mapping.
        ValueError: If a scale is negative or not finite, null or negative name no condition of the denoiser, negative
            has no effect, the interval is empty or outside the path's, or another argument out of its range; from a
            call, if none of the conditions of `null` is given, or all are equal to `negative`.

    References:
        Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6; Kynkaanniemi et al. 2024, "Applying
        Guidance in a Limited Interval"; Bradley & Nakkiran 2024, "Classifier-Free Guidance is a Predictor-Corrector".
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: Scale = 2.0,
        null: Mapping[str, Any] | None = None,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
        parallel: float = 1.0,
        negative: Mapping[str, Any] | None = None,
        negative_scale: Scale | None = None,
    ) -> None:
        super().__init__()
        check_denoiser(denoiser)
        self.denoiser, self.shape = denoiser, denoiser.shape
        self.sde, self.sigma_data = denoiser.sde, denoiser.sigma_data
        self._scale = GuidanceScale(scale, self.sde, interval)
        self.scale = self._scale.scale
        self.adjust = Adjustment(parallel, rescale, threshold)
        self.null, self.negative = self._values("null", null), self._values("negative", negative)
        self.negative_scale: GuidanceScale | None = None
        if negative_scale is not None:
            what = "0: no negative condition"
            self.negative_scale = GuidanceScale(negative_scale, self.sde, interval, 0.0, "negative_scale", what)
        scales = (self._scale, self.negative_scale)
        self.per_sample = any(one is not None and one.per_sample for one in scales)
        self._check_negative()
        if not self.null and is_used(self.weights_at(None)[0]):
            raise UntrainedError(
                "null must say which value of a condition stands for none, such as {'label': 10} for 10 classes; it "
                "names no condition"
            )
        self.set_costs()

    def _values(self, name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must map conditions to values, such as {{'label': 10}}; got {shown(given)}")
        known = self.denoiser.conditions
        if known is not None and (strange := [one for one in given if one not in known]):
            takes = f"takes {', '.join(known)}{did_you_mean(strange[0], known)}" if known else "takes no conditions"
            raise ValueError(f"{name} names {', '.join(strange)}, and {type(self.denoiser).__name__} {takes}")
        return dict(given)

    def _check_negative(self) -> None:
        own = self.negative_scale
        if self.negative and (self._scale.fixed == 1 if own is None else own.fixed == 0):
            raise ValueError(
                "negative has no effect at scale=1: give a scale greater than 1, or negative_scale"
                if own is None
                else "negative has no effect with negative_scale=0"
            )
        if own is not None and not self.negative:
            raise ValueError("negative_scale needs a negative condition, such as negative={'label': 7}")

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; calls that of the wrapped denoiser.

        Raises:
            ValueError: Also if none of the conditions of `null` is given, and the scale needs one, or if they are equal
                to `negative` for all samples.
        """
        for scale in (self._scale, self.negative_scale):
            if scale is not None:
                scale.check_batch(batch)
        known = self.denoiser.check_conditions(conditions, batch, device, wait)
        self._left_out(known)
        if self.negative and wait:
            negative = self.denoiser.check_conditions({**known, **self.negative}, batch, device, wait)
            if all(_equal(negative[name], known.get(name)) for name in self.negative):
                what = ", ".join(f"{name}={shown(value)}" for name, value in self.negative.items())
                raise ValueError(f"negative must differ from the condition itself; both are {what}")
        return known

    def _left_out(self, conditions: Mapping[str, Any]) -> list[str]:
        """The names of the given conditions that the unconditional model does not get."""
        by = {**self.null, **self.negative}
        found = [name for name in by if conditions.get(name) is not None]
        if not found and self._scale.fixed not in (0, 1):
            needed = " or ".join(f"{name}=" for name in by)
            raise ValueError(f"guidance with scale={self._scale} needs a condition to go by: give {needed}")
        return found

    @property
    def experts(self) -> Sequence[Denoiser]:
        """The denoiser without the conditions, with the negative ones, and with the conditions."""
        return (self.denoiser,) * 3

    def weights_at(self, t: Time | None) -> Sequence[float | Tensor]:
        """1 - w + v, -v and w."""
        more = self._scale.excess(t)
        if not self.negative:
            return -more, 0.0, 1 + more
        if self.negative_scale is None:
            return 0.0, -more, 1 + more
        away = self.negative_scale.excess(t)
        return away - more, -away, 1 + more

    def conditions_of(self, term: int, conditions: Mapping[str, Any], x_t: Tensor) -> dict[str, Any]:
        """Those of the call, with null values or negative ones in place of some."""
        names = self._left_out(conditions) or list(self.null)
        values = ({name: self.null[name] for name in names if name in self.null}, self.negative, {})[term]
        return {**conditions, **{name: _for_each(value, x_t) for name, value in values.items()}}

    def extra_repr(self) -> str:
        """The arguments other than the denoiser."""
        interval = self._scale.interval
        ends = None if interval is None else (interval.low, interval.high)
        text = f"scale={self._scale}, null={shown(self.null)}, interval={ends}, adjust={self.adjust}"
        away = "" if self.negative_scale is None else f", negative_scale={self.negative_scale}"
        return f"{text}, negative={shown(self.negative)}{away}" if self.negative else text


def _for_each(value: Any, x_t: Tensor) -> Tensor:
    """A value for each sample, [B, *]."""
    if isinstance(value, Tensor):
        return value.to(x_t.device, non_blocking=True).expand(len(x_t), *value.shape)
    return torch.full((len(x_t),), value, device=x_t.device)


def _equal(a: Any, b: Any) -> bool:
    return bool((a == b).all()) if isinstance(a, Tensor) and isinstance(b, Tensor) else False
