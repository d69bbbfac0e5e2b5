r"""Fidelity and variety apart: precision and recall, density and coverage, by nearest neighbours.

A set's manifold is the union of balls about its points, each reaching to the point's k-th nearest neighbour in the set.
The figures depend on k and on the numbers of samples: compare at equal ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.intervals import GROUPS, Reference, Spread
from sde_diffusion.metrics.pairwise import centred, neighbour_radii, slices, squared_distances


class _Neighbours(FeatureMetric):
    by_groups = True
    higher_is_better = True

    def __init__(self, extractor: nn.Module, k: int, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(extractor, reset_real_features, **kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        self.k = k

    def _check_count(self, real: Tensor, fake: Tensor, parts: int, purpose: str) -> None:
        least = min(len(real), len(fake))
        if least // parts <= self.k:
            raise UserError(
                f"{type(self).__name__} with k = {self.k}: {purpose} needs more than {self.k * parts + parts - 1} "
                f"samples of each side; got {len(real)} real and {len(fake)} generated"
            )

    def _spread(self, real: Tensor, fake: Tensor, resamples: int, seed: int, reference: Reference) -> Spread:
        self._check_count(real, fake, GROUPS, f"an interval from {GROUPS} groups")
        return super()._spread(real, fake, resamples, seed, reference)

    def _values(self, real: Tensor, fake: Tensor) -> Tensor:
        self._check_count(real, fake, 1, "a k-th neighbour")
        return self._figures(*centred(real, fake))

    def _figures(self, real: Tensor, fake: Tensor) -> Tensor:
        raise NotImplementedError


class PrecisionRecall(_Neighbours):
    """Improved precision and recall.

    Precision: share of the generated samples within the manifold of the real ones (fidelity). Recall: share of the real
    ones within the manifold of the generated ones (variety).

    Args:
        extractor: See `FeatureMetric`.
        k: Neighbours that make a ball.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If k is not positive.

    References:
        Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", equations 1
        and 2; k = 3 as there.
    """

    names = ("precision", "recall")
    proportions = ("precision", "recall")

    def __init__(self, extractor: nn.Module, k: int = 3, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(extractor, k, reset_real_features, **kwargs)

    def _figures(self, real: Tensor, fake: Tensor) -> Tensor:
        real_radii, fake_radii = neighbour_radii(real, self.k), neighbour_radii(fake, self.k)
        within_real, within_fake = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
        for rows in slices(len(fake), len(real)):
            block = squared_distances(fake[rows], real)
            within_real += int((block <= real_radii).any(1).sum())
            within_fake |= (block <= fake_radii[rows, None]).any(0)
        return torch.stack([real.new_tensor(within_real / len(fake)), within_fake.double().mean()])


class DensityCoverage(_Neighbours):
    """Density and coverage: precision and recall that one outlier cannot move far.

    Density: mean number of real balls about a generated sample, over k; 1 where the samples are as the data, and above
    it where they crowd the data's middle. Coverage: share of the real balls with a generated sample within; close to
    1 - 2^-k where the samples are as the data and as many.

    Args:
        extractor: See `FeatureMetric`.
        k: Neighbours that make a ball.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If k is not positive.

    References:
        Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", equations 3 and 4; k = 5 as
        there; the expected values are its lemmas 1 and 2.
    """

    names = ("density", "coverage")
    proportions = ("coverage",)

    def __init__(self, extractor: nn.Module, k: int = 5, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(extractor, k, reset_real_features, **kwargs)

    def _figures(self, real: Tensor, fake: Tensor) -> Tensor:
        radii = neighbour_radii(real, self.k)
        balls, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
        for rows in slices(len(fake), len(real)):
            within = squared_distances(fake[rows], real) <= radii
            balls += int(within.sum())
            covered |= within.any(0)
        return torch.stack([real.new_tensor(balls / (self.k * len(fake))), covered.double().mean()])

    def _present(self, values: Tensor) -> Tensor:
        return values.clamp(min=0)
