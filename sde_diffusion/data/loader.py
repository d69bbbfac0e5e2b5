"""Batches cut from a split by index tensors, without worker processes or item-by-item collation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data.seeding import generator

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class Shuffled:
    """Training order: an endless stream of batches of indices; batch k is a pure function of (seed, k).

    The stream consists of epochs, each a pure function of (seed, epoch). An epoch is one permutation of the data, or as
    many in a row as are needed for min_batches full batches, so that with small data sets the epochs are not too short.
    The incomplete batch at the end is dropped. Rank r of w processes takes every w-th index from the r-th on, so that
    the k-th batches of all processes together are the k-th batch of size w * batch_size of one order.

    Args:
        n: Number of items, at least 1.
        batch_size: Number of items per batch and process.
        seed: Seed of the order.
        min_batches: Minimum number of batches per epoch.
        rank: Rank of this process, 0 to world - 1.
        world: Number of processes.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int = 0, min_batches: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.repeat = max(1, -(-min_batches * batch_size * world // n))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch at which the stream starts by default."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.repeat * self.n // (self.batch_size * self.world)

    def indices(self, epoch: int) -> Tensor:
        """The int64 indices of an epoch on this rank, [len(self), batch_size]."""
        source = generator(self.seed, epoch)
        order = torch.cat([torch.randperm(self.n, generator=source) for _ in range(self.repeat)])
        own = order[self.rank :: self.world][: len(self) * self.batch_size]
        return own.view(len(self), self.batch_size)

    def stream(self, first: int | None = None) -> Iterator[Tensor]:
        """The batches from number `first` on, counted over all epochs; None: from the start of the current epoch."""
        epoch, skipped = (self.epoch, 0) if first is None else divmod(first, len(self))
        while True:
            yield from self.indices(epoch)[skipped:]
            epoch, skipped = epoch + 1, 0

    def describe(self) -> dict[str, int]:
        """What the order depends on, apart from the epoch."""
        return {"n": self.n, "batch_size": self.batch_size, "seed": self.seed, "world": self.world}


class InOrder:
    """Evaluation order: every item once, in order; the last batch may be smaller.

    Rank r of w processes takes every w-th item from the r-th on, without padding, as repeated items would bias
    likelihoods and Fréchet distances. The numbers of batches of the ranks may therefore differ by one.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.own = torch.arange(n)[rank::world]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def stream(self, first: int | None = None) -> Iterator[Tensor]:
        """The batches from number `first` on."""
        for at in range((first or 0) * self.batch_size, len(self.own), self.batch_size):
            yield self.own[at : at + self.batch_size]

    def describe(self) -> dict[str, int]:
        """What the order depends on."""
        return {"n": len(self.own), "batch_size": self.batch_size}


class Loader:
    """An iterable of batches that replaces `torch.utils.data.DataLoader`.

    The position in the stream is determined when the first batch is made, after Lightning has restored its count of
    batches. A resumed run therefore gets the batches of an uninterrupted one, wherever it stopped.

    Args:
        sampler: Provides the index tensor of each batch.
        fetch: Makes the batch of an index tensor.
        first: Returns the number of the first batch, counted over all epochs; None: the start of the sampler's epoch.
        ahead: Make the next batch in a thread (for data that are read from files).
        pin: Put batches that are not on a GPU into page-locked memory, for asynchronous copies to one.
    """

    batch_sampler = None  # as in a DataLoader whose sampler yields batches; Lightning uses both attributes

    def __init__(
        self,
        sampler: Shuffled | InOrder,
        fetch: Callable[[Tensor], Batch],
        first: Callable[[], int | None] = lambda: None,
        ahead: bool = False,
        pin: bool = False,
    ) -> None:
        self.sampler, self.fetch, self.first, self.ahead, self.pin = sampler, fetch, first, ahead, pin

    def __len__(self) -> int:
        return len(self.sampler)

    def _make(self, index: Tensor) -> Batch:
        batch = self.fetch(index)
        return (
            {key: value if value.is_cuda else value.pin_memory() for key, value in batch.items()} if self.pin else batch
        )

    def __iter__(self) -> Iterator[Batch]:
        indices = islice(self.sampler.stream(self.first()), len(self))
        if not self.ahead:
            yield from map(self._make, indices)
            return
        with ThreadPoolExecutor(1) as thread:
            waiting = None
            for index in indices:
                following = thread.submit(self._make, index)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    # Lightning stores this state in checkpoints beside its count of batches, and assumes that a loader with a state can
    # resume within an epoch. The state here is the order to which that count refers.
    def state_dict(self) -> dict[str, Any]:
        """The order of the data."""
        return self.sampler.describe()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warn if the order is not that of the checkpoint."""
        now = self.state_dict()
        changed = [f"{key} {state[key]} -> {now[key]}" for key in now if key in state and state[key] != now[key]]
        if changed:
            log.warning(
                "Resumed with another order of the data (%s): the batches differ from those of an uninterrupted run.",
                ", ".join(changed),
            )
