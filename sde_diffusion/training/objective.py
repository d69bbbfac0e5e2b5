r"""The objective: weighting x time sampling, on the error of the network's own output.

With a prediction x0_hat = skip x_t + scale F, the output that would be right is

    F* = (x0 - skip x_t) / scale = ((1 - skip alpha) x0 - skip sigma eps) / scale,

and |eps_hat - eps|^2 = (alpha scale / sigma)^2 |F - F*|^2. The coefficients are worked out in float64 and only F - F*
in the network's precision, so that no digit is lost at either end of the path, whatever F stands for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sde import expand
from sde_diffusion.training.time_sampling import TimeSampling
from sde_diffusion.training.weighting import Weighting


class Objective:
    """Denoising score matching: E_t E_eps [ w(t) |eps_hat(x_t, t) - eps|^2 / D ], a mean over dimensions.

    Args:
        weighting: w(t).
        times: The distribution of t.

    References:
        Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"; Song et al. 2021, equation 7.
    """

    def __init__(self, weighting: Weighting, times: TimeSampling) -> None:
        self.weighting = weighting
        self.times = times

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, **conditions: Any) -> Tensor:
        """Loss of each sample at given times and noise.

        Args:
            denoiser: What is trained.
            x0: Data, [B, *].
            t: Times, [B].
            noise: Standard normal, [B, *].
            **conditions: Passed on to the denoiser.

        Returns:
            [B], in the data's precision (float32 where that is half).
        """
        sde = denoiser.sde
        precision = torch.promote_types(x0.dtype, torch.float32)
        x0, noise = x0.to(precision), noise.to(precision)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x_t = torch.addcmul(expand(alpha, x0) * x0, expand(sigma, x0), noise)
        prediction = denoiser(x_t, t, **conditions)
        skip, scale = prediction.skip, prediction.scale
        target = expand((1 - skip * alpha) / scale, x0) * x0 - expand(skip * sigma / scale, x0) * noise
        weight = self.weighting(sde, t) * self.times.importance(sde, t) * (alpha * scale / sigma).square()
        error = (prediction.output - target).flatten(1).square().mean(1)
        loss: Tensor = weight.to(error) * error
        return loss
