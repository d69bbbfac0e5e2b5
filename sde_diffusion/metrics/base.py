"""What all metrics of two sets of samples share: they turn samples into features, keep them, and see bad ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from sde_diffusion.checks import check_bool
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.intervals import WithIntervals
from sde_diffusion.metrics.reference import ReferenceStatistics, fingerprint
from sde_diffusion.modality import kind_by_shape

T = TypeVar("T")
REAL, FAKE, TRAIN = "real_features", "fake_features", "train_features"
"""What a metric may look at: the data, the model's samples, and the training split where the data are of another."""


def check_samples(x: Tensor) -> None:
    """See that a batch is what models make.

    Args:
        x: [B, ...]; images [B, C, H, W] on [-1, 1], others on any range.

    Raises:
        UserError: If the samples are no floats, are not finite, or are images out of range.
    """
    if not x.is_floating_point():
        raise UserError(
            f"samples are {str(x.dtype).removeprefix('torch.')}; metrics take floats on [-1, 1]: "
            "sde_diffusion.data.from_levels turns levels into them"
        )
    if not x.isfinite().all():
        bad = int((~x.flatten(1).isfinite().all(1)).sum())
        raise UserError(
            f"of {len(x)} samples {bad} hold NaN or infinite numbers: the sampler that made them diverged, or its "
            "input did"
        )
    if kind_by_shape(x.shape[1:]).bounded and len(x) and x.abs().max() > 1.001:
        raise UserError(
            f"images must lie on [-1, 1]; these run from {float(x.min()):.3g} to {float(x.max()):.3g}: "
            "scale images on [0, 255] as x / 127.5 - 1, and clamp a model's samples to the range"
        )


def num_features(extractor: nn.Module) -> int:
    """Width of an extractor's features.

    Raises:
        ValueError: If the extractor does not state it.
    """
    found = getattr(extractor, "num_features", None)
    if not isinstance(found, int):
        raise ValueError(f"extractor must have an int num_features; got {type(extractor).__name__} with {found!r}")
    return found


