"""Random number streams that are a pure function of integers."""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """Return a generator whose stream is a pure function of the key.

    NumPy's SeedSequence mixes the key into one 64-bit seed, so that neighbouring keys, such as (seed, epoch) and
    (seed, epoch + 1), give unrelated streams.

    Args:
        *key: Integers, not negative.

    Returns:
        A generator on the CPU.
    """
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
