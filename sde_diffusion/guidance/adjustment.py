"""What is done to a guided belief against the side effects of large scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.checks import as_fraction, as_number
from sde_diffusion.checks.reprs import ShowsArguments, shown
from sde_diffusion.denoiser import Prediction


class Adjustment(ShowsArguments):
    """Changes a guided x0 by comparison with the x0 of the model alone, in this order. All act on each sample alone.

    They act on x0, not on what the network predicts, so that the result does not depend on the parameterization. The
    other forms (eps, score, velocity) follow x0.

    Args:
        parallel: eta, at least 0: the part of (guided - alone) that is parallel to `alone` is multiplied by it. That
            part mostly adds contrast. 1 changes nothing; 0 leaves the orthogonal part alone.
        rescale: phi in [0, 1]: x0 is multiplied by 1 - phi + phi std(alone) / std(guided), with the standard deviation
            of each sample over its dimensions.
        threshold: p in (0, 1], such as 0.995, for data in [-1, 1] such as images: x0 is clipped to [-q, q] and divided
            by q, where q is the smallest number of at least 1 that a share p of the values of |x0| do not exceed. None:
            no threshold.

    Raises:
        ValueError: If a value is out of its range.

    References:
        Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales" (parallel, without its
        momentum, which depends on the sampler, and its limit on the norm); Lin et al. 2023, "Common Diffusion Noise
        Schedules and Sample Steps are Flawed", section 3.4 (rescale, there of the network's output); Saharia et al.
        2022, "Photorealistic Text-to-Image Diffusion Models", section 2.3 (threshold).
    """

    def __init__(self, parallel: float = 1.0, rescale: float = 0.0, threshold: float | None = None) -> None:
        self.parallel, self.rescale = as_number("parallel", parallel), as_fraction("rescale", rescale)
        self.threshold = None if threshold is None else as_number("threshold", threshold)
        if not 0 <= self.parallel < math.inf:
            raise ValueError(f"parallel must be a finite number of at least 0 (1: no change); got {shown(parallel)}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be a quantile in (0, 1], such as 0.995; got {shown(threshold)}")

    def __call__(self, guided: Prediction, alone: Prediction) -> Prediction:
        """The guided belief, adjusted.

        Args:
            guided: The guided belief.
            alone: The belief of the model that is guided.
        """
        x0 = start = guided.x0
        if self.parallel != 1:
            base = alone.x0
            along = _dot(x0 - base, base) / _dot(base, base).clamp(min=torch.finfo(base.dtype).tiny)
            x0 = x0 + (self.parallel - 1) * along * base
        if self.rescale:
            now, wanted = (x.flatten(1).std(1, correction=0) for x in (x0, alone.x0))
            factor = torch.where(now > 0, wanted / now - 1, 0.0)  # one dimension has no contrast
            x0 = x0 + self.rescale * _like(factor, x0) * x0
        if self.threshold is not None:
            sizes = x0.abs().flatten(1)
            q = sizes.kthvalue(math.ceil(self.threshold * sizes.shape[1] - 1e-9), dim=1).values.clamp(min=1)
            q = _like(q, x0)
            x0 = torch.minimum(torch.maximum(x0, -q), q) / q
        return guided if x0 is start else guided.shifted(x0 - start)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar products of samples, [B, 1, ...]."""
    return _like((a * b).flatten(1).sum(1), a)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Values [B] shaped to broadcast against x, [B, *]."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
