"""Feature extractors without trained weights, with few enough features for the number of samples.

The covariance of all pixels cannot be estimated from a few hundred images. These extractors have 8 to 64 features, so
that every metric can be computed for any set of images or vectors. They differ from the features of a network that was
trained to recognise objects: their metrics rank models of one data set, but cannot be compared with published values.

Principal components alone do not respond to blur and noise, which are outside their span: blurred images would then be
nearer to the data than fresh ones. So the distance from the span is a feature too. With it the Fréchet distance of
distorted images grows with the strength of every distortion (benchmarks/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_batch, check_count

WIDTHS = (8, 16, 32, 64)


def width_for(n: int) -> int:
    """Number of features for n samples: the largest of 8, 16, 32, 64 with 15 samples or more for each, or else 8."""
    return max((width for width in WIDTHS if 15 * width <= n), default=WIDTHS[0])


def _components(x: Tensor, count: int) -> Tensor:
    """Unit vectors [count, D] along which centred x [N, D] varies most, and zeros beyond its rank.

    Rounded to 16 binary places and with the largest entry positive, so that machines with different rounding agree.
    """
    wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    along = x.T @ vectors if wide else vectors
    along = torch.where(values > 1e-10 * values.amax(), along / along.norm(dim=0).clamp(min=1e-300), 0.0)
    found = x.new_zeros(count, x.shape[1])
    found[: along.shape[1]] = along.T
    sign = found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    rounded: Tensor = (found * sign * 65536).round() / 65536
    return rounded


class PrincipalComponents(nn.Module):
    """The first K - 1 principal components of data, and the distance of a sample from their span.

    The last feature is |x - mean - V V^T (x - mean)| with V the components: noise increases it, and blur decreases it.

    Args:
        data: [N, ...], the data whose components are used: the training split, so that they are fixed for a data set. A
            few thousand items are enough.
        num_features: K, at least 1; if the data have no more dimensions, all components and no distance.
        base: Extractor whose features are used in place of the samples themselves.

    Raises:
        ValueError: If there are fewer than two samples.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, data: Tensor, num_features: int, base: nn.Module | None = None) -> None:
        super().__init__()
        check_batch("data", data)
        num_features = check_count("num_features", num_features)
        if len(data) < 2:
            raise ValueError(f"components need two samples; got {len(data)}")
        self.shape, self.base = tuple(data.shape[1:]), base
        x = self._flat(data).double()
        width = x.shape[1]
        kept = width if num_features >= width else num_features - 1
        mean = x.mean(0)
        self.register_buffer("mean", mean.float())
        self.register_buffer("components", _components(x - mean, kept).float())
        self.num_features = min(width, num_features)

    @torch.no_grad()
    def _flat(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"extractor takes samples of shape {self.shape}; got {tuple(x.shape[1:])}")
        if self.base is not None:
            return torch.cat([self.base(part) for part in torch.split(x, 500)]).float()
        return x.flatten(1).float()

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, num_features] float32 of samples [B, ...].

        Raises:
            ValueError: If the samples are of another shape than the data.
        """
        centred = self._flat(x) - self.mean
        along = centred @ self.components.T
        if len(self.components) == self.num_features:
            return along
        return torch.cat([along, (centred - along @ self.components).norm(dim=1, keepdim=True)], 1)


class RandomConvolutions(nn.Module):
    """A convolutional network with random weights; features are means of its last layer over 4 x 4 fields.

    Three 3x3 convolutions of 32 channels with SiLU, the first at full size and the others at half the previous size.
    Random networks are an alternative if no trained one fits the data (Naeem et al. 2020, "Reliable Fidelity and
    Diversity Metrics for Generative Models", section 4).

    Args:
        shape: Shape of the images, [C, H, W].
        seed: Seed of the weights.
    """

    CHANNELS, FIELDS = 32, 4

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(check_count("seed", seed, least=0))
        inputs = int(shape[0])
        for layer in range(3):
            weight = torch.randn(self.CHANNELS, inputs, 3, 3, generator=generator) * math.sqrt(2 / (9 * inputs))
            self.register_buffer(f"weight{layer}", weight)
            self.register_buffer(f"bias{layer}", 0.3 * torch.randn(self.CHANNELS, generator=generator))
            inputs = self.CHANNELS
        self.num_features = self.CHANNELS * self.FIELDS**2

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Features [B, num_features] float32 of images [B, C, H, W] on [-1, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            h = x.float()
            for layer in range(3):
                weight, bias = getattr(self, f"weight{layer}"), getattr(self, f"bias{layer}")
                h = F.silu(F.conv2d(h, weight, bias, stride=1 if layer == 0 else 2, padding=1))
            return F.adaptive_avg_pool2d(h, self.FIELDS).flatten(1)
