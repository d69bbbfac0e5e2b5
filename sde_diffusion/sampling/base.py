"""What every sampler has in common: the call, the prior, the per-sample noise, the count of network passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_batch, check_bool, check_finite
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.arguments import check_device, check_dtype, check_latent, check_shape, check_t_end
from sde_diffusion.sampling.frames import Frames
from sde_diffusion.sampling.noise import Noise, as_seeds
from sde_diffusion.sampling.walk import PRIOR_DRAW, REMEDY, Callback, Stop, Walk
from sde_diffusion.sde import number


@dataclass
class Samples:
    """What a sampler returns.

    Attributes:
        x: The samples, [B, *dims].
        nfe: Network passes (number of function evaluations) for each sample.
        trajectory: If asked for, the beliefs x0 along the walk, [frames, B, *dims]; else None.
        times: If asked for, the times of these frames; else None.
        states: If asked for, the states x_t in which these are the beliefs, [frames, B, *dims]; else None.
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    times: list[float] | None = None
    states: Tensor | None = None


class Sampler(ShowsArguments, ABC):
    """A way to walk from noise at t_max back to data.

    A sampler's repr names its class and the arguments that differ from the defaults, as they are now, and can be
    evaluated. For that each argument is an attribute of the same name.

    Args:
        denoise: Return the belief x0 at the end of the walk (True), or the state at t_end (False).
        t_end: Where the walk ends; the path's t_min if not given.

    Raises:
        ValueError: If denoise is not a bool, or t_end not a number.
    """

    always_shown = ("method", "predictor", "corrector", "steps", "order", "eta")

    def __init__(self, denoise: bool = True, t_end: float | None = None) -> None:
        self.denoise = check_bool("denoise", denoise)
        self.t_end = None if t_end is None else as_number("t_end", t_end)

    @abstractmethod
    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk from x at t_max to t_end.

        Args:
            x: State at t_max, [B, *dims].
            run: Denoiser, noise and bookkeeping.

        Returns:
            The state at t_end, or with `denoise` the belief x0 there, [B, *dims].
        """

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """Walk from x at t_end up to t_max, for `invert`; a sampler without a deterministic walk does not define it.

        Args:
            x: State at t_end, [B, *dims].
            run: Denoiser and bookkeeping.

        Returns:
            The state at t_max, [B, *dims].

        Raises:
            ValueError: If the walk is not deterministic as the sampler is set.
        """
        raise ValueError(f"only a deterministic walk can be inverted, and that of {type(self).__name__} draws noise")

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
            callback: Called with (step, t, x_t, x0) after each prediction, step counting them from 0; returning True
                ends the walk.
            device: Where to sample; the denoiser's device if not given.
            dtype: Type of the state, float32 or float64.
            trajectory: What to keep of the walk. True: belief and state at each network pass, those at a step's inner
                stages included. A number, at least 2: so many frames (fewer if there are not so many steps), spread
                evenly over the sampler's steps, from t_max to t_end. Times: at each of these. The methods that take
                given steps are at the nearest of their own times (`Samples.times` has them), the adaptive ones of
                `ODESampler` interpolate there by their own order, those of `SDESampler` linearly. The samples do not
                change. Each frame's belief costs a network pass more, which is not counted.
            create_graph: Keep the graph, for derivatives of the samples with respect to latent, network and the
                parameters of a learned path; for few steps and small data.
            **conditions: Passed to the denoiser, such as label=, one class for each sample or one for all.

        Returns:
            The samples and the number of network passes.

        Raises:
            TypeError: If the denoiser is not one, or does not take one of the conditions.
            ValueError: If shape, seeds and latent do not fit together, t_end lies outside the path, or the path is
                singular there (or at t_max) in a way that the method cannot pass.
            UserError: If a sample is not finite: at which network pass, at what t and which samples.
        """
        shape = check_shape(shape)
        if latent is not None:
            check_latent(latent, shape)
        given = (shape, seeds, latent, callback, device, dtype, trajectory, conditions)
        return self._perform(create_graph, self.walk, denoiser, *given)

    def invert(
        self,
        denoiser: Denoiser,
        x: Tensor,
        callback: Callback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool | int | Sequence[float] = False,
        create_graph: bool = False,
        **conditions: Any,
    ) -> Samples:
        """Walk data up to the noise that they come from: the sampler's steps over its times in the other order.

        For the samplers that are deterministic as they are set. Given as `latent` to the same sampler, the result comes
        back to x, to within the error of the method, of its order in the length of the steps or of its tolerance; with
        `denoise`, to the belief there, which at a small t_end is hardly another.

        Args:
            denoiser: The denoiser, whose path is walked up.
            x: States at t_end (data, where t_end is close to 0), [B, *dims].
            callback: Called with (step, t, x_t, x0) after each prediction; returning True ends the walk, whose result
                is then x_t.
            device: Where to walk; the denoiser's device if not given.
            dtype: Type of the state, float32 or float64.
            trajectory: See `__call__`.
            create_graph: See `__call__`; with respect to x too.
            **conditions: Passed to the denoiser, such as label=[B].

        Returns:
            The latents at t_max, and the number of network passes: with `denoise` one less than sampling takes (none is
            spent on x0).

        Raises:
            TypeError: If the denoiser is not one, or x is not a tensor of floats.
            ValueError: If x is not [B, *dims] or not finite, if the sampler is not deterministic, if there is no step
                to take (steps = 1 with `denoise`), if t_end lies outside the path, or, of methods that divide by
                sigma, if sigma(t_end) = 0.
            UserError: If a latent is not finite: at which network pass, at what t and which samples.

        References:
            Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3.
        """

        def climb(x: Tensor, run: Walk) -> Tensor:
            try:
                return self.climb(x, run)
            except Stop as stop:
                return stop.x

        check_batch("x", x)
        given = (tuple(x.shape), None, x, callback, device, dtype, trajectory, conditions)
        return self._perform(create_graph, climb, denoiser, *given)

    def _perform(
        self, create_graph: bool, walk: Callable[[Tensor, Walk], Tensor], denoiser: Denoiser, *given: Any
    ) -> Samples:
        """`_walked`, without a graph unless one is asked for."""
        check_denoiser(denoiser)
        inference = torch.is_inference_mode_enabled() and not create_graph
        with torch.inference_mode(inference), torch.set_grad_enabled(create_graph), denoiser.sde.at_hand():
            return self._walked(walk, denoiser, *given)

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
        conditions: dict[str, Any],
    ) -> Samples:
        """Check the other arguments of a call and walk; see `__call__`."""
        seeds = as_seeds(range(shape[0]) if seeds is None else seeds)
        if len(seeds) != shape[0]:
            raise ValueError(f"one seed for each sample is needed: shape {shape} asks for {shape[0]}, got {len(seeds)}")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (step, t, x_t, x0); got {callback!r}")
        check_dtype(dtype)
        sde = denoiser.sde
        t_end = check_t_end(self.t_end, sde)
        device = check_device(device, denoiser)
        conditions = denoiser.check_conditions(conditions, shape[0], device)
        noise = Noise(seeds, shape[1:], device, dtype)
        if latent is None:
            x = noise.normal(PRIOR_DRAW) * number(sde.sigma(sde.t_max))
        else:
            x = latent.to(device=device, dtype=dtype)
        beliefs: list[Tensor] = []
        states: list[Tensor] = []
        times: list[float] = []

        def record(step: int, t: float, x: Tensor, x0: Tensor) -> bool | None:
            beliefs.append(x0)
            states.append(x.clone())
            times.append(t)
            return callback(step, t, x, x0) if callback is not None else None

        frames = None if isinstance(trajectory, bool) else Frames(trajectory, t_end, sde.t_max)
        each = trajectory is True
        run = Walk(denoiser, noise, t_end, conditions, record if each else callback, frames=frames)
        result = _finish(walk, x, run)
        if not bool(torch.isfinite(result).all()):
            # Looking at each step would have waited for the device each time. The noise repeats: walk again and look.
            _finish(walk, x, Walk(denoiser, noise, t_end, conditions, check=True))
            check_finite("the sampler's result", result, REMEDY, UserError)
        if frames is not None:
            states, times = frames.states, frames.times
            beliefs = [denoiser(x, t, **conditions).x0 for x, t in zip(states, times, strict=True)]
        elif not each:
            return Samples(result, run.nfe)
        kept = [torch.stack(frame) if frame else x.new_empty(0, *shape) for frame in (beliefs, states)]
        return Samples(result, run.nfe, kept[0], times, kept[1])


def _finish(walk: Callable[[Tensor, Walk], Tensor], x: Tensor, run: Walk) -> Tensor:
    """The walk's result, or where a callback ended it the belief there."""
    try:
        return walk(x, run)
    except Stop as stop:
        return stop.x0
