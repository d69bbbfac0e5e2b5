"""What the methods of posterior sampling share: which likelihood and which sampler they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_diffusion.guidance.likelihoods import MeasurementLikelihood


class PosteriorMethod(ABC):
    """A method to draw from p(x_0 | y): a likelihood for any sampler's steps, or a sampler that has steps of its own.

    These are the subclasses `guidance.MeasurementLikelihood` and `sampling.PosteriorSampler`. `restore` takes either:

        likelihood, sampler = method.likelihood_and_sampler(sampler)
        x = sampler(PosteriorDenoiser(denoiser, operator, noise, likelihood), shape, y=y).x
    """

    @abstractmethod
    def likelihood_and_sampler(self, sampler: Any) -> tuple[MeasurementLikelihood, Any]:
        """The likelihood of the `PosteriorDenoiser`, and the sampler that walks with it.

        Args:
            sampler: The sampler to use, unless the method is one itself.
        """
