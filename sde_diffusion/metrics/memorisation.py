r"""Are the samples copies of the training data? Distances to the training split against distances to the test split."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.metrics.base import FAKE, REAL, TRAIN, FeatureMetric, check_features
from sde_diffusion.metrics.intervals import Reference, Spread
from sde_diffusion.metrics.pairwise import nearest


class Memorisation(FeatureMetric):
    r"""Nearest-neighbour tests of memorisation, in the features of any extractor.

    `memorisation_share`: how often a generated sample's nearest neighbour is of the training split, with the splits'
    sizes equalised by weight: with p = the share of samples whose nearest neighbour among the N training and M test
    samples together is one of training, share = (p / N) / (p / N + (1 - p) / M). 1/2 for fresh samples, 1 for copies.
    All of the training split is looked at: a random part of the test split's size would miss most copies.

    `memorisation_z`: p against its distribution over random relabellings of training and test, exact to two moments. If
    test and training samples are exchangeable given the model, as for a model that has not seen the training split,

        E p = N / (N + M),   var p = [N M / (T (T - 1))] sum_j (c_j - n / T)^2 / n^2,   T = N + M

    with c_j how many of the n generated samples have neighbour j. It holds whatever the model's quality; z > 3 (false
    alarm 0.1%, by the normal approximation) means memorisation.

    `memorisation_ct`: Mann and Whitney's z of the distances of generated samples to the training split against those of
    test samples. Below -3 samples are nearer to the training data than data themselves are: memorisation. It assumes
    nothing about the splits, but a model of poor quality moves it up, and hides copies.

    Args:
        extractor: See `FeatureMetric`.
        reset_real_features: Whether `reset` forgets both splits too.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        ct: Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models", section 3.1, over
        the whole space as one cell. share and z: the nearest-neighbour test of Henze 1988 and Schilling 1986, with the
        generated samples asking.
    """

    names = ("memorisation_share",)
    proportions = ("memorisation_share",)
    higher_is_better = False
    note = "memorisation: a share of 0.5 is none of it; z above 3 or ct below -3 are signs of it"
    sides = (REAL, FAKE, TRAIN)
    train_features: list[Tensor]

    def _sets(self) -> tuple[Tensor, Tensor]:
        """Training and test features together, [N + M, D], and the generated ones."""
        test, fake = super()._sets()
        train = self._joined(TRAIN).double()
        check_features(train, "training samples", type(self).__name__)
        self._n_train, self._n_test = len(train), len(test)
        middle = train.mean(0)
        return torch.cat([train, test]) - middle, fake - middle

    def compute(self) -> dict[str, Tensor]:
        """`memorisation_share`, `memorisation_z` and `memorisation_ct`, float64 scalars.

        Raises:
            UserError: If a split or the samples are too few, or features are not finite.
        """
        real, fake = self._sets()
        share = self._present(self._values(real, fake))[0]
        return {self.names[0]: share, **self._tests(real, fake)}

    def _details(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        return {name: float(value) for name, value in self._tests(real, fake).items()}

    def _tests(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        return {"memorisation_z": self._z(real, fake), "memorisation_ct": self._ct(real, fake)}

    def _neighbours(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each generated sample's squared distance to its nearest neighbour, [n], that one's index, [n], and whether it
        is of the training split, [n] float64.
        """

        def search() -> tuple[Tensor, Tensor, Tensor]:
            # In a random order, always the same: of points at equal distances the first is taken, and copies would
            # else all be found in the training split, which comes first.
            order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0)).to(real.device)
            squared, index = nearest(fake, real[order])
            return squared, order[index], (order[index] < self._n_train).double()

        return self._once(real, fake, search)

    def _values(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._neighbours(real, fake)[2].mean().unsqueeze(0)

    def _present(self, values: Tensor) -> Tensor:
        train, test = values / self._n_train, (1 - values) / self._n_test
        return train / (train + test)

    def _z(self, real: Tensor, fake: Tensor) -> Tensor:
        _, index, label = self._neighbours(real, fake)
        counts, p, total = index.bincount(minlength=len(real)).double(), label.mean(), len(real)
        spread = (counts - counts.mean()).square().sum() / len(fake) ** 2
        variance = self._n_train * self._n_test / (total * (total - 1)) * spread
        return torch.where(variance > 0, (p - self._n_train / total) / variance.sqrt(), 0.0)

    def _ct(self, real: Tensor, fake: Tensor) -> Tensor:
        train, test = real[: self._n_train], real[self._n_train :]
        found, _, label = self._neighbours(real, fake)
        # Where the nearest neighbour is of the test split, that of training has yet to be found.
        elsewhere = label == 0
        found = found.clone()
        found[elsewhere] = nearest(fake[elsewhere], train)[0]
        expected = nearest(test, train)[0].sort().values
        # Of ties half counts as farther.
        below, upto = torch.searchsorted(expected, found), torch.searchsorted(expected, found, right=True)
        farther = 0.5 * (below + upto).double().sum()
        n, m = len(found), len(expected)
        pooled = torch.cat([found, expected]).sort().values
        # Of each value the ties t come out t times, each with t^2 - 1.
        ties = (torch.searchsorted(pooled, pooled, right=True) - torch.searchsorted(pooled, pooled)).double()
        total = n + m
        variance = n * m / 12 * (total + 1 - (ties.square() - 1).sum() / (total * (total - 1)))
        score: Tensor = (farther - n * m / 2) / variance.sqrt()
        return torch.where(variance > 0, score, 0.0)  # all distances alike tell nothing

    def _trials(self, real: Tensor, fake: Tensor, reference: Reference) -> Tensor:
        if reference == "fixed":
            return super()._trials(real, fake, reference)
        # Samples with one neighbour are of one piece.
        counts = self._neighbours(real, fake)[1].bincount().double()
        return (len(fake) ** 2 / counts.square().sum()).unsqueeze(0)

    def _spread(self, real: Tensor, fake: Tensor, resamples: int, seed: int, reference: Reference) -> Spread:
        _, index, label = self._neighbours(real, fake)
        none = real.new_empty(0, 1), real.new_empty(0, 0, 1)
        if reference == "fixed":
            return Spread((label.unsqueeze(0),), *none)
        # Samples with one neighbour share its label, and the splits' sizes are given, as in var p.
        counts = index.bincount(minlength=len(real)).double()
        own = (torch.arange(len(real), device=real.device) < self._n_train).double()
        psi = (counts - counts.mean()) * (own - label.mean()) * (len(real) / len(fake))
        return Spread((psi.unsqueeze(0),), *none)
