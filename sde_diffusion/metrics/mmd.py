r"""Kernel and energy distances: squared maximum mean discrepancies, estimated without bias.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

with means over all pairs of different samples (Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6). The estimate
is unbiased for every number of samples, and so is negative about half of the time if the two distributions are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.pairwise import centred, squared_distances, tiles

_Means = tuple[Tensor, Tensor, Tensor, Tensor]


class _Discrepancy(FeatureMetric):
    """Unbiased MMD^2 of a kernel, over all pairs, in blocks."""

    higher_is_better = False

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _diagonal(self, x: Tensor) -> Tensor:
        """Mean of k(x_i, x_i)."""
        raise NotImplementedError

    def _place(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The features, in the form that the kernel takes."""
        return real, fake

    def _within(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j k(x_i, x_j) over j != i, [N], and the sum of v_i k(x_i, x_j) v_j for each column of v [N, R], [R]."""
        sums, forms = x.new_zeros(len(x)), x.new_zeros(v.shape[1])
        for rows, columns in tiles(len(x), len(x)):
            if columns.start < rows.start:  # the kernel is symmetric
                continue
            tile = self._kernel(x[rows], x[columns])
            if rows == columns:
                tile.fill_diagonal_(0)
            else:
                sums[columns] += tile.sum(0)
            sums[rows] += tile.sum(1)
            forms += (1 if rows == columns else 2) * (v[rows] * (tile @ v[columns])).sum(0)
        return sums, forms

    def _between(self, x: Tensor, y: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sum_j k(x_i, y_j) [N], sum_i k(x_i, y_j) [M], and the sum of v_i k(x_i, y_j) w_j for each column, [R]."""
        sums, others, forms = x.new_zeros(len(x)), y.new_zeros(len(y)), x.new_zeros(v.shape[1])
        for rows, columns in tiles(len(x), len(y)):
            tile = self._kernel(x[rows], y[columns])
            sums[rows] += tile.sum(1)
            others[columns] += tile.sum(0)
            forms += (v[rows] * (tile @ w[columns])).sum(0)
        return sums, others, forms

    def _pass(self, real: Tensor, fake: Tensor, v: Tensor, w: Tensor) -> tuple[_Means, Tensor, Tensor, Tensor]:
        """One pass over all pairs, for the means of all and the sums of subsets.

        Args:
            real: [N, D].
            fake: [M, D].
            v: [N, R], 1 where a real sample is in a subset, else 0.
            w: [M, R], 1 where a generated sample is in a subset, else 0.

        Returns:
            What `_means` returns, and v^T K v, v^T K w, w^T K w, [R] each.
        """
        x, y = self._place(real, fake)
        (within_x, of_x), (within_y, of_y) = self._within(x, v), self._within(y, w)
        between_x, between_y, across = self._between(x, y, v, w)
        n, m = len(x), len(y)
        means = (within_x / (n - 1), between_x / m, within_y / (m - 1), between_y / n)
        return means, of_x, across, of_y

    def halves(self, real: Tensor, fake: Tensor, real_rows: Tensor, fake_rows: Tensor) -> Tensor:
        """See `FeatureMetric`; all in one pass over the pairs."""
        v, w = real.new_zeros(len(real), len(real_rows)), fake.new_zeros(len(fake), len(fake_rows))
        v.scatter_(0, real_rows.T, 1.0)
        w.scatter_(0, fake_rows.T, 1.0)
        n, m = v.sum(0), w.sum(0)
        means, of_x, across, of_y = self._pass(real, fake, v, w)
        self._remember(real, fake, means)
        return (of_x / (n * (n - 1)) + of_y / (m * (m - 1)) - 2 * across / (n * m)).unsqueeze(1)

    def _means(self, real: Tensor, fake: Tensor) -> _Means:
        """Mean kernel of each real sample with the other real ones [N] and with the generated ones [N], and of each
        generated sample with the other generated ones [M] and with the real ones [M].
        """
        none = real.new_zeros(len(real), 0), fake.new_zeros(len(fake), 0)
        return self._once(real, fake, lambda: self._pass(real, fake, *none)[0])

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        within_x, between, within_y, _ = self._means(real, fake)
        return (within_x.mean() + within_y.mean() - 2 * between.mean()).unsqueeze(0)

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric`."""
        # Twice the witness function: 2 (E k(x, x') - E k(x, y)) for a real x, and the reverse for a generated one.
        within_x, between_x, within_y, between_y = self._means(real, fake)
        return 2 * (within_x - between_x).unsqueeze(0), 2 * (within_y - between_y).unsqueeze(0)

    def lift(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        # With the diagonal terms it would be |mean embedding - mean embedding|^2.
        within_x, _, within_y, _ = self._means(real, fake)
        pairs = zip(self._place(real, fake), (within_x, within_y), strict=True)
        lifts = [(self._diagonal(points) - within.mean()) / len(points) for points, within in pairs]
        return torch.stack(lifts).sum().unsqueeze(0)


class KernelDistance(_Discrepancy):
    """Kernel (inception) distance: MMD^2 with k(x, y) = (x.y / D + 1)^3, in the features of any extractor.

    Over all pairs the estimate has no randomness of its own, and the least variance. (torchmetrics' metric averages
    over random subsets from torch's global generator, computes in float32, and fails in a process that saw no batch.)

    Args:
        extractor: See `FeatureMetric`.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        Binkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """

    names = ("kernel_distance",)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)

    def _diagonal(self, x: Tensor) -> Tensor:
        return x.square().mean(1).add(1).pow(3).mean()

    def subset_protocol(self, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The customary values: mean and standard deviation over random subsets, each without replacement.

        The standard deviation is that of the estimate from one subset; it is not the error of the mean.

        Args:
            subsets: Number of subsets.
            size: Number of samples of each side in a subset.
            seed: Seed of the subsets.

        Returns:
            The tuple (mean, standard deviation).

        Raises:
            UserError: If a side has fewer samples than a subset.
        """
        with self.synchronised():
            real, fake = self.sets()
        if min(len(real), len(fake)) < size:
            raise UserError(
                f"KernelDistance: subsets of {size} need as many samples of each side; got {len(real)} real and "
                f"{len(fake)} generated: draw more, or take smaller subsets"
            )
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(subsets):
            a, b = (torch.randperm(len(x), generator=generator)[:size].to(x.device) for x in (real, fake))
            found.append(self.values(real[a], fake[b]))
        values = torch.cat(found)
        return float(values.mean()), float(values.std()) if subsets > 1 else 0.0


class EnergyDistance(_Discrepancy):
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, for points in few dimensions.

    It is 0 only if the two distributions are equal, has no bandwidth, and is the MMD^2 of the kernel -|x - y|. This is
    Székely and Rizzo's statistic; some authors use its square root.

    Args:
        extractor: See `FeatureMetric`; `Pixels` for points.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        Székely & Rizzo 2013, "Energy statistics: A class of statistics based on distances", equation 5; the identity
        with the MMD: Sejdinovic et al. 2013, theorem 22.
    """

    names = ("energy_distance",)
    for_points = True

    def _place(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return centred(real, fake)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return squared_distances(x, y).sqrt_().neg_()

    def _diagonal(self, x: Tensor) -> Tensor:
        return x.new_zeros(())
