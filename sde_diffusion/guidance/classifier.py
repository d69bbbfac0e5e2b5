"""Classifier guidance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_choice
from sde_diffusion.checks.reprs import shown
from sde_diffusion.conditions import Label
from sde_diffusion.denoiser import Denoiser, InputGradient, Prediction, check_denoiser, in_eval_mode
from sde_diffusion.guidance.combination import is_used
from sde_diffusion.guidance.scale import GuidanceScale, Scale
from sde_diffusion.sde import Time, expand, float64, on_device

PLACES = ("x_t", "x0")
"""What a classifier may be shown: the noisy state, or the belief about the data."""


class ClassifierGuidance(Denoiser):
    """score + w grad log p(c | x_t), with the class c given as label=: x0 += w (sigma^2 / alpha) grad log p(c | x_t).

    w = 0 is the denoiser alone, and w = 1 the conditional model if denoiser and classifier are exact, by Bayes' rule.
    Other w give the same as `ClassifierFreeGuidance` would: samples do not follow p(x) p(c | x)^w. If the denoiser
    takes a label itself, it gets it too, and w adds to the 1 that it already has. A call costs the passes of the
    denoiser, and one forward and backward pass of the classifier, which are not counted.

    Args:
        denoiser: The denoiser.
        classifier: Function or module with logits (not normalised) [B, classes]. With on="x_t" it is called as
            `classifier(x_t, t)`, t [B], and should have been trained on noisy data of the same path. A module is used
            in evaluation mode. If it has an attribute `n_classes`, labels are checked before a walk begins; if it has
            `sde`, this must be the denoiser's.
        scale: w, at least 0: a number, one for each sample [B], or a function of log-SNR; see `ClassifierFreeGuidance`.
        on: "x_t", or "x0": a classifier of data without noise, called as `classifier(x0)`. This replaces
            E[p(c | x_0) | x_t] by p(c | x0), which is biased, since p(c | x0) is too sure of the class at high noise.
            If the class is the sign, and data lie within 0.1 of +-1 (80%) and +-2.2 (20%), the probability flow draws
            11% at 2.2 and the reverse SDE 47% (2-Wasserstein distances to the conditional 0.30 and 0.55, against 0.02
            and 0.06 for on="x_t"). It also costs a backward pass through the denoiser's network.
        interval: (low, high): guide where sigma / alpha is in this interval only; the edges are smooth.

    Raises:
        TypeError: If denoiser is not a denoiser, or classifier not a function.
        ValueError: If a scale is negative or not finite, `on` is unknown, the classifier is of another path, or the
            interval is empty or outside the path's; from a call, if the label is missing or out of range, or the logits
            have another shape or are NaN.

    References:
        Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4.2 (there the mean of a DDPM
        step is moved, which gives less guidance, and none in the last step); Song et al. 2021, section 5.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: Callable[..., Tensor],
        scale: Scale = 1.0,
        on: str = "x_t",
        interval: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_denoiser(denoiser)
        if isinstance(classifier, type) or not callable(classifier):
            raise TypeError(f"classifier must be a function or a module (an instance); got {shown(classifier)}")
        self.denoiser, self.classifier = denoiser, classifier
        self.sde, self.sigma_data, self.shape = denoiser.sde, denoiser.sigma_data, denoiser.shape
        self.passes = denoiser.passes
        self.gradients = denoiser.gradients + (denoiser.passes if on == "x0" else 0)
        path = getattr(classifier, "sde", self.sde)
        if on == "x_t" and path != self.sde:
            raise ValueError(f"classifier must be of the same path as the denoiser, {self.sde}; it is of {path}")
        self.on = check_choice("on", on, PLACES)
        what = "1: the conditional model if the denoiser is unconditional, 0: no guidance"
        self._scale = GuidanceScale(scale, self.sde, interval, 0.0, convention=what)
        self.scale = self._scale.scale
        self.per_sample = denoiser.per_sample or self._scale.per_sample
        self._n_classes: int | None = getattr(classifier, "n_classes", None)

    @property
    def conditions(self) -> Collection[str] | None:
        """Those of the denoiser, and label."""
        inner = self.denoiser.conditions
        return None if inner is None else tuple(dict.fromkeys((*inner, "label")))

    def passes_at(self, t: Time) -> int:
        """Network passes that a call at t costs: those of the denoiser."""
        return self.denoiser.passes_at(t)

    def gradients_at(self, t: Time) -> int:
        """Vector-Jacobian products of the network that a call at t costs."""
        through = self.on == "x0" and is_used(self._scale.excess(t))
        return self.denoiser.gradients_at(t) + (self.denoiser.passes_at(t) if through else 0)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; label becomes int64 [B]. n_classes means no label: no guidance.

        Raises:
            ValueError: Also if there is no label.
        """
        label = conditions.get("label")
        self._scale.check_batch(batch)
        if label is None and self._scale.fixed != 0:
            raise ValueError(f"classifier guidance with scale={self._scale} needs a class: give label=")
        inner = self.denoiser.conditions
        own = {name: value for name, value in conditions.items() if name != "label" or inner is None or name in inner}
        known = self.denoiser.check_conditions(own, batch, device, wait)
        if label is not None and self._n_classes is not None:
            label = Label(self._n_classes).check("label", label, batch, device, wait)
        return known if label is None else {**known, "label": label}

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t); see `Denoiser.forward`.

        Raises:
            ValueError: If the classifier's answer is not [B, classes], or is NaN.
        """
        label, inner = conditions.get("label"), self.denoiser.conditions
        own = {name: value for name, value in conditions.items() if name != "label" or inner is None or name in inner}
        w = self._scale.excess(t)
        if label is None and is_used(w):
            raise ValueError(f"classifier guidance with scale={self._scale} needs a class: give label=")
        if label is None or not is_used(w):
            return self._predict(x_t, t, own)
        if self.on == "x_t":  # the denoiser need not be differentiated
            prediction = self._predict(x_t, t, own)
            with InputGradient(x_t, conditions, t, self) as inside:
                g = inside.gradient(self._log_prob(inside.conditions["label"], inside.x_t, _times(inside.t, x_t)))
            return prediction.shifted(self._step(w, t, g) * g)
        with InputGradient(x_t, {**own, "label": label}, t, self) as inside:
            t, label = inside.t, inside.conditions["label"]
            prediction = self._predict(inside.x_t, t, {name: inside.conditions[name] for name in own})
            g = inside.gradient(self._log_prob(label, prediction.x0))
            return inside.answer(prediction.shifted(self._step(w, t, g) * g))

    def _predict(self, x_t: Tensor, t: Time, conditions: Mapping[str, Any]) -> Prediction:
        prediction: Prediction = self.denoiser(x_t, t, **conditions)
        return prediction

    def _step(self, w: float | Tensor, t: Time, g: Tensor) -> Tensor:
        """W sigma^2 / alpha, shaped to broadcast against g; 0 where alpha is 0, so that x_t has nothing of the data."""
        t = float64(t)  # a single time on the CPU stays there, and so do its coefficients
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return expand(torch.where(alpha > 0, sigma.square() / torch.where(alpha > 0, alpha, 1.0), 0.0) * w, g)

    def _log_prob(self, label: Tensor, *seen: Tensor) -> Tensor:
        """Log p(c | seen) of each sample, [B], so that the gradient of one does not depend on the size of the batch."""
        module = self.classifier if isinstance(self.classifier, nn.Module) else None
        if module is None:
            logits = self.classifier(*seen)
        else:
            with in_eval_mode(module):
                logits = module(*seen)
        batch = len(seen[0])
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch or not logits.shape[1]:
            found = list(logits.shape) if isinstance(logits, Tensor) else shown(logits)
            raise ValueError(f"the classifier must return logits [{batch}, classes]; got {found}")
        if not logits.requires_grad:
            raise ValueError("the classifier must be differentiable, and its logits have no gradient")
        if logits.device.type == "cpu" and bool(logits.isnan().any()):
            raise ValueError(
                "the classifier's logits are NaN: it may have been trained at other noise levels or scales"
            )
        n_classes, first = logits.shape[1], self._n_classes is None
        if not first and n_classes != self._n_classes:
            raise ValueError(f"the classifier has {self._n_classes} classes, but returns {n_classes} logits")
        self._n_classes = n_classes
        label = Label(n_classes).check("label", label, batch, logits.device, wait=first)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        padded = torch.cat([logits.log_softmax(1), logits.new_zeros(batch, 1)], 1)  # log 1 for "no label"
        return padded.gather(1, label.unsqueeze(1)).squeeze(1)

    def extra_repr(self) -> str:
        """The arguments other than denoiser and classifier."""
        return f"scale={self._scale}, on={self.on!r}, interval={self._scale.interval}"


def _times(t: Time, x_t: Tensor) -> Tensor:
    """T for each sample, [B], of at least single precision."""
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    return on_device(float64(t), x_t.device, dtype).expand(len(x_t))
