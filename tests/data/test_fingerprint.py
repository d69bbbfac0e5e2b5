"""Data are distinguished from others of the same shape, and not from themselves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data import Arrays, Digits, Folder, Moons
from sde_diffusion.data.split import Split


def arrays(path: Path, images: np.ndarray, **others: np.ndarray) -> Arrays:
    np.savez(path, train_images=images, **others)
    return Arrays(str(path))


def test_the_same_data_have_one_fingerprint(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    first, second = arrays(tmp_path / "a.npz", images), arrays(tmp_path / "b.npz", images)
    assert first.fingerprint == second.fingerprint
    assert second.changed_since(first.fingerprint) == ""
    assert Digits(batch_size=7, seed=3).fingerprint == Digits().fingerprint
    assert first.describe()["fingerprint"] == first.fingerprint


@pytest.mark.parametrize("row", range(0, 40, 13))
def test_one_pixel_is_enough(tmp_path: Path, row: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    changed = images.copy()
    changed[row, 2, 1] ^= 1
    before = arrays(tmp_path / "a.npz", images, val_images=images, test_images=images)
    after = arrays(tmp_path / "b.npz", changed, val_images=images, test_images=images)
    assert after.changed_since(before.fingerprint) == "train: 40 items as before, but different ones"
    after = arrays(tmp_path / "b.npz", images, val_images=changed, test_images=images)
    assert after.changed_since(before.fingerprint) == "val: 40 items as before, but different ones"
    after = arrays(tmp_path / "b.npz", images, val_images=images, test_images=changed)
    assert after.changed_since(before.fingerprint) == ""  # no training sees it


def test_labels_order_levels_and_numbers_of_items_count() -> None:
    x = torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2)
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    some = [
        Split(x, label, 32),
        Split(x, None, 32),
        Split(x, label.flip(0), 32),
        Split(x.flip(0), label, 32),
        Split(x[:5], label[:5], 32),
        Split(x.view(6, 1, 1, 4), label, 32),
        Split(x, label, 64),
        Split(x.float(), label),
    ]
    assert len({split.digest() for split in some}) == len(some)


def test_older_checkpoints_and_drawn_densities_say_nothing() -> None:
    assert Digits().changed_since(None) == ""
    assert Moons(n_train=100, n_val=10, n_test=10).fingerprint is None
    assert Moons(n_train=100, n_val=10, n_test=10).changed_since(Digits().fingerprint) == ""


def test_items_are_counted() -> None:
    before = Digits().fingerprint
    assert before is not None
    before["train"] = {"items": 1400, "digest": "x"}
    assert Digits().changed_since(before) == "train: 1400 items then, 1437 now"


@pytest.mark.parametrize("in_memory", [True, False])
def test_folders_are_told_by_their_files(tmp_path: Path, in_memory: bool) -> None:
    """But not by differences between decoders, nor by the location of the folder."""
    generator = np.random.default_rng(0)
    for number in range(30):
        for part in ("train", "val", "test"):
            (tmp_path / "a" / part).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(generator.integers(0, 256, (6, 6), dtype=np.uint8))
            image.save(tmp_path / "a" / part / f"{number:02d}.png")
    before = Folder(str(tmp_path / "a"), in_memory=in_memory).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = Folder(str(tmp_path / "b"), in_memory=not in_memory)
    assert moved.changed_since(before) == ""
    Image.new("L", (6, 6)).save(tmp_path / "b" / "train" / "07.png")
    assert Folder(str(tmp_path / "b")).changed_since(before) == "train: 30 items as before, but different ones"
    (tmp_path / "a" / "val" / "03.png").rename(tmp_path / "a" / "val" / "99.png")
    assert Folder(str(tmp_path / "a")).changed_since(before) == "val: 30 items as before, but different ones"


def test_large_splits_are_looked_at_in_evenly_spaced_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.data.split._DIGEST_BYTES", 40)
    x = torch.zeros(100, 4, dtype=torch.uint8)
    before = Split(x, None, 2).digest()
    for row, same in ((0, False), (11, False), (99, False), (50, True)):
        other = x.clone()
        other[row] = 1
        assert (Split(other, None, 2).digest() == before) == same
