"""Sampling of many seeds in batches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling import Samples
from sde_diffusion.storage.batches import Batches, in_batches
from sde_diffusion.storage.progress import Bar, passes


@dataclass(frozen=True)
class Sampled:
    """Samples in files, so that any number of them needs the memory of one batch only.

    Attributes:
        finished: The stored results of the batches: the samples, or what `store` of `sample_in_batches` returned.
    """

    finished: Batches

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.finished.n

    @property
    def nfe(self) -> int:
        """Network passes for each sample; the maximum over the batches."""
        return max(map(int, self.finished.each("nfe")))

    @property
    def seconds(self) -> float:
        """Total time of sampling."""
        return sum(map(float, self.finished.each("seconds")))

    def batches(self) -> Iterator[Tensor]:
        """The samples in batches [B, *dims], on the CPU."""
        return self.finished.stored("x")


def passes_in_words(nfe: float) -> str:
    """Network passes of a sample, or their mean over items, for the log."""
    return f"{nfe:.0f} network pass{'' if nfe == 1 else 'es'} each"


def sample_in_batches(
    sampler: Callable[..., Samples],
    denoiser: Denoiser | None,
    dims: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    conditions: Mapping[str, Tensor] | None = None,
    store: Callable[[Samples], Mapping[str, Tensor]] = lambda drawn: {"x": drawn.x},
    in_memory: Sequence[str] = (),
    folder: Path | None = None,
    plan: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    counted: Denoiser | None = None,
    **options: Any,
) -> Sampled:
    """Sample many seeds; see `in_batches`. A run that was stopped and resumed gives the same samples.

    Samples do not depend on the batch size, except those of adaptive solvers, within their tolerance (see `ODESampler`,
    `SDESampler`).

    Args:
        sampler: The sampler, or a function with the same arguments.
        denoiser: The denoiser; None if the function needs none.
        dims: Shape of one sample.
        seeds: One integer for each sample.
        batch_size: Maximum number of samples at once, at least 1.
        conditions: Conditions of the samples, [N, ...] each.
        store: Returns what is stored of drawn samples; by default x, the samples themselves.
        in_memory: Names of stored tensors to keep in memory too.
        folder: Where the batches are stored.
        plan: What the samples depend on, in plain Python containers; stored beside the batches.
        overwrite: Start again if the stored batches belong to another plan.
        counted: The denoiser whose passes are shown, such as one inside `denoiser`; `denoiser` by default.
        **options: Passed to the sampler.

    Raises:
        UserError: If the files in the folder belong to another plan, or one is damaged.
        ValueError: If the sampler does not take the arguments, or batch_size < 1.
    """
    seen = denoiser if counted is None else counted

    def work(items: range, shown: Bar) -> dict[str, Tensor]:
        some, begin = slice(items.start, items.stop), time.perf_counter()
        cut = {name: value[some] for name, value in (conditions or {}).items()}
        with nullcontext() if seen is None else passes(shown, seen, lambda x_t, t: seen.passes_at(t)):
            drawn = sampler(denoiser, (len(items), *dims), seeds=seeds[some], **cut, **options)
        drawn = dataclasses.replace(drawn, x=drawn.x.cpu())  # waits for the device
        seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        return {**store(drawn), "nfe": torch.tensor(drawn.nfe), "seconds": seconds}

    names = [*in_memory, "nfe", "seconds"]
    return Sampled(in_batches("sampling", len(seeds), batch_size, work, folder, plan, overwrite, names))
