"""Long work on many items, a batch at a time: resumed by index, shared by processes, in the memory that there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.storage.memory import ran_out
from sde_diffusion.storage.parts import Parts
from sde_diffusion.storage.process_group import ProcessGroup
from sde_diffusion.storage.progress import Bar, bar

log = logging.getLogger(__name__)

Work = Callable[[range, Bar], Mapping[str, Tensor]]
"""Results of the items of these indices, [B, ...] each, and figures of the batch; the bar takes a text to show."""

_ITEMS, _SIZE = "batch.items", "batch.size"
"""What is kept of a batch beside its results: the first index and the one after its last; the most items at once."""


@dataclass
class Batches:
    """Finished batches, in order.

    Attributes:
        n: Items in them.
        results: The results of each batch, those that are held in memory.
        sizes: The different numbers of items at once: several where memory ran out, or where a run was resumed with
            another batch size. Results that depend on their batch, as those of adaptive solvers do to within their
            tolerance, are those of these sizes.
        parts: The files; None where none are kept.
    """

    n: int = 0
    results: list[Mapping[str, Tensor]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    parts: Parts | None = None

    def each(self, name: str) -> list[Tensor]:
        """A result of each batch, held in memory."""
        return [result[name] for result in self.results]

    def stored(self, name: str) -> Iterator[Tensor]:
        """A result of each batch, read from its file when it is come to."""
        assert self.parts is not None, "nothing is kept in files"
        return (part[name] for part in self.parts.load(name))

    def add(self, part: Mapping[str, Tensor], held: Sequence[str] | None) -> None:
        """Take the next batch's results, those of `held` (None: all) into memory."""
        self.n, size = int(part[_ITEMS][1]), int(part[_SIZE])
        if size not in self.sizes:
            self.sizes.append(size)
        names = [name for name in part if name not in (_ITEMS, _SIZE)] if held is None else held
        self.results.append({name: part[name] for name in names})


def in_batches(
    what: str,
    n: int,
    size: int,
    work: Work,
    folder: Path | None = None,
    plan: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    held: Sequence[str] | None = None,
    enough: Callable[[Batches, Bar], bool] | None = None,
) -> Batches:
    """Work on items 0 ... n - 1, so many at once, showing the progress.

    With a folder each finished batch is kept in a file there, and a run that was stopped in whatever way resumes after
    the last one. Where memory runs out, the machine's or a device's, the batch is tried again with half as many items,
    and the batches after it are as small.

    Where torch.distributed is initialised, its processes take the batches in turn; each calls this function with the
    same arguments and has all results. The first writes and reads the files. A signal to any of them stops all after
    their batches, and an error in one ends all.

    Args:
        what: What is done, for the display, such as "sampling".
        n: Number of items.
        size: Most items at once, at least 1.
        work: See `Work`. An item's results should be the same in any batch.
        folder: Where the files are kept until `files.forget` removes it; None: nowhere.
        plan: What the results depend on, in plain containers; kept beside the files.
        overwrite: Begin anew where the files there belong to another plan.
        held: The results that are held in memory, too; None: all.
        enough: Asked after each batch, those of an earlier run included; True ends the work.

    Returns:
        The batches.

    Raises:
        ValueError: If size < 1.
        UserError: If the files in the folder belong to another plan, or one is damaged; or if another process failed.
        Exception: What `work` raises; that memory has run out only with one item.
    """
    if size < 1:
        raise ValueError(f"batch_size must be at least 1; got {size}")
    processes, done = ProcessGroup(), Batches()

    def earlier() -> list[dict[str, Tensor]]:
        if folder is None:
            return []
        done.parts = Parts(folder, dict(plan or {}), overwrite)
        return list(done.parts.load(*([] if held is None else [*held, _ITEMS, _SIZE])))

    def keep(part: Mapping[str, Tensor], items: range) -> None:
        if done.parts is not None:
            done.parts.add(len(items), dict(part))

    there = processes.by_first(earlier)
    known = int(there[-1][_ITEMS][1]) if there else 0
    if 0 < known < n and not processes.rank:
        log.info("%s: resuming after %d of %d, kept in %s", what, known, n, folder)
    with processes.agreeing(), bar(what, n, known, quiet=processes.rank > 0) as shown:

        def is_enough(part: Mapping[str, Tensor]) -> bool:
            done.add(part, held)
            shown.update(completed=max(done.n, known))
            return enough is not None and enough(done, shown)

        if any(is_enough(part) for part in there):
            return done
        asked = size
        while done.n < n:
            turn = [range(start, min(n, start + size)) for start in range(done.n, n, size)[: processes.count]]
            mine = turn[processes.rank] if processes.rank < len(turn) else range(0)
            results = processes.share(partial(_results, work, mine, shown))
            for items, result in zip(turn, results, strict=False):
                if result is None:
                    if size == asked and not processes.rank:
                        log.warning("ran out of memory with %d items at once: trying half as many", len(items))
                    size = len(items) // 2
                    break
                part = {**result, _ITEMS: torch.tensor([items.start, items.stop]), _SIZE: torch.tensor(size)}
                processes.by_first(partial(keep, part, items))
                if is_enough(part):
                    return done
            processes.stop_if_asked()
    return done


def _results(work: Work, items: range, shown: Bar) -> dict[str, Tensor] | None:
    """The results of some items, on the CPU; None where memory ran out and fewer can be tried."""
    if not items:
        return {}
    try:
        return {name: value.detach().cpu().contiguous() for name, value in work(items, shown).items()}
    except Exception as error:
        if len(items) < 2 or not ran_out(error):
            raise
    # Outside the handler: until it is left, the error holds the memory. What torch keeps for later is given back, for
    # the device needs room beside it, too.
    torch.cuda.empty_cache()
    return None
