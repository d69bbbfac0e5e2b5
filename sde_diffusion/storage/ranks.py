"""The number of this process among those of a run."""

from __future__ import annotations

import os

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Variables in which torchrun, Lightning and Slurm set the number of a process or of its machine."""


def is_first_process() -> bool:
    """Whether this is the first process of a run, or its only one; works before any library is imported."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def is_one_of_several() -> bool:
    """Whether a launcher has set the number of this process."""
    return any(os.environ.get(name) for name in RANKS)