class KeptFeatures(WithIntervals, Metric):
    """States for features of both sides, kept whole for statistics that no sums can give.

    The `sides` that it looks at are states, which join across processes (`dist_reduce_fx="cat"`) in the order of the
    ranks.
    """

    real_features: list[Tensor]
    fake_features: list[Tensor]
    sides: tuple[str, ...] = (REAL, FAKE)
    note = ""  # how to read the figures, where that does not go without saying
    for_points = False  # whether it is meant for data of few dimensions, rather than for features of images
    width: int
    reset_real_features: bool
    extractor: nn.Module

    def _add_states(self, width: int) -> None:
        self.width = width
        for side in self.sides:
            self.add_state(side, [], dist_reduce_fx="cat")

    def features(self, real: bool) -> Tensor:
        """Features of one side, [N, num_features] float32, in the order of the updates.

        Args:
            real: Which side.
        """
        return self._joined(REAL if real else FAKE)

    def update(self, imgs: Tensor, real: bool, train: bool = False) -> None:
        """Add a batch; one of a side that the metric does not look at is passed over, so that all can be fed alike.

        Args:
            imgs: [B, ...] images on [-1, 1] or points, any B >= 0.
            real: True for the data, False for the model's samples.
            train: With real, whether the batch is of the training split, where the other data are of another.

        Raises:
            UserError: If samples are not finite or out of range.
            ValueError: If they are of another shape than the extractor's, or generated and said to be of a split.
        """
        if train and not real:
            raise ValueError("train=True is for real data; generated samples are of no split")
        side = TRAIN if train else REAL if real else FAKE
        if side in self.sides:
            check_samples(imgs)
            self.add(self.extractor(imgs).float(), side)

    def add(self, features: Tensor, side: str) -> None:
        """Add features that were computed already, by this metric's `extractor`.

        Args:
            features: [B, num_features] float32, any B >= 0.
            side: One of `sides`.

        Raises:
            ValueError: If the metric has no such side, or the features have another width.
        """
        if side not in self.sides or features.shape[1:] != (self.width,):
            raise ValueError(
                f"{type(self).__name__} takes features [B, {self.width}] of {', '.join(self.sides)}; got "
                f"{tuple(features.shape)} of {side}"
            )
        self._add(features.to(self.device), side)
        self._computed = None  # torchmetrics keeps the last result until an update

    def _add(self, features: Tensor, side: str) -> None:
        getattr(self, side).append(features)

    def _joined(self, side: str) -> Tensor:
        kept = getattr(self, side, [])  # a side that this metric does not look at is empty
        if isinstance(kept, Tensor):  # after a synchronisation
            return kept
        return torch.cat(kept) if kept else torch.empty(0, self.width, device=self.device)

    def _sets(self) -> tuple[Tensor, Tensor]:
        sets = self.features(real=True).double(), self.features(real=False).double()
        for name, side, features in zip(("real data", "generated samples"), (REAL, FAKE), sets, strict=True):
            if side in self.sides:
                check_features(features, name, type(self).__name__, self.least)
        return sets

    def joined(self) -> AbstractContextManager[None]:
        """See `WithIntervals.joined`."""
        context: AbstractContextManager[None] = self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute
        )
        return context

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Join the states of all processes."""
        # torchmetrics gathers nothing for an empty list, and the processes that have features would wait for it.
        for side in self.sides:
            kept = getattr(self, side)
            if isinstance(kept, list) and not kept:
                kept.append(torch.empty(0, self.width, device=self.device))
        super().sync(*args, **kwargs)

    def reset(self) -> None:
        """Forget the samples, and the real data unless they are to stay."""
        # torchmetrics empties the lists themselves.
        kept = {side: list(getattr(self, side)) for side in self.sides if side != FAKE}
        super().reset()
        if not self.reset_real_features:
            for side, features in kept.items():
                setattr(self, side, features)

    def clear(self) -> None:
        """Forget all samples, also where `reset` would leave the real ones."""
        kept, self.reset_real_features = self.reset_real_features, True
        self.reset()
        self.reset_real_features = kept


class FeatureMetric(KeptFeatures):
    """Base of metrics of the features of real and generated samples.

    A metric of one's own is a subclass that states

    - `names`, a tuple with the name of each of its S figures;
    - `statistic(real, fake)`, which returns the figures, [S] or for one a number, of features [N, D] and [M, D] in
      float64, of which N and M may differ and are smaller where intervals are made;
    - and if it is to be a torchmetrics metric in all respects, `higher_is_better`.

    It then has `update`, `compute`, `interval`, `difference` and a place in `measure`. What it may state besides:

    - `influence(real, fake)`: how each sample moves the figures to first order, [S, N] and [S, M] (or [N] and [M]), up
      to a constant for each row. For a mean of f(x) over the samples it is f(x) itself. Intervals come from it;
      without one they come from the scatter among five groups of the samples, which takes no mathematics and more time;
      see `sde_diffusion.metrics.intervals`.
    - `proportions`: those of `names` that are shares of samples, on [0, 1], so that intervals stay within;
    - `least`: samples that each side must have, 2 unless stated;
    - `sides`: what it looks at, `REAL` and `FAKE` unless stated; of a side that it does not, features are [0, D];
    - `present(values)`: a monotone map of the figures, [S], to the scale that is reported, such as a square root where
      `statistic` gives squares. Intervals are made before it;
    - `lift(real, fake)`: of a squared distance what to add so that it is a sum of squares, [S]: 0, or the diagonal
      that an unbiased estimate leaves out. Its intervals are then right near 0 too;
    - `details(real, fake)`: numbers to tell beside, by name, without intervals;
    - `note`: a sentence on how to read the figures; `for_points`: True where it is meant for data of few dimensions.

        class MeanDistance(FeatureMetric):
            names = ("mean_distance",)
            higher_is_better = False

            def statistic(self, real, fake):
                return (real.mean(0) - fake.mean(0)).norm()

    Metrics of one extractor in a `torchmetrics.MetricCollection` share their features: it sees that the states are the
    same, and updates one for all. Features that were computed elsewhere go in through `Pixels((num_features,))`.

    Args:
        extractor: Module with an int `num_features` from samples [B, ...] to features [B, num_features]; see
            `load_extractor`.
        reset_real_features: Whether `reset` forgets the real side too; False keeps a fixed reference.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If the extractor has no int `num_features`.
        TypeError: If the subclass has no `names`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, extractor: nn.Module, reset_real_features: bool = True, **kwargs: Any) -> None:
        width = num_features(extractor)
        if not self.names:
            raise TypeError(f"{type(self).__name__} must state names, such as names = ('my_distance',)")
        super().__init__(**kwargs)
        self.extractor = extractor
        self.reset_real_features = check_bool("reset_real_features", reset_real_features)
        self._add_states(width)
        self._kept: tuple[Tensor, Tensor, Any] | None = None

    def reset(self) -> None:
        """See `KeptFeatures.reset`."""
        super().reset()
        self._kept = None

    def _keep(self, real: Tensor, fake: Tensor, made: Any) -> None:
        """Keep what costs most, for the figures that are asked of the same sets next."""
        self._kept = (real, fake, made)

    def _once(self, real: Tensor, fake: Tensor, make: Callable[[], T]) -> T:
        """What is kept of these very tensors, or else made and kept."""
        if self._kept is None or self._kept[0] is not real or self._kept[1] is not fake:
            self._keep(real, fake, make())
        assert self._kept is not None
        return cast(T, self._kept[2])

    def use_reference(self, reference: ReferenceStatistics) -> None:
        """Take the real side from statistics on disk, in place of `update(..., real=True)`.

        Among several processes the first takes them, so that they count once.

        Args:
            reference: Of this metric's extractor, with features.

        Raises:
            UserError: If they are another extractor's, or hold moments alone.
        """
        reference.check(fingerprint(self.extractor), self.width)
        if reference.features is None:
            raise UserError(
                f"{type(self).__name__} needs the features of the reference, which holds moments alone (enough for the "
                "Fréchet distance); make it anew with keep_features=True"
            )
        if is_first():
            self.real_features.append(reference.features.to(self.device))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The figure as a float64 scalar, or a dict of them where there are several.

        Raises:
            UserError: If there are too few samples, or features are not finite.
        """
        values = self.present(self._values(*self._sets()))
        return values[0] if len(self.names) == 1 else dict(zip(self.names, values, strict=True))


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


def check_features(features: Tensor, side: str, metric: str, least: int = 2) -> None:
    """See that there are enough features, all finite.

    Raises:
        UserError: Otherwise.
    """
    if len(features) < least:
        raise UserError(f"{metric}: {len(features)} {side} seen; at least {least} are needed, and thousands are better")
    if not features.isfinite().all():
        raise UserError(f"{metric}: of {len(features)} {side} some have NaN or infinite features; look at them")
