"""What every sampler has in common: the call, the prior, the per-sample noise, the count of network passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_count as check_count  # which the samplers take from here
from sde_diffusion.denoiser import Denoiser, Prediction, check_denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.arguments import check_device, check_dtype, check_latent, check_shape, check_t_end
from sde_diffusion.sampling.noise import Noise, as_seeds
from sde_diffusion.sde import SDE, Time

Callback = Callable[[int, float, Tensor, Tensor], bool | None]
"""Called with (step, t, x_t, x0) after each prediction; returning True ends the walk, whose result is then x0."""

PRIOR_DRAW = 0
"""Number of the draw that gives x_T; steps use the numbers from 1 on."""


@dataclass
class Samples:
    """What a sampler returns.

    Attributes:
        x: The samples, [B, *dims].
        nfe: Network passes (number of function evaluations) for each sample.
        trajectory: With trajectory=True the belief x0 at each network pass, [nfe, B, *dims]; else None.
        times: With trajectory=True the times of these passes; else None.
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    times: list[float] | None = None


class Stop(Exception):  # noqa: N818  a signal, not an error
    """A callback ends the walk, at the state x with the belief x0."""

    def __init__(self, x: Tensor, x0: Tensor) -> None:
        super().__init__()
        self.x = x
        self.x0 = x0


@dataclass
class Walk:
    """One walk from noise to data: what a sampler's `walk` works with.

    Attributes:
        denoiser: The denoiser.
        noise: The samples' noise streams.
        t_end: Where the walk ends.
        conditions: Passed to the denoiser.
        callback: See `Callback`.
        check: Look at each prediction for numbers that are none; only done once a walk has gone wrong.
        nfe: Network passes so far.
    """

    denoiser: Denoiser
    noise: Noise
    t_end: float
    conditions: dict[str, Any] = field(default_factory=dict)
    callback: Callback | None = None
    check: bool = False
    nfe: int = 0

    @property
    def sde(self) -> SDE:
        """The denoiser's path."""
        return self.denoiser.sde

    def predict(self, x: Tensor, t: Time) -> Prediction:
        """Ask the denoiser at (x, t), counting the pass and showing it to the callback."""
        prediction: Prediction = self.denoiser(x, t, **self.conditions)
        self.nfe += 1
        if self.callback is not None or self.check:
            x0 = prediction.x0
            if self.check:
                _expect_finite(x0, f"the denoiser's answer at network pass {self.nfe}, t = {float(t):.6g}")
            if self.callback is not None and self.callback(self.nfe - 1, float(t), x, x0):
                raise Stop(x, x0)
        return prediction

    def normal(self, step: int) -> Tensor:
        """Standard normals of a step (0, 1, ...), each step a draw of its own, [B, *dims]."""
        return self.noise.normal(PRIOR_DRAW + 1 + step)


