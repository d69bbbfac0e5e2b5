"""The base class of all samplers: the call, which checks its arguments, draws x_T and starts the walk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_batch, check_bool
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.denoiser import Denoiser, check_denoiser, in_eval_mode
from sde_diffusion.sampling.arguments import (
    check_device,
    check_dtype,
    check_latent,
    check_shape,
    check_t_end,
    check_t_start,
)
from sde_diffusion.sampling.frames import EachPass, Frames
from sde_diffusion.sampling.noise import Noise, as_seeds
from sde_diffusion.sampling.walk import PRIOR_DRAW, Callback, Stop, Walk, completed
from sde_diffusion.sde import GRIDS, SDE, Grid, number


@dataclass
class Samples:
    """What a sampler returns.

    Attributes:
        x: The samples, [B, *dims].
        nfe: Network passes (number of function evaluations) for each sample.
        trajectory: The beliefs x0 along the walk, [frames, B, *dims]; None unless asked for.
        times: The times of these frames; None unless asked for.
        states: The states x_t at these times, [frames, B, *dims]; None unless asked for.
        gradients: Vector-Jacobian products of the network for each sample, each about as costly as a pass.
        log_evidence: Estimates of log p(y) for each sample, [B], float64; None unless the sampler makes some.
        latents: The latent variables of which x was made, z_1 first, [B, *] each; None if there are none.
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    times: list[float] | None = None
    states: Tensor | None = None
    gradients: int = 0
    log_evidence: Tensor | None = None
    latents: Sequence[Tensor] | None = None


