"""Which of the processes of a run this one is."""

from __future__ import annotations

import os

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""By which torchrun, Lightning and Slurm tell a process its number: among all, on its machine, or its machine's."""


def is_first_process() -> bool:
    """Whether this is the first process of a run, or its only one: known before any library is imported."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def is_one_of_several() -> bool:
    """Whether a launcher has told this process its number."""
    return any(os.environ.get(name) for name in RANKS)
