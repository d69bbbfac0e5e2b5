"""The sliced Wasserstein distance, for points in few dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count
from sde_diffusion.metrics.base import FeatureMetric


def directions(d: int, count: int, seed: int = 0) -> Tensor:
    """Unit vectors for projections, [count, d] float64: equally spaced angles in the plane, else random vectors."""
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if d == 2:
        angle = torch.arange(count, dtype=torch.float64) * (math.pi / count)
        return torch.stack([angle.cos(), angle.sin()], 1)
    z = torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit: Tensor = z / z.norm(dim=1, keepdim=True)
    return unit


def _coupling(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The monotone coupling of n and m sorted points of equal weight: indices into both, and masses.

    The quantile functions are constant between the multiples of 1/n and 1/m, here integers divided by n m.
    """
    own, other = torch.arange(1, n + 1, device=device) * m, torch.arange(1, m + 1, device=device) * n
    ends = torch.cat([own, other]).sort().values
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    keep = ends > starts
    starts, ends = starts[keep], ends[keep]
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def _potential(x: Tensor, y: Tensor) -> Tensor:
    """Kantorovich potential of sorted x [n, L] against sorted y [m, L], at the points of x.

    Neighbours x_k and x_{k+1} share the y at the quantile k/n, so their potentials differ by the difference of their
    costs to it; if the quantile is between two y, by the mean of both.
    """
    n, m = len(x), len(y)
    k = torch.arange(1, n, device=x.device) * m
    below, above = y[(k + n - 1) // n - 1], y[k // n]
    steps = (x[1:] - x[:-1]) * (x[1:] + x[:-1] - below - above)
    return torch.cat([x.new_zeros(1, x.shape[1]), steps.cumsum(0)])


class SlicedWasserstein(FeatureMetric):
    r"""SW_2 = (mean over directions of W_2^2(real.direction, fake.direction))^(1/2).

    In one dimension the distance is exact, also for unequal numbers of samples. In the plane the directions are equally
    spaced angles; in more dimensions they are random, from a fixed seed that is part of the definition. The distance is
    biased upward for few samples: two sets of N samples of the same distribution have a distance of about N^(-1/2).

    Args:
        extractor: See `FeatureMetric`; `Pixels` for points.
        projections: Number of directions.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If there are no projections.

    References:
        Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures", section 3. Potentials as
        influences: Sommerfeld & Munk 2018, "Inference for Empirical Wasserstein Distances on Finite Spaces".
    """

    names = ("sliced_wasserstein",)
    for_points = True
    higher_is_better = False

    def __init__(
        self, extractor: nn.Module, projections: int = 64, reset_real_features: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(extractor, reset_real_features, **kwargs)
        self.directions = directions(self.width, check_count("projections", projections))

    def _projected(self, x: Tensor) -> Tensor:
        projected: Tensor = x @ self.directions.to(x.device).T
        return projected

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        x, y = self._projected(real).sort(0).values, self._projected(fake).sort(0).values
        i, j, mass = _coupling(len(x), len(y), x.device)
        return (mass @ (x[i] - y[j]).square()).mean().unsqueeze(0)

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric`."""
        (x, order_x), (y, order_y) = self._projected(real).sort(0), self._projected(fake).sort(0)
        found = []
        for own, order, other in ((x, order_x, y), (y, order_y, x)):
            potential = _potential(own, other)
            potential = potential - potential.mean(0)
            found.append(torch.empty_like(potential).scatter_(0, order, potential).mean(1).unsqueeze(0))
        return found[0], found[1]

    def present(self, values: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return values.clamp(min=1e-24).sqrt()  # 1e-12 instead of 0, where the derivative would be infinite

    def lift(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return real.new_zeros(1)
