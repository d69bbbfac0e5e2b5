r"""Are the samples copies of the training data? A nearest-neighbour test with the training and the test split."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.metrics.base import FAKE, REAL, TRAIN, FeatureMetric
from sde_diffusion.metrics.checks import check_features
from sde_diffusion.metrics.pairwise import nearest_shares


class Memorisation(FeatureMetric):
    r"""Nearest-neighbour tests of memorisation, in the features of any extractor.

    `memorisation_share`: the proportion of generated samples whose nearest neighbour is in the training split, weighted
    as if both splits had the same size. With p the proportion whose nearest neighbour among all N training and M test
    samples is a training sample, it is (p / N) / (p / N + (1 - p) / M): 1/2 for fresh samples, 1 for copies. All of the
    training split is used, as a random part of the test split's size would miss most copies.

    `memorisation_z`: p standardised by its mean and variance over random relabellings of training and test. If test and
    training samples are exchangeable given the model, as for a model that has not seen the training split,

        E p = N / (N + M),   var p = [N M / (T (T - 1))] sum_j (c_j - n / T)^2 / n^2,   T = N + M

    with c_j the number of the n generated samples whose neighbour is j. Items that are equally near, as copies of one
    in both splits are, count as equal parts of the neighbour. This holds whatever the quality of the model; z > 3 has a
    false-alarm rate of 0.1% (normal approximation). It indicates memorisation if the splits were drawn at random from
    one source; otherwise z also depends on how the splits differ.

    The test that compares distances of samples and of test data to the training split (C_T, Meehan et al. 2020) is not
    included: it also reports copying if a model is only too narrow, even over many cells (benchmarks/README.md).

    Args:
        extractor: See `FeatureMetric`.
        reset_real_features: Whether `reset` also clears both splits.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        The nearest-neighbour tests of Schilling 1986 and Henze 1988, here with the neighbours of generated samples.
        C_T: Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models", section 3.
    """

    names = ("memorisation_share",)
    proportions = ("memorisation_share",)
    higher_is_better = False
    note = "memorisation: a share of 0.5 is none; z above 3 is a sign of it if the splits were drawn at random"
    sides = (REAL, FAKE, TRAIN)
    second_order = False

    def sets(self) -> tuple[Tensor, Tensor]:
        """Training and test features together, [N + M, D], and the generated ones."""
        test, fake = super().sets()
        train = self._concatenated(TRAIN).double()
        check_features(train, "training samples", type(self).__name__)
        self._n_train, self._n_test = len(train), len(test)
        middle = train.mean(0)
        return torch.cat([train, test]) - middle, fake - middle

    def compute(self) -> dict[str, Tensor]:
        """`memorisation_share` and `memorisation_z`, float64 scalars.

        Raises:
            UserError: If a split or the samples are too few, or features are not finite.
        """
        real, fake = self.sets()
        share = self.present(self.values(real, fake))[0]
        return {self.names[0]: share, "memorisation_z": self._z(real, fake)}

    def details(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """See `FeatureMetric`."""
        return {"memorisation_z": float(self._z(real, fake))}

    def _neighbours(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """How many generated samples have each item as their nearest, [T], and the share of training items, [n]."""

        def search() -> tuple[Tensor, Tensor]:
            return nearest_shares(fake, real, (torch.arange(len(real), device=real.device) < self._n_train).to(real))

        return self._once(real, fake, search)

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return self._neighbours(real, fake)[1].mean().unsqueeze(0)

    def present(self, values: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        train, test = values / self._n_train, (1 - values) / self._n_test
        return train / (train + test)

    def _z(self, real: Tensor, fake: Tensor) -> Tensor:
        counts, label = self._neighbours(real, fake)
        p, total = label.mean(), len(real)
        spread = (counts - counts.mean()).square().sum() / len(fake) ** 2
        variance = self._n_train * self._n_test / (total * (total - 1)) * spread
        return torch.where(variance > 0, (p - self._n_train / total) / variance.sqrt(), 0.0)

    def trials(self, real: Tensor, fake: Tensor, fixed: bool) -> Tensor:
        """See `FeatureMetric`; samples with the same neighbour are not independent, unless the splits are fixed."""
        if fixed:
            return super().trials(real, fake, fixed)
        counts = self._neighbours(real, fake)[0]
        return (len(fake) ** 2 / counts.square().sum()).unsqueeze(0)

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric`; the one or the other is used, see `influences`."""
        counts, label = self._neighbours(real, fake)
        # Samples with the same neighbour share its label, and the sizes of the splits are fixed, as in var p.
        own = (torch.arange(len(real), device=real.device) < self._n_train).double()
        psi = (counts - counts.mean()) * (own - label.mean()) * (len(real) / len(fake))
        return psi.unsqueeze(0), label.unsqueeze(0)

    def influences(self, real: Tensor, fake: Tensor, fixed: bool) -> tuple[Tensor, ...]:
        """See `FeatureMetric`: the labels of the data vary, given the samples, or the samples, given fixed splits."""
        of_real, of_fake = self.influence(real, fake)
        return (of_fake,) if fixed else (of_real,)
