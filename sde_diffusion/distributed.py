"""Sums and concatenations over the processes of a run (this one alone if torch.distributed is not initialised).

Every process must call these functions in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def process_count() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(value: Tensor) -> Tensor:
    """The sum of the tensors of all processes, which have the same shape; without gradient."""
    if process_count() > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
    return value


def gathered(value: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, [n, *] each -> [n * processes, *]; without gradient."""
    if process_count() == 1:
        return value
    found = [torch.empty_like(value) for _ in range(process_count())]
    distributed.all_gather(found, value.detach().contiguous())
    return torch.cat(found)
