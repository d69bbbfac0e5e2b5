"""The base of all metrics: it turns samples into features, stores them, and defines what a metric must provide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from sde_diffusion.checks import check_bool
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.checks import check_features, check_samples, is_first, num_features
from sde_diffusion.metrics.reference import ReferenceStatistics, fingerprint

T = TypeVar("T")
REAL, FAKE, TRAIN = "real_features", "fake_features", "train_features"
"""The sets that a metric may use: the data, the model's samples, and the training split if the data are another."""
LEAST_FOR_INTERVALS = 25
"""Samples of each side that a confidence interval needs; with fewer, intervals are too short."""


class FeatureMetric(Metric):
    """Base class of metrics of the features of real and generated samples.

    A metric of your own is a subclass that defines

    - `names`, a tuple with the name of each of its S values;
    - `statistic(real, fake)`, which returns the values, [S] or a number if there is one, of features [N, D] and [M, D]
      in float64. N and M may differ, and are smaller when intervals are computed;
    - and, to be a complete torchmetrics metric, `higher_is_better`.

        class MeanDistance(FeatureMetric):
            names = ("mean_distance",)
            higher_is_better = False

            def statistic(self, real, fake):
                return (real.mean(0) - fake.mean(0)).norm()

    It then works with `update`, `compute`, `interval`, `difference` and `measure`. Optionally it defines

    - `influence(real, fake)`: how much each sample changes the values to first order, [S, N] and [S, M] (or [N] and
      [M]), up to a constant for each row. For a mean of f(x) over the samples it is f(x). Confidence intervals are
      computed from it; without it they come from the scatter among five groups of the samples, which needs no
      derivation and takes longer; see `sde_diffusion.metrics.intervals`;
    - `proportions`: those of `names` that are proportions of samples, on [0, 1], so that intervals stay in that range;
    - `least`: the number of samples that each side must have, 2 by default;
    - `sides`: the sets that it uses, `REAL` and `FAKE` by default; features of a set that it does not use are [0, D];
    - `present(values)`: a monotone map of the values, [S], to the scale that is reported, such as a square root if
      `statistic` returns squares. Intervals are computed before it is applied;
    - `lift(real, fake)`: for a squared distance, what must be added to make it a sum of squares, [S]: 0, or the
      diagonal terms that an unbiased estimate leaves out. Intervals are then also right near 0;
    - `details(real, fake)`: further numbers to report, by name, without intervals;
    - `note`: a sentence on how to read the values; `for_points`: True if it is meant for data of few dimensions.

    The features are states that are concatenated across processes in the order of the ranks. Metrics of one extractor
    in a `torchmetrics.MetricCollection` share their features: it sees that the states are equal, and updates one for
    all. Features computed elsewhere can be added through `Pixels((num_features,))`.

    Args:
        extractor: Module with an int `num_features` that maps samples [B, ...] to features [B, num_features]; see
            `load_extractor`.
        reset_real_features: Whether `reset` also clears the real side; False keeps a fixed reference.
        **kwargs: Passed to `torchmetrics.Metric`.

    Raises:
        ValueError: If the extractor has no int `num_features`.
        TypeError: If the subclass has no `names`.
    """

    names: tuple[str, ...] = ()
    proportions: tuple[str, ...] = ()
    sides: tuple[str, ...] = (REAL, FAKE)
    least = 2
    note = ""
    for_points = False
    second_order = True  # whether random halves are used to correct the variance for its second order
    is_differentiable = False
    full_state_update = False

    def __init__(self, extractor: nn.Module, reset_real_features: bool = True, **kwargs: Any) -> None:
        width = num_features(extractor)
        if not self.names:
            raise TypeError(f"{type(self).__name__} must state names, such as names = ('my_distance',)")
        super().__init__(**kwargs)
        self.extractor = extractor
        self.reset_real_features = check_bool("reset_real_features", reset_real_features)
        self.width = width
        for side in self.sides:
            self.add_state(side, [], dist_reduce_fx="cat")
        self._memory: tuple[Tensor, Tensor, Any] | None = None

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor | float:
        """The values of two sets of features, on the scale on which they are smooth; see the class."""
        raise NotImplementedError(f"{type(self).__name__} must have a method statistic(real, fake)")

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """How much each sample changes each value; see the class."""
        raise NotImplementedError

    def influences(self, real: Tensor, fake: Tensor, fixed: bool) -> tuple[Tensor, ...]:
        """The influences of the sides that vary, [S, n] each: of both, or of the samples if the reference is fixed."""
        sides = zip(self.influence(real, fake), (real, fake), strict=True)
        psi_real, psi_fake = (psi.reshape(len(self.names), len(x)) for psi, x in sides)
        return (psi_fake,) if fixed else (psi_real, psi_fake)

    @property
    def has_influence(self) -> bool:
        """Whether intervals are computed from influences, rather than from groups."""
        return type(self).influence is not FeatureMetric.influence

    def halves(self, real: Tensor, fake: Tensor, real_rows: Tensor, fake_rows: Tensor) -> Tensor:
        """The values of subsets, given by their indices, [R, n] and [R, m] -> [R, S]."""
        pairs = zip(real_rows, fake_rows, strict=True)
        return torch.stack([self.values(real[a], fake[b]) for a, b in pairs])

    def present(self, values: Tensor) -> Tensor:
        """Monotone map of the values, [S], to the reported scale; see the class."""
        return values

    def lift(self, real: Tensor, fake: Tensor) -> Tensor | None:
        """What must be added to a squared distance, [S], to make it a sum of squares; None if it is no such."""
        return None

    def trials(self, real: Tensor, fake: Tensor, fixed: bool) -> Tensor:
        """The largest number of independent trials of which each proportion can be the mean, [S]."""
        return real.new_tensor(float(len(fake))).expand(len(self.names))

    def details(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Further numbers to report, by name; see the class."""
        return {}

    @property
    def least_for_intervals(self) -> int:
        """Number of samples of each side that an interval needs; fewer would make it too short."""
        return LEAST_FOR_INTERVALS

    def update(self, imgs: Tensor, real: bool, train: bool = False) -> None:
        """Add a batch. A batch of a set that the metric does not use is ignored, so that all metrics take the same.

        Args:
            imgs: [B, ...] images on [-1, 1] or points, any B >= 0.
            real: True for the data, False for the model's samples.
            train: With real, whether the batch is of the training split, if the other data are of another split.

        Raises:
            UserError: If samples are not finite or out of range.
            ValueError: If their shape is not the extractor's, or train=True is used for generated samples.
        """
        if train and not real:
            raise ValueError("train=True is for real data; generated samples are of no split")
        side = TRAIN if train else REAL if real else FAKE
        if side in self.sides:
            check_samples(imgs)
            self.add(self.extractor(imgs).float(), side)

    def add(self, features: Tensor, side: str) -> None:
        """Add features that this metric's `extractor` has already computed.

        Args:
            features: [B, num_features] float32, any B >= 0.
            side: One of `sides`.

        Raises:
            ValueError: If the metric does not use this set, or the features have another width.
        """
        if side not in self.sides or features.shape[1:] != (self.width,):
            raise ValueError(
                f"{type(self).__name__} takes features [B, {self.width}] of {', '.join(self.sides)}; got "
                f"{tuple(features.shape)} of {side}"
            )
        self._add(features.to(self.device), side)
        self._computed = None  # torchmetrics caches the last result until the next update

    def _add(self, features: Tensor, side: str) -> None:
        getattr(self, side).append(features)

    def use_reference(self, reference: ReferenceStatistics) -> None:
        """Take the real side from statistics on disk, in place of `update(..., real=True)`.

        Of several processes only the first takes them, so that they count once.

        Args:
            reference: Of this metric's extractor, with features.

        Raises:
            UserError: If they are another extractor's, or contain moments only.
        """
        reference.check(fingerprint(self.extractor), self.width)
        if reference.features is None:
            raise UserError(
                f"{type(self).__name__} needs the features of the reference, which holds moments alone (enough for the "
                "Fréchet distance); compute it again with keep_features=True"
            )
        if is_first():
            getattr(self, REAL).append(reference.features.to(self.device))

    def features(self, real: bool) -> Tensor:
        """Features of the data (real) or of the samples, [N, num_features] float32, in the order of the updates."""
        return self._concatenated(REAL if real else FAKE)

    def _concatenated(self, side: str) -> Tensor:
        features = getattr(self, side, [])  # empty for a set that this metric does not use
        if isinstance(features, Tensor):  # after a synchronisation
            return features
        return torch.cat(features) if features else torch.empty(0, self.width, device=self.device)

    def sets(self) -> tuple[Tensor, Tensor]:
        """Real and generated features, [N, D] and [M, D] float64, checked.

        Raises:
            UserError: If there are too few samples, or features are not finite.
        """
        sets = self.features(real=True).double(), self.features(real=False).double()
        for name, side, features in zip(("real data", "generated samples"), (REAL, FAKE), sets, strict=True):
            if side in self.sides:
                check_features(features, name, type(self).__name__, self.least)
        return sets

    def values(self, real: Tensor, fake: Tensor) -> Tensor:
        """The statistic as float64 [S].

        Raises:
            ValueError: If `statistic` does not return a value for each of `names`.
        """
        values = torch.as_tensor(self.statistic(real, fake), dtype=torch.float64, device=real.device).reshape(-1)
        if len(values) != len(self.names):
            raise ValueError(
                f"{type(self).__name__}.statistic must return a figure for each of names={self.names}; got "
                f"{len(values)}"
            )
        return values

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The value as a float64 scalar, or a dict of them if there are several.

        Raises:
            UserError: If there are too few samples, or features are not finite.
        """
        values = self.present(self.values(*self.sets()))
        return values[0] if len(self.names) == 1 else dict(zip(self.names, values, strict=True))

    def point_estimates(self) -> dict[str, float]:
        """The reported values by name, over all processes, from the features (those that intervals are made of).

        Raises:
            UserError: If there are too few samples.
        """
        with self.synchronised():
            values = self.present(self.values(*self.sets()))
        return dict(zip(self.names, values.tolist(), strict=True))

    def synchronised(self) -> AbstractContextManager[None]:
        """A context in which the sets are those of all processes together."""
        context: AbstractContextManager[None] = self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute
        )
        return context

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Concatenate the states of all processes."""
        # torchmetrics gathers nothing for an empty list, and the processes that have features would wait for it.
        for side in self.sides:
            features = getattr(self, side)
            if isinstance(features, list) and not features:
                features.append(torch.empty(0, self.width, device=self.device))
        super().sync(*args, **kwargs)

    def reset(self) -> None:
        """Clear the samples, and the real data unless `reset_real_features` is False."""
        # torchmetrics empties the lists themselves.
        states = {name: getattr(self, name) for name in self._defaults if not name.startswith(FAKE)}
        kept = {name: list(state) if isinstance(state, list) else state for name, state in states.items()}
        super().reset()
        if not self.reset_real_features:
            for name, state in kept.items():
                setattr(self, name, state)
        self._memory = None

    def clear(self) -> None:
        """Clear all samples, including the real ones that `reset` may keep."""
        kept, self.reset_real_features = self.reset_real_features, True
        self.reset()
        self.reset_real_features = kept

    def _remember(self, real: Tensor, fake: Tensor, result: Any) -> None:
        """Cache an expensive intermediate result for the next statistic of the same sets."""
        self._memory = (real, fake, result)

    def _once(self, real: Tensor, fake: Tensor, make: Callable[[], T]) -> T:
        """The cached result of these very tensors; computed and cached if there is none."""
        if self._memory is None or self._memory[0] is not real or self._memory[1] is not fake:
            self._remember(real, fake, make())
        assert self._memory is not None
        return cast(T, self._memory[2])
