"""The Fréchet distance between two sets of samples, by the first two moments of their features."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_bool
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.base import FAKE, REAL, FeatureMetric
from sde_diffusion.metrics.checks import is_first, num_features
from sde_diffusion.metrics.reference import MOST_FEATURES, ReferenceStatistics, fingerprint


def _factor(cov: Tensor) -> Tensor:
    """F [D, r] with F F^T = cov, r its numerical rank.

    An eigenvalue below D eps max(eigenvalues) is rounding, and is dropped: its square root would be an error of
    sqrt(eps) ~ 1e-8 in each null direction.
    """
    values, vectors = torch.linalg.eigh(cov)
    keep = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    factor: Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared 2-Wasserstein distance between the Gaussians N(mean1, cov1) and N(mean2, cov2).

        d^2 = |mean1 - mean2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

    With C_i = F_i F_i^T the last trace is the sum of the singular values of F_1^T F_2. These are the square roots of
    the eigenvalues of C1^(1/2) C2 C1^(1/2), computed without squaring, so that no digits are lost if a covariance is
    singular. Computed in float64.

    Args:
        mean1: Mean of the first, [D].
        cov1: Covariance C1 of the first, [D, D], symmetric, positive semi-definite up to rounding.
        mean2: Mean of the second, [D].
        cov2: Covariance C2 of the second, [D, D].

    Returns:
        The squared distance, as is customary, in squared units of the features; at least 0.

    Raises:
        ValueError: If the shapes do not agree, or a number is NaN or infinite.

    References:
        Dowson & Landau 1982, "The Fréchet Distance between Multivariate Normal Distributions"; as the FID, Heusel et
        al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6.
    """
    d = mean1.shape[0] if mean1.ndim == 1 else -1
    if mean2.shape != (d,) or cov1.shape != (d, d) or cov2.shape != (d, d):
        shapes = ", ".join(str(tuple(x.shape)) for x in (mean1, cov1, mean2, cov2))
        raise ValueError(f"means must be [D] and covariances [D, D] with one D; got {shapes}")
    mean1, cov1, mean2, cov2 = (x.double() for x in (mean1, cov1, mean2, cov2))
    if not all(bool(x.isfinite().all()) for x in (mean1, cov1, mean2, cov2)):
        raise ValueError("means and covariances must be finite; some are NaN or infinite")
    overlap = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap
    return max(0.0, float(distance))


