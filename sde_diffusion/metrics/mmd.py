r"""Kernel and energy distances: squared maximum mean discrepancies, estimated without bias.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

with means over all pairs of two different samples (Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6). The
estimate is unbiased at every number of samples, and so falls below 0 about half of the time where the two
distributions are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FeatureMetric
from sde_diffusion.metrics.pairwise import centred, slices, squared_distances


class _Discrepancy(FeatureMetric):
    """Unbiased MMD^2 of a kernel, over all pairs, in blocks."""

    higher_is_better = False
    # Of the sets that were looked at last: value, influences and lift of one call share the sums over all pairs.
    _kept: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    def reset(self) -> None:
        """Forget the samples; see `KeptFeatures.reset`."""
        super().reset()
        self._kept = None

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _diagonal(self, x: Tensor) -> Tensor:
        """Mean of k(x_i, x_i)."""
        raise NotImplementedError

    def _place(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The features as the kernel takes them."""
        return real, fake

    def _products(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """sum_j k(x_i, y_j) weights_j, [N, R], without the terms i = j where y is x."""
        parts = []
        for rows in slices(len(x), len(y)):
            block = self._kernel(x[rows], y)
            if x is y:
                block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)] = 0
            parts.append(block @ weights)
        return torch.cat(parts)

    def _halves(self, real: Tensor, fake: Tensor, real_rows: Tensor, fake_rows: Tensor) -> Tensor:
        # One pass over the kernel serves all subsets: w^T K w, with w the subset's indicator.
        x, y = self._place(real, fake)
        v, w = x.new_zeros(len(x), len(real_rows)), x.new_zeros(len(y), len(fake_rows))
        v.scatter_(0, real_rows.T, 1.0)
        w.scatter_(0, fake_rows.T, 1.0)
        n, m = v.sum(0), w.sum(0)
        within_x = (v * self._products(x, x, v)).sum(0) / (n * (n - 1))
        within_y = (w * self._products(y, y, w)).sum(0) / (m * (m - 1))
        between = (v * self._products(x, y, w)).sum(0) / (n * m)
        return (within_x + within_y - 2 * between).unsqueeze(1)

    def _means(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean kernel of each real sample with the other real ones [N, 1] and with the generated [N, 1]; of each
        generated one likewise.
        """
        if self._kept is None or self._kept[0] is not real or self._kept[1] is not fake:
            x, y = self._place(real, fake)
            one_x, one_y = x.new_ones(len(x), 1), y.new_ones(len(y), 1)
            within = [self._products(z, z, one) / (len(z) - 1) for z, one in ((x, one_x), (y, one_y))]
            means = (within[0], self._products(x, y, one_y) / len(y), within[1], self._products(y, x, one_x) / len(x))
            self._kept = (real, fake, means)
        return self._kept[2]

    def _values(self, real: Tensor, fake: Tensor) -> Tensor:
        within_x, between, within_y, _ = self._means(real, fake)
        return within_x.mean(0) + within_y.mean(0) - 2 * between.mean(0)

    def _influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        # Twice the mean witness: 2 (E k(x, x') - E k(x, y)) for a real x, and the other way round.
        within_x, between_x, within_y, between_y = self._means(real, fake)
        return 2 * (within_x - between_x).T, 2 * (within_y - between_y).T

    def _lift(self, real: Tensor, fake: Tensor) -> Tensor:
        # With the diagonal terms it would be |mean embedding - mean embedding|^2.
        within_x, _, within_y, _ = self._means(real, fake)
        pairs = zip(self._place(real, fake), (within_x, within_y), strict=True)
        return torch.stack([(self._diagonal(points) - within.mean(0)) / len(points) for points, within in pairs]).sum(0)


class KernelDistance(_Discrepancy):
    """Kernel (inception) distance: MMD^2 with k(x, y) = (x.y / D + 1)^3, in the features of any extractor.

    torchmetrics' own metric does not serve: it knows only the mean over random subsets, drawn from torch's global
    generator, computed in float32, and fails in a process that saw no batch. Over all pairs the same estimate has no
    chance of its own, and the least variance.

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
        """The customary figure: mean and standard deviation over random subsets, each without replacement.

        The standard deviation is that of one subset's estimate; it is no error of the mean.

        Args:
            subsets: How many.
            size: Samples of each side in a subset.
            seed: Of the subsets.

        Returns:
            Mean and standard deviation.

        Raises:
            UserError: If a side has fewer samples than a subset.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            real, fake = self._sets()
        if min(len(real), len(fake)) < size:
            raise UserError(
                f"KernelDistance: subsets of {size} need as many samples of each side; got {len(real)} real and "
                f"{len(fake)} generated: draw more, or take smaller subsets"
            )
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(subsets):
            a, b = (torch.randperm(len(x), generator=generator)[:size].to(x.device) for x in (real, fake))
            found.append(self._values(real[a], fake[b]))
        values = torch.cat(found)
        return float(values.mean()), float(values.std()) if subsets > 1 else 0.0


class EnergyDistance(_Discrepancy):
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, for points in few dimensions.

    It is 0 only where the two distributions are the same, needs no bandwidth, and is the MMD^2 of the kernel -|x - y|.
    Székely and Rizzo's statistic itself; some take its square root.

    Args:
        extractor: See `FeatureMetric`; `Pixels` for points.
        reset_real_features: See `FeatureMetric`.
        **kwargs: Of `torchmetrics.Metric`.

    References:
        Székely & Rizzo 2013, "Energy statistics: A class of statistics based on distances", equation 5; the identity
        with the MMD: Sejdinovic et al. 2013, theorem 22.
    """

    names = ("energy_distance",)

    def _place(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return centred(real, fake)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return squared_distances(x, y).sqrt_().neg_()

    def _diagonal(self, x: Tensor) -> Tensor:
        return x.new_zeros(())
