"""One walk along the path: the denoiser, the noise, the count of network passes, the callback and the frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_finite
from sde_diffusion.denoiser import Denoiser, Prediction
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.frames import Frames
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.sde import SDE, Number, Time, value_of
from sde_diffusion.sde.truncated import TruncatedSDE

Callback = Callable[[int, float, Tensor, Tensor], bool | None]
"""Called with (step, t, x_t, x0) after each prediction; if it returns True, the walk ends and returns x0. The tensors
may be kept, but not written to: the walk goes on with them."""

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
        t_start: Where the walk begins; the path's t_max if None.
        gradients: Vector-Jacobian products of the denoiser so far.
        given: Whether the state at t_start was given (`latent`) rather than drawn from the prior.
        log_evidence: Estimates of log p(y), [B], of samplers that have some.
        replace: Function of (x_t, t) that changes the state at each time of the walk; None for none.
        fades: Whether it changes nothing below some noise level, where corrector steps would lead away again.
        planned: Whether these times have been announced.
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
    t_start: float | None = None
    gradients: int = 0
    given: bool = False
    log_evidence: Tensor | None = None
    replace: Callable[[Tensor, Time], Tensor] | None = None
    fades: bool = False
    planned: bool = False

    @cached_property
    def sde(self) -> SDE:
        """The denoiser's path, up to t_start."""
        sde = self.denoiser.sde
        if self.t_start is None or self.t_start == sde.t_max:
            return sde
        return TruncatedSDE(path=sde, t_min=min(sde.t_min, self.t_end), t_max=self.t_start)

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
            ValueError: If the state is to be changed at each time of the walk, and the sampler has announced none.
        """
        if self.replace is not None and not self.planned:
            raise ValueError(
                "replacement needs a sampler with steps of a grid, at which the state can be changed, such as "
                "AncestralSampler, HeunSampler, DPMSolver or PredictorCorrector"
            )
        prediction: Prediction = self.denoiser(x, t, **self.conditions)
        self.report(prediction, x, t, self.denoiser.passes_at(t), self.denoiser.gradients_at(t))
        return prediction

    def report(self, prediction: Prediction, x: Tensor, t: Time, passes: int, gradients: int) -> None:
        """Count the passes and vector-Jacobian products of a prediction at (x, t), and call the callback."""
        self.nfe += passes
        self.gradients += gradients
        step, self.step = self.step, self.step + 1
        if self.callback is not None or self.check:
            x0 = prediction.x0
            if self.check:
                what = f"the denoiser's output at network pass {self.nfe}, t = {value_of(t):.6g}"
                check_finite(what, x0, REMEDY, UserError)
            if self.callback is not None and self.callback(step, value_of(t), x, x0):
                raise Stop(x, x0)

    def check_correctable(self, sampler: str) -> None:
        """Check that Langevin steps do no harm.

        Raises:
            ValueError: If they would lead away from a measurement with noise.
        """
        if self.fades:
            raise ValueError(
                f"{sampler} cannot replace the known part of a measurement with noise: below its noise level, Langevin "
                "steps lead away from it; take noise=0, or a sampler without them, such as AncestralSampler"
            )

    def plan(self, times: Tensor) -> None:
        """Announce the times of the walk, [N + 1], so that frames can be chosen among them."""
        self.planned = True
        if self.frames is not None:
            self.frames.choose(times)

    def visit(self, x: Tensor, t: Time) -> Tensor:
        """Report the state x at one of these times, and continue with the state that is returned.

        This is x itself, unless the walk is one that replaces what is known (`replace`). It is recorded if that time
        was chosen.
        """
        if self.replace is not None:
            x = self.replace(x, t)
        if self.frames is not None:
            self.frames.visit(x, t)
        return x

    def normal(self, step: int) -> Tensor:
        """Standard normals of step 0, 1, ..., independent of those of other steps, [B, *dims]."""
        return self.noise.normal(PRIOR_DRAW + 1 + step)


def completed(walk: Callable[[Tensor, Walk], Tensor], begun: Callable[[], Tensor], run: Walk, again: Walk) -> Tensor:
    """The walk's result.

    Args:
        walk: The sampler's `walk` or `climb`.
        begun: Makes the state at its beginning, which is then in the hands of the walk alone.
        run: The walk.
        again: The same walk with checks, which is taken if the result has NaN or infinite numbers.

    Raises:
        UserError: If it has NaN or infinite numbers.
    """
    result = _finish(walk, begun, run)
    if not bool(torch.isfinite(result).all()):
        # Checking each step would have waited for the device each time. The noise can be repeated: walk again, and
        # check.
        _finish(walk, begun, again)
        check_finite("the sampler's result", result, REMEDY, UserError)
    return result


def _finish(walk: Callable[[Tensor, Walk], Tensor], begun: Callable[[], Tensor], run: Walk) -> Tensor:
    """The walk's result, or the belief where a callback ended it."""
    try:
        return walk(begun(), run)
    except Stop as stop:
        return stop.x0


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