def moments_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D]."""
    return features.mean(0), features.T.cov().view(features.shape[1], -1)


def frechet_influence(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """First-order effect of each sample on the distance.

    With T the optimal map's matrix from the one Gaussian to the other, C_1^(-1/2) (C_1^(1/2) C_2 C_1^(1/2))^(1/2)
    C_1^(-1/2), the derivatives of the distance are 2 (mean_1 - mean_2) by mean_1 and 1 - T by C_1, and so

        psi(x) = 2 (mean_1 - mean_2).(x - mean_1) + (x - mean_1)^T (1 - T) (x - mean_1)

    and in the same way for the other side. Directions in which a side has no variance are left out of T.

    Args:
        real: [N, D] float64, N > D.
        fake: [M, D] float64, M > D.

    Returns:
        psi of each sample, [1, N] and [1, M], up to a constant.

    References:
        Rippl, Munk & Sturm 2016, "Limit laws of the empirical Wasserstein distance: Gaussian distributions", theorem
        2.2.
    """
    (mean1, cov1), (mean2, cov2) = moments_of(real), moments_of(fake)
    factor1, factor2 = _factor(cov1), _factor(cov2)
    u, s, vh = torch.linalg.svd(factor1.T @ factor2, full_matrices=False)
    found = []
    for x, mean, other, factor, side in ((real, mean1, mean2, factor1, u), (fake, mean2, mean1, factor2, vh.T)):
        # F = V diag(a)^(1/2), whose pseudo-inverse is F^T with each row over its eigenvalue.
        inverse = factor / factor.square().sum(0)
        root = inverse @ (side * s.sqrt())
        y = x - mean
        found.append((2 * y @ (mean - other) + y.square().sum(1) - (y @ root).square().sum(1)).unsqueeze(0))
    return found[0], found[1]


class FrechetDistance(FeatureMetric):
    """Fréchet distance between real and generated samples in the features of any extractor, as a streaming metric.

    It sums, for each side, the count n, f and f f^T in float64. The sums add across batches and across processes, so
    any division of the same samples gives the same value. The covariance is unbiased (n - 1), as in torchmetrics and
    pytorch-fid. Sums about the origin lose log10(|mean|^2 / var) of float64's 16 digits; a mean that is 1,000 standard
    deviations from 0 leaves ten, far more than the sampling error.

    torchmetrics' FrechetInceptionDistance computes the eigenvalues of the non-symmetric C1 C2, which singular
    covariances make inaccurate, rounds the result to the features' float32, and fails in a process that saw no batch.

    Call `update(samples, real=...)` and `compute()`; `forward` would need both sides in every batch. With a
    distributed sampler leave out the samples that it repeats as padding: they would count as any other. Keep the
    metric in a callback: in a model, the extractor's weights would enter its checkpoints and moving averages.

    Args:
        extractor: Module with an int `num_features` from samples [B, ...] to features [B, num_features]; see
            `load_extractor`. It takes samples as the models make them, on [-1, 1].
        reset_real_features: Whether `reset` also clears the real side; False keeps a fixed reference.
        keep_features: Whether to store all features too, 4 D bytes a sample; `interval` needs them.
        **kwargs: Passed to `torchmetrics.Metric`, such as `sync_on_compute`.

    Raises:
        ValueError: If the extractor has no int `num_features`.
        UserError: If it has too many features for a covariance.
    """

    names = ("frechet_distance",)
    higher_is_better = False

    def __init__(
        self, extractor: nn.Module, reset_real_features: bool = True, keep_features: bool = False, **kwargs: Any
    ) -> None:
        width = num_features(extractor)
        if width > MOST_FEATURES:
            raise UserError(
                f"Fréchet distance: {width} features, and a covariance of more than {MOST_FEATURES} does not fit: use "
                "an extractor with fewer features (inception, dinov2), or the kernel distance, which needs none"
            )
        super().__init__(extractor, reset_real_features, **kwargs)
        self.keep_features = check_bool("keep_features", keep_features)
        for side in self.sides:
            self.add_state(f"{side}_sum", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_cov_sum", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_num_samples", torch.tensor(0), dist_reduce_fx="sum")

    def features(self, real: bool) -> Tensor:
        """See `FeatureMetric.features`.

        Raises:
            UserError: If they are not stored.
        """
        if not self.keep_features:
            raise UserError("features and intervals need them kept: FrechetDistance(extractor, keep_features=True)")
        return super().features(real)

    def _add(self, features: Tensor, side: str) -> None:
        if self.keep_features:
            super()._add(features, side)
        exact = features.double()
        self._add_sums(side, len(exact), exact.sum(0), exact.T @ exact)

    def _add_sums(self, side: str, n: int, total: Tensor, outer: Tensor) -> None:
        for name, term in (("sum", total), ("cov_sum", outer), ("num_samples", n)):
            state = f"{side}_{name}"
            setattr(self, state, getattr(self, state) + term)

    def use_reference(self, reference: ReferenceStatistics) -> None:
        """Take the real side from statistics on disk; see `FeatureMetric.use_reference`.

        Args:
            reference: Of this metric's extractor; moments suffice unless keep_features.

        Raises:
            UserError: If they are another extractor's, or have no features with keep_features.
        """
        reference.check(fingerprint(self.extractor), self.width)
        if self.keep_features and reference.features is None:
            raise UserError(
                "an interval of the Fréchet distance needs the features of the reference, which holds moments alone; "
                "compute it again with keep_features=True"
            )
        if not is_first():
            return
        mean, cov = reference.mean.to(self.device), reference.cov.to(self.device)
        outer = (reference.n - 1) * cov + reference.n * mean.outer(mean)
        self._add_sums(REAL, reference.n, reference.n * mean, outer)
        if self.keep_features and reference.features is not None:
            getattr(self, REAL).append(reference.features.to(self.device))

    def moments(self, real: bool) -> tuple[int, Tensor, Tensor]:
        """Count, mean [D] and unbiased covariance [D, D] of one side's features, in float64.

        Args:
            real: Which side.

        Returns:
            The tuple (n, mean, covariance).

        Raises:
            UserError: If fewer than two samples were seen, or a feature was NaN or infinite.
        """
        side, name = (REAL, "real data") if real else (FAKE, "generated samples")
        n = int(getattr(self, f"{side}_num_samples"))
        total, outer = getattr(self, f"{side}_sum"), getattr(self, f"{side}_cov_sum")
        if n < 2:
            raise UserError(f"Fréchet distance: {n} {name} seen; at least 2 are needed, and thousands are better")
        if not outer.isfinite().all():
            raise UserError(f"Fréchet distance: some of {n} {name} have NaN or infinite features")
        mean = total / n
        return n, mean, (outer - n * mean.outer(mean)) / (n - 1)

    def compute(self) -> Tensor:
        """The distance, over all processes, as a float64 scalar.

        Warns if a side has too few samples for a covariance of full rank: the distance is defined, but biased upward.

        Returns:
            Scalar tensor, squared units of the features.

        Raises:
            UserError: If a side has fewer than two samples, or non-finite features.
        """
        n_real, mean_real, cov_real = self.moments(real=True)
        n_fake, mean_fake, cov_fake = self.moments(real=False)
        d = len(mean_real)
        if min(n_real, n_fake) <= d:
            warnings.warn(
                f"Fréchet distance of {n_fake} generated to {n_real} real samples in {d} feature dimensions: with no "
                f"more samples than dimensions the covariance is singular and the distance far too high; use more than "
                f"{d} samples (ten times as many is good), an extractor with fewer features, or the kernel distance, "
                "which needs no covariance",
                stacklevel=2,
            )
        return mean_real.new_tensor(frechet_distance(mean_fake, cov_fake, mean_real, cov_real))

    def sets(self) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric.sets`; enough of them for an interval."""
        real, fake = super().sets()
        if min(len(real), len(fake)) // 2 <= self.width:
            raise UserError(
                f"Fréchet distance: {len(real)} real and {len(fake)} generated samples in {self.width} feature "
                "dimensions; halves of them, which an interval needs, have a singular covariance. Draw more than "
                f"{2 * self.width + 1} of each, use an extractor with fewer features, or the kernel distance, which "
                "needs no covariance"
            )
        return real, fake

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return real.new_tensor([frechet_distance(*moments_of(real), *moments_of(fake))])

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric`."""
        return frechet_influence(real, fake)

    def lift(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return real.new_zeros(1)

    def present(self, values: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return values.clamp(min=0)
