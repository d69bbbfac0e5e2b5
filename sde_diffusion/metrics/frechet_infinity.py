"""The Fréchet distance that infinitely many samples would have."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.frechet import frechet_distance, frechet_influence, moments_of
from sde_diffusion.metrics.reference import MOST_FEATURES


class FrechetInfinity(FeatureMetric):
    r"""Fréchet distance extrapolated to infinitely many samples, without the bias of a finite number.

    With N samples a side the expected distance is d_inf + slope / N to first order. The smaller side, of N samples, is
    split at random into g = 1, 2, ..., G disjoint groups and the larger into k g groups of about the same size, with an
    integer k. The mean distance over pairs of groups is that of N / g samples, and a least-squares line in g gives the
    distance at g = 0. Chong and Forsyth draw 15 subsets of different sizes; disjoint groups use every sample equally
    often at every size, so that the points of the line have the same first-order error and the fit adds none. Several
    splits are averaged. The estimate may be below 0 if the distributions are the same.

    The groups of both sides have about equal sizes because second-order errors then nearly cancel.

    The interval is that of the distance without the second-order correction: to first order the extrapolation adds no
    error.

    The slope is that of the line in 1/N, where N is the number of generated samples (and the real ones are in
    proportion): the distance at N samples has a bias of about slope / N.

    Args:
        extractor: See `FeatureMetric`.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them", section 4.
    """

    names = ("frechet_infinity",)
    higher_is_better = False
    second_order = False  # not corrected for by halves: the extrapolation adds variance of that order itself
    splits = 4

    def line(self) -> tuple[float, float]:
        """The distance at infinity, and the slope in 1/N.

        Returns:
            The tuple (intercept, slope).

        Raises:
            UserError: If a side has fewer than three times as many samples as features.
        """
        with self.synchronised():
            real, fake = self.sets()
        intercept, slope = self._fit(real, fake)
        return intercept, slope * len(fake)

    def details(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """See `FeatureMetric`."""
        return {"frechet_infinity_slope": self._fit(real, fake)[1] * len(fake)}

    @property
    def least_for_intervals(self) -> int:
        """See `FeatureMetric`; from here on the coverage is close to nominal (benchmarks/README.md)."""
        return max(150, 4 * (self.width + 1))

    def sets(self) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric.sets`."""
        if self.width > MOST_FEATURES:
            raise UserError(f"FrechetInfinity: {self.width} features are too many for a covariance ({MOST_FEATURES})")
        real, fake = super().sets()
        least = 3 * (self.width + 1)
        if min(len(real), len(fake)) < least:
            raise UserError(
                f"FrechetInfinity: {len(real)} real and {len(fake)} generated samples in {self.width} feature "
                f"dimensions, of which a third gives a singular covariance. At least {least} of each are needed: draw "
                "more, use an extractor with fewer features, or the kernel distance, which needs no covariance"
            )
        return real, fake

    def _fit(self, real: Tensor, fake: Tensor) -> tuple[float, float]:
        return self._once(real, fake, lambda: self._line(real, fake))

    def _line(self, real: Tensor, fake: Tensor) -> tuple[float, float]:
        few, many = (real, fake) if len(real) <= len(fake) else (fake, real)  # the distance is symmetric
        times = round(len(many) / len(few))
        # Near a singular covariance the bias is not linear: groups have four samples a dimension if possible.
        most = min(max(3, len(few) // (4 * self.width)), 5)
        splits = max(1, round(self.splits / times))
        generator = torch.Generator().manual_seed(0)
        totals = real.new_zeros(most)
        for _ in range(splits):
            a, b = (torch.randperm(len(x), generator=generator).to(x.device) for x in (few, many))
            for g in range(1, most + 1):
                own = [moments_of(x) for x in few[a].tensor_split(g)]
                others = [moments_of(y) for y in many[b].tensor_split(g * times)]
                pairs = [frechet_distance(*own[i % g], *other) for i, other in enumerate(others)]
                totals[g - 1] += sum(pairs) / len(pairs)
        groups = torch.arange(1, most + 1, dtype=totals.dtype, device=totals.device)
        points = totals / splits
        slope = float(((groups - groups.mean()) * points).sum() / (groups - groups.mean()).square().sum())
        return float(points.mean()) - slope * float(groups.mean()), slope

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return real.new_tensor([self._fit(real, fake)[0]])

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric`."""
        # Extrapolation subtracts a bias that hardly varies: to first order the influence is the distance's.
        return frechet_influence(real, fake)

    def lift(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return real.new_tensor([max(0.0, self._fit(real, fake)[1])])
