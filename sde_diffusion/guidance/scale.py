"""The weight of a guidance, which may depend on the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks.arguments import real
from sde_diffusion.checks.reprs import shown
from sde_diffusion.guidance.interval import NoiseInterval
from sde_diffusion.sde import SDE, Time, float64, number, on_device

Scale = float | Tensor | Callable[[Tensor], Any]
"""A number, one for each sample [B], or a function from log-SNR, [] or [B], to a number or a tensor of its shape."""


class GuidanceScale:
    """w(lambda) = outside + (scale(lambda) - outside) window(lambda), with the window of a `NoiseInterval`.

    Args:
        scale: See `Scale`; at least 0.
        sde: The path.
        interval: (low, high) in sigma / alpha; None: everywhere.
        outside: The weight outside the interval, at which there is no guidance.
        name: Name of the argument, for messages.
        convention: What scales mean, for messages.

    Raises:
        ValueError: If a scale is negative, NaN or infinite, a function's values have another shape than its argument,
            or the interval is empty or outside the path's.
    """

    def __init__(
        self,
        scale: Scale,
        sde: SDE,
        interval: Sequence[float] | None = None,
        outside: float = 1.0,
        name: str = "scale",
        convention: str = "1: the conditional model, 0: the unconditional one; a paper's w is often this less 1",
    ) -> None:
        self.sde, self.outside, self.name, self.convention = sde, outside, name, convention
        self.interval = NoiseInterval.of(interval, sde)
        self.scale: Scale = scale
        if isinstance(scale, Tensor) and scale.ndim == 1:
            self.scale = self._checked(float64(scale))
        elif callable(scale) and not isinstance(scale, type):
            # A few noise levels are enough to find most mistakes before a walk begins.
            times = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)[1:-1]
            self._checked(self._of(scale, sde.log_snr(times).detach()))
        else:
            self.scale = float(self._checked(float64(self._number(scale))))

    def _number(self, value: Any) -> float:
        found = real(value)
        if found is None:
            raise self._wrong(value)
        return float(found)

    def _checked(self, values: Tensor) -> Tensor:
        if not bool(((values >= 0) & (values < math.inf)).all()):
            raise self._wrong(values)
        return values

    def check_batch(self, batch: int) -> None:
        """Check that there is one scale, or one for each sample.

        Raises:
            ValueError: If there are not.
        """
        if isinstance(self.scale, Tensor) and len(self.scale) != batch:
            raise ValueError(
                f"{self.name} must be a number, or one for each of the {batch} samples ({self.convention}); got "
                f"{len(self.scale)}"
            )

    def _wrong(self, value: Any) -> ValueError:
        return ValueError(f"{self.name} must be a finite number of at least 0 ({self.convention}); got {shown(value)}")

    def _of(self, scale: Callable[[Tensor], Any], log_snr: Tensor) -> Tensor:
        found = scale(log_snr)
        found = found if isinstance(found, Tensor) else torch.tensor(self._number(found))
        if found.shape not in ((), log_snr.shape):
            raise ValueError(
                f"{self.name} as a function of log-SNR {list(log_snr.shape)} must return a number or that shape; got "
                f"{list(found.shape)}"
            )
        return float64(found).expand(log_snr.shape)

    @property
    def per_sample(self) -> bool:
        """Whether there is a scale for each sample of a batch."""
        return isinstance(self.scale, Tensor)

    @property
    def fixed(self) -> float | None:
        """The scale if it is a number, else None."""
        return self.scale if isinstance(self.scale, float) else None

    def excess(self, t: Time | None) -> float | Tensor:
        """W(t) - outside.

        Args:
            t: [] or [B]; None: somewhere on the edge of the interval, where no weight is zero if it is not zero
                everywhere.

        Returns:
            A number if the scale is the same everywhere, or if t is a single time on the CPU (unless a gradient passes
            through it), else [] or [B].
        """
        if isinstance(self.scale, float) and (t is None or self.interval is None):
            return (self.scale - self.outside) * (1.0 if self.interval is None else 0.5)
        if t is None:
            return torch.full((), math.nan, dtype=torch.float64)
        log_snr = self.sde.log_snr(float64(t))
        scale = self._of(self.scale, log_snr) if callable(self.scale) else self.scale
        found = (on_device(scale, log_snr.device) if isinstance(scale, Tensor) else scale) - self.outside
        if self.interval is not None:
            found = found * self.interval.window(log_snr)
        if isinstance(found, Tensor) and found.ndim == 0 and found.device.type == "cpu":
            return number(found)
        return found

    def __repr__(self) -> str:
        return f"{self.scale:g}" if isinstance(self.scale, float) else shown(self.scale)
