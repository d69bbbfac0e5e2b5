"""Sampling more than fits in memory at once, with a progress bar, so that a killed run resumes where it stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_diffusion import progress
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling.base import Callback, Sampler, Samples
from sde_diffusion.storage.parts import Parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Samples in the files that `sample_resumably` wrote, so that any number of them needs the memory of one batch.

    Attributes:
        parts: The files.
        n: Number of samples.
        nfe: Network passes for each sample, the most of any batch.
        seconds: What they took in all.
    """

    parts: Parts
    n: int
    nfe: int
    seconds: float

    def batches(self) -> Iterator[torch.Tensor]:
        """The samples, [B, *dims] on the CPU, batch by batch as they were drawn."""
        return (part["x"] for part in self.parts.load("x"))


def sample_in_batches(
    sampler: Sampler,
    denoiser: Denoiser,
    dims: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    labels: torch.Tensor | None = None,
    done: int = 0,
    callback: Callback | None = None,
    **options: Any,
) -> Iterator[Samples]:
    """Yield the samples of many seeds batch by batch.

    They do not depend on the batch size; those of adaptive solvers do to within their tolerance (see `ODESampler`,
    `SDESampler`).

    Args:
        sampler: The sampler.
        denoiser: The denoiser.
        dims: Shape of one sample.
        seeds: One integer for each sample.
        batch_size: Most samples at once, at least 1.
        labels: int64 [N], for a class-conditional denoiser.
        done: Number of samples to pass over, which are there already.
        callback: See `Callback`.
        **options: Passed to the sampler.

    Raises:
        ValueError: If batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    with progress.bar("sampling", len(seeds), done) as bar:

        def watched(step: int, t: float, x: torch.Tensor, x0: torch.Tensor) -> bool | None:
            bar.update(text=f"{step + 1} passes")
            return None if callback is None else callback(step, t, x, x0)

        for start in range(done, len(seeds), batch_size):
            part = seeds[start : start + batch_size]
            conditions: dict[str, Any] = {} if labels is None else {"label": labels[start : start + batch_size]}
            yield sampler(denoiser, (len(part), *dims), seeds=part, callback=watched, **conditions, **options)
            bar.update(advance=len(part))


def sample_resumably(
    folder: Path,
    plan: dict[str, Any],
    sampler: Sampler,
    denoiser: Denoiser,
    dims: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    labels: torch.Tensor | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Kept:
    """`sample_in_batches`, each batch kept in a file until `parts.forget` is called.

    A killed run resumes after its last finished batch, and ends with the same samples.

    Args:
        folder: Where the batches' files go.
        plan: What the samples depend on, in plain containers; kept beside the files.
        sampler: See `sample_in_batches`, also for the rest.
        denoiser: The denoiser.
        dims: Shape of one sample.
        seeds: One integer for each sample.
        batch_size: Most samples at once, at least 1.
        labels: int64 [N], for a class-conditional denoiser.
        overwrite: Begin anew where the files there belong to another plan.
        **options: Passed to the sampler.

    Returns:
        The samples.

    Raises:
        UserError: If the files in the folder belong to another plan, or one is damaged.
        ValueError: If the sampler does not take the arguments.
    """
    kept = Parts(folder, plan, overwrite)
    heads = list(kept.load("nfe", "seconds"))
    done = kept.done
    if done:
        log.info("resuming after %d of %d samples, kept in %s", done, len(seeds), folder)
    begin = time.perf_counter()
    for batch in sample_in_batches(sampler, denoiser, dims, seeds, batch_size, labels, done, **options):
        x = batch.x.cpu().contiguous()  # waits for the device
        head = {"nfe": torch.tensor(batch.nfe)}
        head["seconds"] = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        kept.add(len(x), {"x": x, **head})
        heads.append(head)
        begin = time.perf_counter()
    seconds = sum(float(head["seconds"]) for head in heads)
    return Kept(kept, kept.done, max(int(head["nfe"]) for head in heads), seconds)
