"""Long work on many items in batches: it resumes by index, is shared among processes, and adapts to the memory."""

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
"""Function from the indices of the items and the progress bar to results, [B, ...] each, and values for the batch."""

_ITEMS, _SIZE = "batch.items", "batch.size"
"""Names stored with the results of a batch: its first index and the one after its last; the batch size."""


@dataclass
class Batches:
    """Finished batches, in order.

    Attributes:
        n: Number of items in them.
        results: The results of each batch that are held in memory.
        sizes: The batch sizes that were used: several if memory ran out, or if a run was resumed with another one. They
            matter for results that depend on the batch, such as those of adaptive solvers, to within their tolerance.
        parts: The files, or None.
    """

    n: int = 0
    results: list[Mapping[str, Tensor]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    parts: Parts | None = None

    def each(self, name: str) -> list[Tensor]:
        """One of the results of each batch, from memory."""
        return [result[name] for result in self.results]

    def stored(self, name: str) -> Iterator[Tensor]:
        """One of the results of each batch, read from its file when needed."""
        assert self.parts is not None, "nothing is kept in files"
        return (part[name] for part in self.parts.load(name))

    def add(self, part: Mapping[str, Tensor], held: Sequence[str] | None) -> None:
        """Add the next batch, with the results named in `held` (None: all) in memory."""
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
    together: int = 1,
) -> Batches:
    """Work on items 0 ... n - 1 in batches, and show the progress.

    With a folder each finished batch is written to a file there, and a run that was stopped in any way resumes after
    the last one. If memory runs out, on the machine or a device, the batch is tried again with half as many items, and
    the batches after it have the same size.

    If torch.distributed is initialised, its processes take the batches in turn; each calls this function with the same
    arguments and gets all results. The first process writes and reads the files. A signal to any of them stops all
    after their batches, and an error in one ends all.

    Args:
        what: Name of the work, for the display, such as "sampling".
        n: Number of items.
        size: Batch size, at least 1.
        work: See `Work`. The results of an item should be the same in any batch.
        folder: Folder of the files, until `files.forget` removes it; None: no files.
        plan: Everything that the results depend on, for JSON; stored beside the files.
        overwrite: Whether to start again if the files in the folder belong to another plan.
        held: Names of the results that are held in memory; None: all.
        enough: Called after each batch, including those of an earlier run; if it returns True, the work ends.
        together: Largest number of batches in one call of `work`, which counts and is kept as one; fewer if there are
            not at least as many calls.

    Returns:
        The batches.

    Raises:
        ValueError: If size < 1.
        UserError: If the files in the folder belong to another plan, or one is damaged; or if another process failed.
        Exception: Any that `work` raises; one that memory has run out only with a single item.
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
            several = size * max(1, min(together, n // (size * together * processes.count)))
            turn = [range(start, min(n, start + several)) for start in range(done.n, n, several)[: processes.count]]
            mine = turn[processes.rank] if processes.rank < len(turn) else range(0)
            results = processes.share(partial(_results, work, mine, shown, size))
            for items, result in zip(turn, results, strict=False):
                if result is None:
                    fewer = min(size, len(items))
                    if size == asked and not processes.rank:
                        log.warning("ran out of memory with %d items at once: trying half as many", fewer)
                    size = fewer // 2
                    break
                part = {**result, _ITEMS: torch.tensor([items.start, items.stop]), _SIZE: torch.tensor(size)}
                processes.by_first(partial(keep, part, items))
                if is_enough(part):
                    return done
            processes.stop_if_asked()
    return done


def _results(work: Work, items: range, shown: Bar, size: int) -> dict[str, Tensor] | None:
    """The results of some items, on the CPU; None if memory ran out and fewer items can be tried."""
    if not items:
        return {}
    try:
        return {name: value.detach().cpu().contiguous() for name, value in work(items, shown).items()}
    except Exception as error:
        if min(size, len(items)) < 2 or not ran_out(error):
            raise
    # Outside the handler, in which the error still holds the memory. Other libraries need memory on the device, too:
    # torch's cache is freed.
    torch.cuda.empty_cache()
    return None
