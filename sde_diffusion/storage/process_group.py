"""The processes that share long work: those of torch.distributed if it is initialised, else this one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import distributed

from sde_diffusion.errors import UserError
from sde_diffusion.storage import signals

T = TypeVar("T")


class ProcessGroup:
    """Exchange of results and errors between processes.

    Attributes:
        rank: Number of this process, 0, 1, ...
        count: Number of processes.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self._asked = 0

    def share(self, make: Callable[[], T]) -> list[T]:
        """The results of `make` in all processes, in the order of their ranks.

        Raises:
            UserError: If `make` failed in another process.
            Exception: The error of `make` in this process.
        """
        if self.count == 1:
            return [make()]
        made: T | None = None
        failure: Exception | None = None
        try:
            made = make()
        except Exception as error:  # reported to the others first, which would wait for this process
            failure = error
        shared: list[Any] = [None] * self.count
        reason = None if failure is None else str(failure) or type(failure).__name__
        distributed.all_gather_object(shared, (made, reason, signals.asked()))
        if failure is not None:
            raise failure
        for rank, (_, reason, asked) in enumerate(shared):
            if reason is not None:
                raise UserError(f"process {rank} of {self.count} failed: {reason}")
            self._asked = self._asked or asked
        return [made for made, *_ in shared]

    def by_first(self, make: Callable[[], T]) -> T:
        """The result of `make` in the first process, where alone it is called; raises as `share` does."""
        found: list[Any] = self.share(lambda: make() if self.rank == 0 else None)
        first: T = found[0]
        return first

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Defer signals until `stop_if_asked` if there are several processes; a single one stops at once."""
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
        """Stop every process if one of them had received a signal at the last `share`.

        Raises:
            Stopped: If so.
        """
        if self._asked:
            raise signals.Stopped(self._asked, agreed=True)
