"""One walk along the path: the denoiser, the noise, the count of network passes, the callback and the frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sde_diffusion.checks import check_finite
from sde_diffusion.denoiser import Denoiser, Prediction
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.frames import Frames
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.sde import SDE, Number, Time, value_of

Callback = Callable[[int, float, Tensor, Tensor], bool | None]
"""Called with (step, t, x_t, x0) after each prediction; if it returns True, the walk ends and returns x0."""

REMEDY = ": more steps, a later t_end, or other weights may help"

PRIOR_DRAW = 0
"""Number of the draw of x_T; steps use the numbers from 1 on."""


class Stop(Exception):  # noqa: N818  a signal, not an error
    """A callback has ended the walk, at the state x with the belief x0."""

    def __init__(self, x: Tensor, x0: Tensor) -> None:
        super().__init__()
        self.x = x
        self.x0 = x0


@dataclass
class Walk:
    """One walk from noise to data, as passed to a sampler's `walk`.

    Attributes:
        denoiser: The denoiser.
        noise: The samples' noise streams.
        t_end: Where the walk ends.
        conditions: Passed to the denoiser.
        callback: See `Callback`.
        check: Check each prediction for NaN and infinite numbers; used to repeat a walk whose result has some.
        nfe: Network passes so far.
        step: Number of the next prediction, for callbacks; with guidance a prediction costs several passes.
        frames: States to record along the walk; None for none.
    """

    denoiser: Denoiser
    noise: Noise
    t_end: float
    conditions: dict[str, Any] = field(default_factory=dict)
    callback: Callback | None = None
    check: bool = False
    nfe: int = 0
    step: int = 0
    frames: Frames | None = None

    @property
    def sde(self) -> SDE:
        """The denoiser's path."""
        return self.denoiser.sde

    def predict(self, x: Tensor, t: Time) -> Prediction:
        """Ask the denoiser, with the walk's conditions; counts its network passes and calls the callback.

        Args:
            x: State at t, [B, *dims].
            t: One time for the whole batch, [], in [t_end, t_max].

        Returns:
            The prediction at (x, t): x0, eps, score and velocity, [B, *dims] each.

        Raises:
            Stop: If the callback returns True; the sampler's call catches it.
            UserError: With `check`, if x0 has NaN or infinite numbers.
        """
        prediction: Prediction = self.denoiser(x, t, **self.conditions)
        self.nfe += self.denoiser.passes_at(t)
        step, self.step = self.step, self.step + 1
        if self.callback is not None or self.check:
            x0 = prediction.x0
            if self.check:
                what = f"the denoiser's output at network pass {self.nfe}, t = {value_of(t):.6g}"
                check_finite(what, x0, REMEDY, UserError)
            if self.callback is not None and self.callback(step, value_of(t), x, x0):
                raise Stop(x, x0)
        return prediction

    def plan(self, times: Tensor) -> None:
        """Announce the times of the walk, [N + 1], so that frames can be chosen among them."""
        if self.frames is not None:
            self.frames.choose(times)

    def visit(self, x: Tensor, t: Time) -> None:
        """Report the state x at one of these times; it is recorded if that time was chosen."""
        if self.frames is not None:
            self.frames.visit(x, t)

    def normal(self, step: int) -> Tensor:
        """Standard normals of step 0, 1, ..., independent of those of other steps, [B, *dims]."""
        return self.noise.normal(PRIOR_DRAW + 1 + step)


def singular(sde: SDE) -> ValueError:
    """The error to raise if a method's coefficients are infinite at an end of its walk."""
    return ValueError(
        f"this method's coefficients are not finite all along the walk, as {sde} is singular at an end: give it "
        "t_min > 0 (or the sampler t_end > 0) and t_max < 1"
    )


def check_coefficients(rows: Iterable[Iterable[Number]], sde: SDE) -> None:
    """Check that the coefficients of all steps are finite; at a singular end of a path some are not.

    Raises:
        ValueError: If one is not.
    """
    if not all(math.isfinite(value_of(number)) for row in rows for number in row):
        raise singular(sde)
