"""The sampling of many seeds, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Samples in files, so that any number of them needs the memory of one batch; or what was kept in their place.

    Attributes:
        finished: What was kept of each batch.
    """

    finished: Batches

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.finished.n

    @property
    def nfe(self) -> int:
        """Network passes for each sample, the most of any batch."""
        return max(map(int, self.finished.each("nfe")))

    @property
    def seconds(self) -> float:
        """What the sampling took in all."""
        return sum(map(float, self.finished.each("seconds")))

    def batches(self) -> Iterator[Tensor]:
        """The samples, [B, *dims] on the CPU, batch by batch as they were drawn."""
        return self.finished.stored("x")


def sample_in_batches(
    sampler: Callable[..., Samples],
    denoiser: Denoiser,
    dims: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    conditions: Mapping[str, Tensor] | None = None,
    kept: Callable[[Tensor], Mapping[str, Tensor]] = lambda x: {"x": x},
    held: Sequence[str] = (),
    folder: Path | None = None,
    plan: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Sampled:
    """Sample many seeds; see `in_batches`. A run that was stopped ends with the samples of an unbroken one.

    Samples do not depend on the batch size; those of adaptive solvers do to within their tolerance (see `ODESampler`,
    `SDESampler`).

    Args:
        sampler: The sampler, or what is called like one.
        denoiser: The denoiser.
        dims: Shape of one sample.
        seeds: One integer for each sample.
        batch_size: Most samples at once, at least 1.
        conditions: What the denoiser is told of each sample, [N, ...].
        kept: What is kept of samples [B, *dims] on the CPU.
        held: Names of what is held in memory too.
        folder: Where the batches' files go.
        plan: What the samples depend on, in plain containers; kept beside the files.
        overwrite: Begin anew where the files there belong to another plan.
        **options: Passed to the sampler.

    Raises:
        UserError: If the files in the folder belong to another plan, or one is damaged.
        ValueError: If the sampler does not take the arguments, or batch_size < 1.
    """

    def work(items: range, shown: Bar) -> dict[str, Tensor]:
        some, begin = slice(items.start, items.stop), time.perf_counter()
        cut = {name: value[some] for name, value in (conditions or {}).items()}
        with passes(shown, denoiser, lambda x_t, t: denoiser.passes_at(t)):
            drawn = sampler(denoiser, (len(items), *dims), seeds=seeds[some], **cut, **options)
        x = drawn.x.cpu()  # waits for the device
        seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        return {**kept(x), "nfe": torch.tensor(drawn.nfe), "seconds": seconds}

    names = [*held, "nfe", "seconds"]
    return Sampled(in_batches("sampling", len(seeds), batch_size, work, folder, plan, overwrite, names))
