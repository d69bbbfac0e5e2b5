"""The Fréchet distance that infinitely many samples would have."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.frechet import frechet_distance, frechet_influence, moments_of
from sde_diffusion.metrics.reference import MOST_FEATURES


class FrechetInfinity(FeatureMetric):
    r"""Fréchet distance extrapolated to infinitely many samples, in which the bias of finite numbers is gone.

    With N samples a side the expected distance is d_inf + slope / N to first order. Both sides are split at random into
    g = 1, 2, ..., G disjoint groups; the mean distance over groups is at N / g samples, and a least-squares line in g
    gives the distance at g = 0. Chong and Forsyth draw 15 subsets of different sizes; disjoint groups use every
    sample at every size, so that the line's points share their first-order error and the fit adds none. Several splits
    are averaged. The estimate may fall below 0 where the distributions are the same; with fewer than about four samples
    a dimension in a group the line is no line any more, and it falls too low.

    The interval has the width of the distance's own: extrapolating adds no error to first order.

    The slope is of the line in 1/N with N the generated samples (and the real ones in proportion): a distance at N
    samples has about slope / N of bias.

    Args:
        extractor: See `FeatureMetric`.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them", section 4.
    """

    names = ("frechet_infinity",)
    higher_is_better = False
    splits = 4

    def line(self) -> tuple[float, float]:
        """The distance at infinity, and the slope in 1/N.

        Returns:
            Intercept and slope.

        Raises:
            UserError: If a side has fewer than three times as many samples as features.
        """
        with self.joined():
            real, fake = self._sets()
        intercept, slope = self._fit(real, fake)
        return intercept, slope * len(fake)

    def _details(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        return {"frechet_infinity_slope": self._fit(real, fake)[1] * len(fake)}

    def _sets(self) -> tuple[Tensor, Tensor]:
        if self.width > MOST_FEATURES:
            raise UserError(f"FrechetInfinity: {self.width} features are too many for a covariance ({MOST_FEATURES})")
        real, fake = super()._sets()
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
        # Close to a singular covariance the bias is no line any more: groups keep four samples a dimension if they can.
        most = min(max(3, min(len(real), len(fake)) // (4 * self.width)), 5)
        generator = torch.Generator().manual_seed(0)
        totals = real.new_zeros(most)
        for _ in range(self.splits):
            a, b = (torch.randperm(len(x), generator=generator).to(x.device) for x in (real, fake))
            for g in range(1, most + 1):
                pairs = zip(real[a].tensor_split(g), fake[b].tensor_split(g), strict=True)
                totals[g - 1] += sum(frechet_distance(*moments_of(x), *moments_of(y)) for x, y in pairs) / g
        groups = torch.arange(1, most + 1, dtype=totals.dtype, device=totals.device)
        points = totals / self.splits
        slope = float(((groups - groups.mean()) * points).sum() / (groups - groups.mean()).square().sum())
        return float(points.mean()) - slope * float(groups.mean()), slope

    def _values(self, real: Tensor, fake: Tensor) -> Tensor:
        return real.new_tensor([self._fit(real, fake)[0]])

    def _influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        # Extrapolation takes off a bias that hardly varies: the first order is the distance's own.
        return frechet_influence(real, fake)

    def _halves(self, real: Tensor, fake: Tensor, real_rows: Tensor, fake_rows: Tensor) -> Tensor:
        # So is the spread of halves, whose own extrapolation would cost a dozen decompositions each.
        pairs = zip(real_rows, fake_rows, strict=True)
        found = [frechet_distance(*moments_of(real[a]), *moments_of(fake[b])) for a, b in pairs]
        return real.new_tensor(found).unsqueeze(1)

    def _lift(self, real: Tensor, fake: Tensor) -> Tensor:
        return real.new_tensor([max(0.0, self._fit(real, fake)[1])])