class Sampler(ABC):
    """A way to walk from noise at t_max back to data.

    Args:
        denoise: Return the belief x0 at the end of the walk (True), or the state at t_end (False).
        t_end: Where the walk ends; the path's t_min if not given.
    """

    def __init__(self, denoise: bool = True, t_end: float | None = None) -> None:
        self.denoise = denoise
        self.t_end = t_end

    @abstractmethod
    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk from x at t_max to t_end.

        Args:
            x: State at t_max, [B, *dims].
            run: Denoiser, noise and bookkeeping.

        Returns:
            The state at t_end, or with `denoise` the belief x0 there, [B, *dims].
        """

    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        seeds: Sequence[int] | None = None,
        latent: Tensor | None = None,
        callback: Callback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool = False,
        **conditions: Any,
    ) -> Samples:
        """Draw samples.

        Args:
            denoiser: The denoiser; its path is walked back.
            shape: (B, *dims), the shape of the batch.
            seeds: One integer for each sample, in a list, an array, a tensor or a range; sample i depends on seeds[i]
                alone (with an adaptive solver, whose steps are those that the whole batch needs, to within its
                tolerance). range(B) if not given.
            latent: x_T, [B, *dims], in place of a draw from the prior N(0, sigma(t_max)^2 I).
            callback: Called with (step, t, x_t, x0) at each network pass; returning True ends the walk.
            device: Where to sample; the denoiser's device if not given.
            dtype: Type of the state, float32 or float64.
            trajectory: Keep the belief x0 at each network pass.
            **conditions: Passed to the denoiser, such as label=, one class for each sample or one for all.

        Returns:
            The samples and the number of network passes.

        Raises:
            TypeError: If the denoiser is none, or does not take one of the conditions.
            ValueError: If shape, seeds and latent do not fit together, t_end lies outside the path, or the path is
                singular there (or at t_max) in a way that the method cannot pass.
            UserError: If a sample is not finite: at which network pass, at what t and which samples.
        """
        return self._perform(self.walk, denoiser, shape, seeds, latent, callback, device, dtype, trajectory, conditions)

    @torch.no_grad()
    def _perform(
        self,
        walk: Callable[[Tensor, Walk], Tensor],
        denoiser: Denoiser,
        shape: Sequence[int],
        seeds: Sequence[int] | None,
        latent: Tensor | None,
        callback: Callback | None,
        device: torch.device | str | None,
        dtype: torch.dtype,
        trajectory: bool,
        conditions: dict[str, Any],
    ) -> Samples:
        """Check the arguments of a call and walk; see `__call__`."""
        check_denoiser(denoiser)
        shape = check_shape(shape)
        seeds = as_seeds(range(shape[0]) if seeds is None else seeds)
        if len(seeds) != shape[0]:
            raise ValueError(f"one seed for each sample is needed: shape {shape} asks for {shape[0]}, got {len(seeds)}")
        if latent is not None:
            check_latent(latent, shape)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (step, t, x_t, x0); got {callback!r}")
        check_dtype(dtype)
        sde = denoiser.sde
        t_end = check_t_end(self.t_end, sde)
        device = check_device(device, denoiser)
        conditions = denoiser.check_conditions(conditions, shape[0], device)
        noise = Noise(seeds, shape[1:], device, dtype)
        if latent is None:
            x = noise.normal(PRIOR_DRAW).mul_(float(sde.sigma(sde.t_max)))
        else:
            x = latent.to(device=device, dtype=dtype)
        beliefs: list[Tensor] = []
        times: list[float] = []

        def record(step: int, t: float, x: Tensor, x0: Tensor) -> bool | None:
            beliefs.append(x0)
            times.append(t)
            return callback(step, t, x, x0) if callback is not None else None

        run = Walk(denoiser, noise, t_end, conditions, record if trajectory else callback)
        result = _finish(walk, x, run)
        if not bool(torch.isfinite(result).all()):
            # Looking at each step would have waited for the device each time. The noise repeats: walk again and look.
            _finish(walk, x, Walk(denoiser, noise, t_end, conditions, check=True))
            _expect_finite(result, "the sampler's result")
        return Samples(result, run.nfe, torch.stack(beliefs) if trajectory else None, times if trajectory else None)


def _finish(walk: Callable[[Tensor, Walk], Tensor], x: Tensor, run: Walk) -> Tensor:
    """The walk's result, or where a callback ended it the belief there."""
    try:
        return walk(x, run)
    except Stop as stop:
        return stop.x0


def _expect_finite(x: Tensor, what: str) -> None:
    fine = torch.isfinite(x).flatten(1).all(1)
    if not bool(fine.all()):
        samples = (~fine).nonzero().flatten().tolist()
        raise UserError(
            f"{what} is not finite for {len(samples)} of {len(x)} samples (numbers {str(samples[:8])[1:-1]}"
            f"{', ...' if len(samples) > 8 else ''}): more steps, a later t_end, or a look at the weights may help"
        )


def singular(sde: SDE) -> ValueError:
    """What to raise where a method's coefficients are infinite at an end of its walk."""
    return ValueError(
        f"this method's coefficients are not finite all along the walk, as {sde} is singular at an end: give it "
        "t_min > 0 (or the sampler t_end > 0) and t_max < 1"
    )
