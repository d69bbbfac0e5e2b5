"""Autoguidance: away from a weaker model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.guidance.adjustment import Adjustment
from sde_diffusion.guidance.combination import Combination, check_same
from sde_diffusion.guidance.scale import GuidanceScale, Scale
from sde_diffusion.sde import Time


class AutoGuidance(Combination):
    """score = score_weak + w (score - score_weak), away from a weaker model of the same data and conditions.

    The weak model should have the same defects as the good one, only more of them: a smaller network, or less training
    on the same data. Unlike classifier-free guidance, this needs no conditions, and does not narrow the samples to the
    middle of a class. w = 1 is the model alone and w = 0 the weak one, in its own passes alone, bit for bit; otherwise
    both are evaluated. Published values of w are 1.2 to 2.1.

    Args:
        denoiser: The denoiser.
        weak: The weak one, which gets the same conditions.
        scale: w, at least 0: a number, one for each sample [B], or a function of log-SNR; see `ClassifierFreeGuidance`.
        interval: (low, high): guide where sigma / alpha is in this interval, and use the denoiser alone elsewhere.
        rescale: See `Adjustment`.
        threshold: See `Adjustment`.
        parallel: See `Adjustment`.

    Raises:
        TypeError: If denoiser or weak is not a denoiser.
        ValueError: If they have different paths or shapes, weak lacks one of the conditions, or an argument is out of
            its range.

    References:
        Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself".
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weak: Denoiser,
        scale: Scale = 2.0,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
        parallel: float = 1.0,
    ) -> None:
        super().__init__()
        check_denoiser(denoiser)
        check_denoiser(weak, "weak")
        check_same({"denoiser": denoiser, "weak": weak}, "autoguidance compares two models of the same data")
        self.denoiser, self.weak = denoiser, weak
        self.sde, self.sigma_data, self.shape = denoiser.sde, denoiser.sigma_data, denoiser.shape
        if weak.conditions is not None and (lost := [c for c in denoiser.conditions or () if c not in weak.conditions]):
            raise ValueError(f"weak must take the same conditions as the denoiser; it takes no {', '.join(lost)}")
        self._scale = GuidanceScale(scale, self.sde, interval, convention="1: the model alone, 0: the weak one")
        self.scale, self.per_sample = self._scale.scale, self._scale.per_sample
        self.adjust = Adjustment(parallel, rescale, threshold)
        self.set_costs()

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; calls those of both denoisers."""
        self._scale.check_batch(batch)
        self.weak.check_conditions(conditions, batch, device, wait)
        return self.denoiser.check_conditions(conditions, batch, device, wait)

    @property
    def experts(self) -> Sequence[Denoiser]:
        """The weak denoiser and the good one."""
        return self.weak, self.denoiser

    def weights_at(self, t: Time | None) -> Sequence[float | torch.Tensor]:
        """1 - w and w."""
        more = self._scale.excess(t)
        return -more, 1 + more

    def conditions_of(self, term: int, conditions: Mapping[str, Any], x_t: torch.Tensor) -> dict[str, Any]:
        """The same for both."""
        return dict(conditions)

    def extra_repr(self) -> str:
        """The arguments other than the denoisers."""
        return f"scale={self._scale}, interval={self._scale.interval}, adjust={self.adjust}"
