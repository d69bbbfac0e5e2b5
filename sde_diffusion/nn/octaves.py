r"""Sines and cosines of the inputs, for likelihoods of data on levels, which depend on the finest details.

Let y = x_t / alpha = x_0 + s n be data on L levels in [-1, 1] with noise of standard deviation s = sigma / alpha, and
i = (y + 1) (L - 1) / 2 the number of the level. The features of octave j = 0, 1, ... are

    exp(-(omega_j s)^2 / 2) sin(2 pi i / 2^j),   the same with cos,   omega_j = pi (L - 1) / 2^j,

with periods of 1, 2, 4, ... levels for every L. If all levels are equally frequent, the density of y is a Fourier
series in the first of them, with just these amplitudes (1 + 2 sum_k exp(-(k omega_0 s)^2 / 2) cos(2 pi k i), away from
the ends): they are large where the noise is smaller than a level, and 0 where it hides the levels.

References: Kingma et al. 2021, "Variational Diffusion Models", appendix C (of fixed frequencies, which fit 256
levels of another grid).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count

NoisyData = tuple[Tensor, Tensor]
"""x_t / alpha, [B, *], and sigma / alpha, the standard deviation of its noise, [] or [B]."""


class Octaves(nn.Module):
    """The features of several octaves, as further channels.

    Args:
        octaves: Number of octaves, at least 0.
        levels: L, number of levels of the data. None: sin(2^k pi x), cos(2^k pi x), k = 0, 1, ..., of the input as the
            network takes it.

    Raises:
        ValueError: If octaves is negative, or levels less than 2.
    """

    def __init__(self, octaves: int = 0, levels: int | None = None) -> None:
        super().__init__()
        self.octaves = check_count("octaves", octaves, least=0)
        self.levels = None if levels is None else check_count("levels", levels, least=2)

    @property
    def takes_noisy_data(self) -> bool:
        """Whether `forward` needs the noisy data on their own scale."""
        return self.octaves > 0 and self.levels is not None

    @property
    def multiple(self) -> int:
        """Number of channels out for each channel in, which is one of them."""
        return 1 + 2 * self.octaves

    def forward(self, x: Tensor, noisy_data: NoisyData | None = None) -> Tensor:
        """The input with its features, [B, C, *] -> [B, C (1 + 2 octaves), *].

        They are computed in the type of x: the phase of a fine one needs its digits.

        Args:
            x: The network's input, [B, C, *].
            noisy_data: See `NoisyData`; None: x itself, without noise.
        """
        if not self.octaves:
            return x
        if self.levels is None:
            phases = [x * (math.pi * 2**k) for k in range(self.octaves)]
            return torch.cat([x, *[phase.sin() for phase in phases], *[phase.cos() for phase in phases]], 1)
        y, ratio = (x, x.new_zeros(())) if noisy_data is None else noisy_data
        ratio = ratio.to(x).reshape(-1, *(1,) * (x.ndim - 1))
        features = [x]
        for j in range(self.octaves):
            omega = math.pi * (self.levels - 1) / 2**j
            amplitude = (-0.5 * (omega * ratio).square()).exp()
            phase = omega * (y.view_as(x) + 1)
            features += [amplitude * phase.sin(), amplitude * phase.cos()]
        return torch.cat(features, 1)
