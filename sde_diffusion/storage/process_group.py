"""The processes that do long work together: those of torch.distributed where it is initialised, else this one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import distributed

from sde_diffusion.errors import UserError
from sde_diffusion.storage import signals

T = TypeVar("T")


class ProcessGroup:
    """What each process tells the others.

    Attributes:
        rank: The number of this process, from 0 on.
        count: How many there are.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self._asked = 0

    def share(self, make: Callable[[], T]) -> list[T]:
        """What each process has made, in the order of their ranks.

        Raises:
            UserError: If it cannot be made in another process.
            Exception: What `make` raises here.
        """
        if self.count == 1:
            return [make()]
        made: T | None = None
        failure: Exception | None = None
        try:
            made = make()
        except Exception as error:  # told to the others first, which would wait for this process
            failure = error
        told: list[Any] = [None] * self.count
        reason = None if failure is None else str(failure) or type(failure).__name__
        distributed.all_gather_object(told, (made, reason, signals.asked()))
        if failure is not None:
            raise failure
        for rank, (_, reason, asked) in enumerate(told):
            if reason is not None:
                raise UserError(f"process {rank} of {self.count} failed: {reason}")
            self._asked = self._asked or asked
        return [made for made, *_ in told]

    def by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, and it alone; raises as `share` does."""
        found: list[Any] = self.share(lambda: make() if self.rank == 0 else None)
        first: T = found[0]
        return first

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Hold signals of several processes until `stop_if_asked`; one process alone stops at once."""
        if self.count == 1:
            yield
            return
        signals.hold()
        try:
            yield
        except BaseException:
            with suppress(signals.Stopped):
                signals.release()
            raise
        signals.release()

    def stop_if_asked(self) -> None:
        """Stop in every process where one has told with its last share that it was asked to.

        Raises:
            Stopped: Then.
        """
        if self._asked:
            raise signals.Stopped(self._asked, agreed=True)
