"""How random splits are drawn: the right sizes, in proportion, and no class missing in the training split."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sde_diffusion.data.split import divide
from sde_diffusion.errors import UserError


def test_no_class_is_emptied():
    rng = np.random.default_rng(0)
    for seed in range(300):
        labels = np.repeat(np.arange(6), rng.integers(1, [2, 3, 4, 8, 20, 60]).tolist())
        rng.shuffle(labels)
        n = len(labels)
        counts = [max(1, n // 10), max(1, n // 5)]
        if sum(counts) > n - 6:
            continue
        rest, *parts = divide(n, counts, seed, labels)
        assert [len(part) for part in parts] == counts
        assert sorted(np.concatenate([rest, *parts]).tolist()) == list(range(n))
        assert set(labels[rest]) == set(labels)


@pytest.mark.parametrize("counts", [(1,), (2, 2), (20, 20), (1, 39)])
def test_forty_and_two(counts):
    """Classes of 40 and 2 items: with proportions only, both items of the small class are sometimes drawn."""
    labels = [0] * 40 + [1] * 2
    for seed in range(50):
        rest, *parts = divide(42, counts, seed, labels)
        assert {0, 1} <= {labels[row] for row in rest.tolist()}
        assert [len(part) for part in parts] == list(counts)


def test_too_few_for_every_class():
    with pytest.raises(UserError, match="4 training items are too few to split off 1 and 1 and leave one of each of"):
        divide(4, (1, 1), 0, [0, 1, 2, 2])
    with pytest.raises(UserError, match=r"2 training items are too few to split off 1 and 1$"):
        divide(2, (1, 1), 0)


def test_what_was_drawn_before_is_drawn_still():
    """Hashes of an earlier release's indices, as results of different runs are compared on the same split."""
    parts = divide(1797, (60, 300), 0, load_digits().target, start=0.0)
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    assert digest == "8fd7dc05abadb7ac881321947d18f5a4267122bb2aa53f188d503c7c4abb01c9"
    parts = divide(100, (5, 10), 3)
    assert (
        hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
        == "b7fa2f7cfe30ca64abaf4f0d74721fc7de5e0e6fb6612810b51e2b02480416a8"
    )


def test_every_item_has_the_same_chance():
    """Of ten classes of ten items five go into a part of 5: each item in 1/20 of 4,000 draws, with 200 of them.

    Binomial counts have a standard deviation of 13.8: six of those, for the largest of 100, is a false alarm in 5
    million runs.
    """
    labels = np.repeat(np.arange(10), 10)
    counts = np.zeros(100)
    for seed in range(4000):
        counts[divide(100, (5, 10), seed, labels)[1].numpy()] += 1
    assert np.abs(counts - 200).max() < 6 * 13.8
