r"""Fidelity and variety as separate metrics: precision and recall, density and coverage, by nearest neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.pairwise import (
    PRECISIONS,
    centred,
    neighbour_radii,
    resolved,
    rounding,
    squared_distances,
    tiles,
)
from sde_diffusion.metrics.spread import GROUPS


class PRDC(FeatureMetric):
    """Improved precision and recall, density and coverage, in one pass over all pairs.

    The manifold of a set is the union of balls about its points, each with the distance to the point's k-th nearest
    neighbour in the set as radius.

    `precision`: proportion of the generated samples within the manifold of the real ones (fidelity). `recall`:
    proportion of the real samples within the manifold of the generated ones (variety).

    `density`: mean number of balls of real samples that contain a generated sample, divided by k_density; 1 if the
    samples are distributed as the data, and more if they are concentrated in the middle of the data. A single outlier
    has little effect. `coverage`: proportion of the balls of real samples that contain a generated sample; about
    1 - 2^-k_density if the samples are distributed as the data and equally many.

    All depend on k and on the numbers of samples, and can be compared only at equal ones. For poor models in many
    features the intervals are rough, and those of density too short; see `intervals`.

    Args:
        extractor: See `FeatureMetric`.
        k: Number of neighbours that define a ball, for precision and recall.
        k_density: Number of neighbours that define a ball, for density and coverage.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If k or k_density is not positive.

    References:
        Precision and recall: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
        Models", equations 1 and 2; k = 3 as there. Density and coverage: Naeem et al. 2020, "Reliable Fidelity and
        Diversity Metrics for Generative Models", equations 3 and 4; k = 5 as there; the expected values are its lemmas
        1 and 2.
    """

    names = ("precision", "recall", "density", "coverage")
    proportions = ("precision", "recall", "coverage")
    higher_is_better = True

    def __init__(
        self, extractor: nn.Module, k: int = 3, k_density: int = 5, reset_real_features: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(extractor, reset_real_features, **kwargs)
        self.k, self.k_density = check_count("k", k), check_count("k_density", k_density)

    @property
    def least_for_intervals(self) -> int:
        """See `FeatureMetric`; so that each group of samples has a k-th neighbour."""
        return max(super().least_for_intervals, GROUPS * (max(self.k, self.k_density) + 1))

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        most = max(self.k, self.k_density)
        if min(len(real), len(fake)) <= most:
            raise UserError(
                f"PRDC with k = {self.k} and k_density = {self.k_density}: a k-th neighbour needs more than {most} "
                f"samples of each side; got {len(real)} real and {len(fake)} generated"
            )
        real, fake = centred(real, fake)
        for dtype in PRECISIONS:
            x, y = real.to(dtype), fake.to(dtype)
            of_x, of_y = neighbour_radii(x, most), neighbour_radii(y, self.k)
            if resolved(x, of_x[:, 0]) and resolved(y, of_y[:, 0]):
                break
        # Plus the rounding, so that a point on the surface of a ball counts, as in exact arithmetic.
        of_x, of_y = of_x + rounding(x, of_x), of_y + rounding(y, of_y)
        radii, dense, of_fake = of_x[:, self.k - 1], of_x[:, self.k_density - 1], of_y[:, -1]
        # Distances of a sample to the nearest real ball, of a real point to the nearest generated ball and sample.
        to_real, to_fake, to_sample = (x.new_full((n,), torch.inf) for n in (len(y), len(x), len(x)))
        balls = x.new_zeros((), dtype=torch.float64)
        for rows, columns in tiles(len(y), len(x)):
            tile = squared_distances(y[rows], x[columns])
            balls += torch.le(tile, dense[columns]).count_nonzero()
            for least, gaps in (
                (to_sample[columns], tile.amin(0)),
                (to_real[rows], (tile - radii[columns]).amin(1)),
                (to_fake[columns], tile.sub_(of_fake[rows, None]).amin(0)),
            ):
                torch.minimum(least, gaps, out=least)
        within = to_real <= 0, to_fake <= 0, to_sample <= dense
        precision, recall, coverage = (inside.double().mean() for inside in within)
        return torch.stack([precision, recall, balls / (self.k_density * len(y)), coverage])

    def trials(self, real: Tensor, fake: Tensor, fixed: bool) -> Tensor:
        """See `FeatureMetric`."""
        return real.new_tensor([len(fake), len(real), len(fake), len(real)])  # the number of samples in each mean

    def present(self, values: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return values.clamp(min=0)