class Sampler(ShowsArguments, ABC):
    """A way to walk from noise at t_max (or a noisy state at t_start) back to data.

    A subclass defines `walk`. Each constructor argument is an attribute of the same name: the repr, which can be
    evaluated, names the class and the arguments that differ from their defaults.

    Args:
        denoise: Return the belief x0 at the end of the walk (True), or the state at t_end (False).
        t_end: The time where the walk ends; the path's t_min by default.
        grid: Spacing of the times, a name of `GRIDS` or a `Grid`; the path's default grid if None.

    Raises:
        ValueError: If denoise is not a bool, t_end not a number, or grid neither a name nor a `Grid`.
    """

    always_shown: tuple[str, ...] | None = ()

    states: int = 1
    """Number of states that a walk holds for each sample."""

    has_evidence: ClassVar[bool] = False
    """Whether `Samples.log_evidence` is not None."""

    def __init__(self, denoise: bool = True, t_end: float | None = None, grid: str | Grid | None = None) -> None:
        self.denoise = check_bool("denoise", denoise)
        self.t_end = None if t_end is None else as_number("t_end", t_end)
        self.grid: Grid | None = None if grid is None else as_instance("grid", grid, GRIDS, Grid)

    def grid_on(self, sde: SDE) -> Grid:
        """The grid of a walk on a path."""
        return sde.default_grid() if self.grid is None else self.grid

    @abstractmethod
    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk from x at the path's t_max to t_end; `run.sde` is the path, up to t_start if the walk begins there.

        Args:
            x: State at run.sde.t_max, [B, *dims].
            run: The denoiser, the noise, and the record of the walk.

        Returns:
            The state at t_end, or with `denoise` the belief x0 there, [B, *dims].
        """

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """Walk from x at t_end up to run.sde.t_max, for `invert`; samplers with a deterministic walk may define it.

        Args:
            x: State at t_end, [B, *dims].
            run: The denoiser and the record of the walk.

        Returns:
            The state at run.sde.t_max, [B, *dims].

        Raises:
            ValueError: If it is not defined, or the walk is not deterministic with the sampler's settings.
        """
        raise ValueError(
            f"{type(self).__name__} cannot be inverted: it defines no `climb`, the walk from data to noise"
        )

    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        seeds: Sequence[int] | None = None,
        latent: Tensor | None = None,
        callback: Callback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool | int | Sequence[float] = False,
        create_graph: bool = False,
        t_start: float | None = None,
        **conditions: Any,
    ) -> Samples:
        """Draw samples.

        Args:
            denoiser: The denoiser, with its path.
            shape: (B, *dims), the shape of the batch.
            seeds: One integer for each sample, in a list, an array, a tensor or a range; range(B) by default. Sample i
                depends on seeds[i] alone; with an adaptive solver, whose steps depend on the batch, to within its
                tolerance.
            latent: The state at t_start, [B, *dims], in place of a draw from the prior N(0, sigma(t_max)^2 I).
            callback: Called with (step, t, x_t, x0) after each prediction, step = 0, 1, ...; if it returns True, the
                walk ends and returns x0.
            device: Where to sample; the denoiser's device by default.
            dtype: Type of the state, float32 or float64.
            trajectory: What to record of the walk. True: belief and state at each network pass, including the inner
                stages of a step. A number, at least 2: that many frames (at most one for each step), spread evenly over
                the sampler's steps, from t_max to t_end. A list of times: a frame at each. Samplers with fixed steps
                record the nearest of their own times (see `Samples.times`); adaptive methods of `ODESampler`
                interpolate with their own order, those of `SDESampler` linearly. The samples do not change. The belief
                of each frame costs a further network pass, which is not counted in `nfe`.
            create_graph: Keep the graph, for derivatives of the samples with respect to latent, network and the
                parameters of a learned path; for few steps and small data.
            t_start: Where the walk begins, in (t_end, t_max]; t_max by default. An earlier start needs `latent`, such
                as data with noise (`noised`; SDEdit). The number of steps is the same: they are on [t_end, t_start].
            **conditions: Passed to the denoiser, such as label=, one class for each sample or one for all.

        Returns:
            The samples and the number of network passes.

        Raises:
            TypeError: If the denoiser is not one, or does not take one of the conditions.
            ValueError: If shape, seeds and latent do not fit together, t_start or t_end lies outside the path, there is
                no latent for a t_start, or the path is singular at an end in a way that the method cannot pass.
            UserError: If a sample has NaN or infinite numbers; the message says at which network pass and t, and in
                which samples.
        """
        shape = check_shape(shape)
        if latent is not None:
            check_latent(latent, shape)
        arguments = (shape, seeds, latent, callback, device, dtype, trajectory, t_start, conditions)
        return self._perform(create_graph, self.walk, denoiser, *arguments)

    def invert(
        self,
        denoiser: Denoiser,
        x: Tensor,
        callback: Callback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool | int | Sequence[float] = False,
        create_graph: bool = False,
        t_start: float | None = None,
        **conditions: Any,
    ) -> Samples:
        """The noise that data come from: the sampler's steps in the other direction, from t_end to t_max (or t_start).

        For samplers that are deterministic with their settings. Passed as `latent` to the same sampler, the result
        returns to x, to within the error of the method (its order in the step length, or its tolerance); with
        `denoise` to the belief at t_end, which for a small t_end is almost the same.

        Args:
            denoiser: The denoiser, with its path.
            x: States at t_end (data, if t_end is close to 0), [B, *dims].
            callback: Called with (step, t, x_t, x0) after each prediction; if it returns True, the walk ends and
                returns x_t.
            device: Where to walk; the denoiser's device by default.
            dtype: Type of the state, float32 or float64.
            trajectory: See `__call__`.
            create_graph: See `__call__`; with respect to x too.
            t_start: Where the walk up ends, and that of the sampler would begin; t_max by default.
            **conditions: Passed to the denoiser, such as label=[B].

        Returns:
            The latents at t_start, and the number of network passes: with `denoise` one less than for sampling, since
            none is spent on x0.

        Raises:
            TypeError: If the denoiser is not one, or x is not a tensor of floats.
            ValueError: If x is not [B, *dims] or not finite, if the sampler is not deterministic, if there is no step
                to take (steps = 1 with `denoise`), if t_start or t_end lies outside the path, or, for methods that
                divide by sigma, if sigma(t_end) = 0.
            UserError: If a latent has NaN or infinite numbers; the message says at which network pass and t, and in
                which samples.

        References:
            Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3.
        """

        def climb(x: Tensor, run: Walk) -> Tensor:
            try:
                return self.climb(x, run)
            except Stop as stop:
                return stop.x

        check_batch("x", x)
        arguments = (tuple(x.shape), None, x, callback, device, dtype, trajectory, t_start, conditions)
        return self._perform(create_graph, climb, denoiser, *arguments)

    def _perform(
        self, create_graph: bool, walk: Callable[[Tensor, Walk], Tensor], denoiser: Denoiser, *arguments: Any
    ) -> Samples:
        """`_walked`, without a graph unless create_graph."""
        check_denoiser(denoiser)
        inference = torch.is_inference_mode_enabled() and not create_graph
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(create_graph),
            denoiser.sde.on_cpu(),
            in_eval_mode(denoiser, not create_graph),
        ):
            return self._walked(walk, denoiser, *arguments)

    def _walked(
        self,
        walk: Callable[[Tensor, Walk], Tensor],
        denoiser: Denoiser,
        shape: tuple[int, ...],
        seeds: Sequence[int] | None,
        latent: Tensor | None,
        callback: Callback | None,
        device: torch.device | str | None,
        dtype: torch.dtype,
        trajectory: bool | int | Sequence[float],
        t_start: float | None,
        conditions: dict[str, Any],
    ) -> Samples:
        """Check the other arguments of a call, and walk; see `__call__`."""
        seeds = as_seeds(range(shape[0]) if seeds is None else seeds, shape[0])
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (step, t, x_t, x0); got {callback!r}")
        check_dtype(dtype)
        sde = denoiser.sde
        t_end = check_t_end(self.t_end, sde)
        start = check_t_start(t_start, t_end, sde)
        device = check_device(device, denoiser)
        conditions = denoiser.check_conditions(conditions, shape[0], device)
        noise = Noise(seeds, shape[1:], device, dtype)
        if latent is None and start < sde.t_max:
            raise ValueError(f"a walk from t_start={start:g} needs latent=, the state there: see sampling.noised")

        def begun() -> Tensor:
            if latent is None:
                return noise.normal(PRIOR_DRAW) * number(sde.sigma(sde.t_max))
            return latent.to(device=device, dtype=dtype)

        passes = EachPass(callback) if trajectory is True else None
        frames = None if isinstance(trajectory, bool) else Frames(trajectory, t_end, start)
        begin = partial(Walk, denoiser, noise, t_end, conditions, t_start=start, given=latent is not None)
        run = begin(passes or callback, frames=frames)
        result = completed(walk, begun, run, begin(check=True))
        drawn = partial(Samples, result, run.nfe, gradients=run.gradients, log_evidence=run.log_evidence)
        if passes is not None:
            return drawn(_stack(passes.beliefs, result), passes.times, _stack(passes.states, result))
        if frames is not None:
            beliefs = [
                run.denoiser(x, t, **run.conditions).x0 for x, t in zip(frames.states, frames.times, strict=True)
            ]
            return drawn(_stack(beliefs, result), frames.times, _stack(frames.states, result))
        return drawn()


def _stack(frames: list[Tensor], x: Tensor) -> Tensor:
    """Frames of x's shape, [frames, B, *dims]."""
    return torch.stack(frames) if frames else x.new_empty(0, *x.shape)
