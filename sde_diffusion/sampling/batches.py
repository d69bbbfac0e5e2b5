"""Sampling more than fits in memory at once, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling.base import Sampler, Samples


def sample_in_batches(
    sampler: Sampler,
    denoiser: Denoiser,
    dims: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    labels: torch.Tensor | None = None,
    **options: Any,
) -> Iterator[Samples]:
    """Yield the samples of many seeds batch by batch; they do not depend on the batch size.

    Args:
        sampler: The sampler.
        denoiser: The denoiser.
        dims: Shape of one sample.
        seeds: One integer for each sample.
        batch_size: Most samples at once, at least 1.
        labels: int64 [N], for a class-conditional denoiser.
        **options: Passed to the sampler.

    Raises:
        ValueError: If batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    columns = (
        TextColumn("sampling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        progress.disable = not progress.console.is_terminal
        task = progress.add_task("sampling", total=len(seeds))
        for start in range(0, len(seeds), batch_size):
            part = seeds[start : start + batch_size]
            conditions: dict[str, Any] = {} if labels is None else {"label": labels[start : start + batch_size]}
            yield sampler(denoiser, (len(part), *dims), seeds=part, **conditions, **options)
            progress.advance(task, len(part))
