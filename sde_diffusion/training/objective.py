r"""Objectives: which random numbers are drawn for each sample, and its loss.

Denoising score matching combines a weighting and a distribution of times, and computes the error of the network's own
output. With a prediction x0_hat = skip x_t + scale F, the correct output is

    F* = (x0 - skip x_t) / scale = ((1 - skip alpha) x0 - skip sigma eps) / scale,

and |eps_hat - eps|^2 = (alpha scale / sigma)^2 |F - F*|^2. The coefficients are computed in float64, and only F - F* in
the network's precision, so that no digits are lost at either end of the path, whatever F predicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_floats, check_kind
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.sde import Time, expand, float64
from sde_diffusion.training.time_sampling import LogNormalTimes, TimeSampling
from sde_diffusion.training.weighting import EDMWeighting, Weighting


class Objective(ShowsArguments, ABC):
    """What training minimises: the random draws for each sample, and its loss at these draws.

    `Objective(...)` returns the default objective, `DenoisingScoreMatching(...)`. An objective with parameters or
    buffers is an `nn.Module` too; a model then trains and stores them.

    Attributes:
        is_bound: Whether it is a bound on log p(x), by which a path can be learned.
    """

    is_bound: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance of the class; of `DenoisingScoreMatching` for `Objective` itself."""
        made: Self = super().__new__(DenoisingScoreMatching if cls is Objective else cls)  # type: ignore[assignment]
        return made

    def check(self, model: Any) -> None:
        """Check that this objective can train a model.

        Raises:
            UserError: If it cannot.
        """
        return

    @property
    def uses_data(self) -> bool:
        """Whether `fit_statistics` uses the data; if not, it is not called."""
        return False

    def fit_statistics(self, x: Tensor) -> None:
        """Compute what is known of training data [N, *] without a gradient, before the first step of a new run."""
        return

    @abstractmethod
    def draw(self, model: Any, x0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw the random numbers for the losses of a batch.

        Args:
            model: The model to train, such as a denoiser.
            x0: Data, [B, *]; only their shape, type and device are used.
            generator: None, in training: torch's global generator, on the data's device. In validation, a generator on
                the CPU, for draws that are the same each time and spread evenly (stratified times).

        Returns:
            Keyword arguments of `__call__`, [B, ...] each, on the data's device.
        """

    @abstractmethod
    def __call__(self, model: Any, x0: Tensor, /, **draws_and_conditions: Any) -> Tensor:
        """Loss of each sample, [B].

        Args:
            model: The model to train.
            x0: Data, [B, *].
            **draws_and_conditions: The draws returned by `draw`, or some of them (the others are then drawn), and the
                conditions.
        """


class DenoisingScoreMatching(Objective, nn.Module):
    """E_t E_eps [ w(t) |eps_hat(x_t, t) - eps|^2 / D ], where D is the number of dimensions.

    Args:
        weighting: w(t). The default is EDM's, which suits all predictions and paths.
        times: The distribution of t. The default is EDM's log-normal distribution of noise levels.

    Raises:
        TypeError: If weighting is not a `Weighting`, or times not a `TimeSampling`.

    References:
        Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"; Song et al. 2021, equation 7.
    """

    def __init__(self, weighting: Weighting | None = None, times: TimeSampling | None = None) -> None:
        nn.Module.__init__(self)
        self.weighting = EDMWeighting() if weighting is None else weighting
        self.times = LogNormalTimes(stratified=True) if times is None else times
        for name, value, kind in (("weighting", self.weighting, Weighting), ("times", self.times, TimeSampling)):
            check_kind(name, value, kind)

    def draw(self, model: Denoiser, x0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Times `t` [B], in validation one in each of B strata, and noise `noise` [B, *]; see `Objective.draw`."""
        if generator is None:
            t = self.times(model.sde, len(x0), device=x0.device)
            return {"t": t, "noise": torch.randn_like(x0)}
        t = self.times.strata(model.sde, len(x0))
        t = t[torch.randperm(len(x0), generator=generator)].to(x0.device)
        return {"t": t, "noise": torch.randn(x0.shape, generator=generator).to(x0)}

    def __call__(  # type: ignore[override]
        self, denoiser: Denoiser, x0: Tensor, t: Time | None = None, noise: Tensor | None = None, **conditions: Any
    ) -> Tensor:
        """Loss of each sample.

        Args:
            denoiser: The denoiser to train.
            x0: Data on [-1, 1], [B, *].
            t: Times, [B] or one for all; by default drawn from `times` with torch's global generator.
            noise: Standard normal, [B, *]; by default drawn with torch's global generator.
            **conditions: Passed to the denoiser, such as label=, int64 [B].

        Returns:
            [B], in the data's precision (float32 where that is half).

        Raises:
            TypeError: If the denoiser is not one, x0 or noise not a tensor of floats, or a condition is not known.
            ValueError: If the shapes do not fit.
        """
        check_denoiser(denoiser)
        check_floats("x0", x0)
        if x0.ndim < 2 or not len(x0):
            raise ValueError(f"x0 must have shape [B, *dims] with B >= 1; got {list(x0.shape)}")
        sde = denoiser.sde
        t = self.times(sde, len(x0), x0.device) if t is None else float64(t)
        t = t.expand(len(x0)) if t.ndim == 0 else t
        noise = torch.randn_like(x0) if noise is None else noise
        check_floats("noise", noise)
        if t.shape != x0.shape[:1] or noise.shape != x0.shape:
            raise ValueError(
                f"data {list(x0.shape)} need one time for each sample and noise of their own shape; got t "
                f"{list(t.shape)} and noise {list(noise.shape)}"
            )
        precision = torch.promote_types(x0.dtype, torch.float32)
        x0, noise = x0.to(precision), noise.to(precision)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x_t = torch.addcmul(expand(alpha, x0) * x0, expand(sigma, x0), noise)
        prediction = denoiser(x_t, t, **conditions)
        skip, scale = prediction.skip, prediction.scale
        target = expand((1 - skip * alpha) / scale, x0) * x0 - expand(skip * sigma / scale, x0) * noise
        weight = self.weighting(sde, t) * self.times.importance(sde, t) * (alpha * scale / sigma).square()
        error = (prediction.output - target).flatten(1).square().mean(1)
        if denoiser.training and self.times.learned:
            with torch.no_grad():
                squares = (0.5 * x0[0].numel() * (alpha * scale / sigma).square() * error).square()
                self.times.observe(sde, t, squares)
        loss: Tensor = weight.to(error) * error
        return loss

    __repr__ = Objective.__repr__
