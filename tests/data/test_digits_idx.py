"""The embedded digits, idx files, and the configurations of every data set."""

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sde_diffusion.config import build, find_class
from sde_diffusion.data import Digits, IdxImages
from sde_diffusion.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("SDE_DATA", REPOSITORY / "../shared/data"))


def test_digits_splits_are_all_of_sklearns_digits_once():
    from sklearn.datasets import load_digits

    source = load_digits()
    data = Digits()
    splits = [data.split(name) for name in ("train", "val", "test")]
    assert [len(split) for split in splits] == [1437, 60, 300]
    ours = np.concatenate([np.c_[split.x[:].flatten(1), split.label] for split in splits])
    theirs = np.c_[source.data, source.target].astype(int)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
    # the scaled values, against scikit-learn's floats
    rebuilt = np.concatenate([data.tensor(name).flatten(1) for name in ("train", "val", "test")])
    assert np.array_equal(np.sort(rebuilt, axis=None), np.sort(source.data / 8 - 1, axis=None).astype(np.float32))


def test_digits_split_never_changes():
    # the first test images, written down once; a change of the split makes figures of different versions incomparable
    assert Digits(seed=5).split("test").label[:12].tolist() == Digits(seed=0).split("test").label[:12].tolist()
    assert int(Digits().split("test").x[:].long().mul(torch.arange(64).view(8, 8)).sum()) == FINGERPRINT


FINGERPRINT = 2924637


def test_description_rebuilds_the_data_and_is_plain():
    data = Digits(batch_size=32, seed=4)
    described = json.loads(json.dumps(data.describe()))
    assert described["shape"] == [1, 8, 8]
    assert (described["levels"], described["conditions"]["label"]["n_classes"]) == (17, 10)
    again = build(described["config"])
    assert again.describe() == data.describe()
    assert torch.equal(next(iter(again.train_dataloader()))["x"], next(iter(data.train_dataloader()))["x"])


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def root(tmp_path):
    """A small data set in the four files, two of them gzipped."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 6)):
        images = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 5
        np.savez(tmp_path / f"{part}.npz", images=images, labels=labels)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(_idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    return tmp_path


def test_idx_files_are_read_back(root):
    data = IdxImages(str(root), n_val=5)
    train, test = np.load(root / "train.npz"), np.load(root / "t10k.npz")
    assert np.array_equal(data.split("train").x[:][:, 0], train["images"][:15])
    assert np.array_equal(data.split("val").x[:][:, 0], train["images"][15:])
    assert np.array_equal(data.split("test").x[:][:, 0], test["images"])
    assert data.split("val").label.tolist() == train["labels"][15:].tolist()
    assert data.split("test").label.tolist() == test["labels"].tolist()


def test_idx_padding(root):
    data = IdxImages(str(root), n_val=5, size=8)
    expected = np.pad(np.load(root / "t10k.npz")["images"], ((0, 0), (1, 2), (2, 2)))
    assert np.array_equal(data.split("test").x[:][:, 0], expected)
    with pytest.raises(UserError, match=r"data\.size=4 is smaller than the images \(5x4\)"):
        IdxImages(str(root), n_val=5, size=4).prepare()


IMAGES = "train-images-idx3-ubyte"


def test_idx_missing_files(root):
    (root / IMAGES).rename(root / "images")
    with pytest.raises(UserError, match=rf"lacks {IMAGES} .*{IMAGES}\.gz.* holds images, .*https://.*mnist"):
        IdxImages(str(root)).prepare()
    with pytest.raises(UserError, match="no such folder"):
        IdxImages(str(root / "nowhere")).prepare()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda raw: raw[:-7],
            "truncated or damaged: its header asks for 20x5x4 values, and at most 393 bytes follow it",
        ),
        (lambda raw: raw + b"x", "truncated or damaged"),
        (lambda raw: raw[:9], "truncated or damaged.* 0 bytes follow"),
        (lambda raw: b"", "is empty"),
        (lambda raw: b"\x89PNG" + raw, "is not an idx file of images .*00 00 08 03.* begins with 89 50 4e 47"),
        (lambda raw: gzip.compress(raw)[:-20], "cannot be read: .*truncated"),
        (lambda raw: gzip.compress(raw)[:40] + b"\0" * 40, "cannot be read"),
        (lambda raw: _idx(np.zeros(20, np.uint8)), "is not an idx file of images .*: it holds labels"),
    ],
)
def test_idx_damaged_file(root, damage, message):
    (root / IMAGES).write_bytes(damage((root / IMAGES).read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        IdxImages(str(root), n_val=5).prepare()
    assert IMAGES in str(caught.value)


def test_idx_that_do_not_belong_together(root):
    with pytest.raises(UserError, match=r"data\.n_val=20 leaves none of 20 training images"):
        IdxImages(str(root), n_val=20).prepare()
    with pytest.raises(ValueError, match="n_val must be an integer of at least 1"):
        IdxImages(str(root), n_val=0)
    (root / "t10k-images-idx3-ubyte").write_bytes(_idx(np.zeros((6, 4, 4), np.uint8)))
    with pytest.raises(UserError, match="training images are 5x4, the test images 4x4"):
        IdxImages(str(root), n_val=5).prepare()
    (root / "train-labels-idx1-ubyte.gz").write_bytes(_idx(np.zeros(19, np.uint8)))
    with pytest.raises(UserError, match=r"holds 20 images and .* 19 labels"):
        IdxImages(str(root), n_val=5).prepare()


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason=f"no MNIST files in {SHARED / 'mnist'}")
def test_mnist_is_mnist():
    data = IdxImages(str(SHARED / "mnist"))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [55_000, 5_000, 10_000]
    # published facts: mean 0.1307 and std 0.3081 of the 60,000 training images on [0, 1]; the test set's class counts
    x = torch.cat((data.split("train").x[:], data.split("val").x[:])).double() / 255
    assert (x.mean().item(), x.std().item()) == (pytest.approx(0.1307, abs=5e-5), pytest.approx(0.3081, abs=5e-5))
    assert data.split("test").label.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.std == pytest.approx(2 * 0.3081, abs=2e-3)


CONFIGS = sorted((REPOSITORY / "conf/data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_holds_every_argument_with_its_default(path):
    composed = OmegaConf.create({"seed": 0, "data": OmegaConf.load(path)})  # seed: ${seed} is that of the command
    config = OmegaConf.to_container(composed, resolve=True)["data"]
    place = {key: "somewhere" for key in ("root", "path") if config.get(key) == "???"}
    place |= {"name": path.stem} if config.get("name") == "???" else {}
    built = build(config | place)
    assert built.name == path.stem
    assert isinstance(built, find_class(config["_target_"]))
    required = {"name": path.stem} if "name" in config else {}
    if "handwriting" in config:
        required["handwriting"] = config["handwriting"]
    defaults = type(built)(**{**place, **required})
    arguments = {key: value for key, value in vars(defaults).items() if key in config} | required
    assert {key: config[key] for key in arguments if key not in place} == {
        key: value for key, value in arguments.items() if key not in place
    }


def test_padding_to_a_height_and_a_width(root):
    x = IdxImages(str(root), size=[7, 4], n_val=5)
    train = np.load(root / "train.npz")["images"][:15]
    assert np.array_equal(x.split("train").x[:, 0], np.pad(train, ((0, 0), (1, 1), (0, 0))))
    with pytest.raises(UserError, match=r"data\.size=\[7, 3\] is smaller than the images \(5x4\)"):
        IdxImages(str(root), size=[7, 3], n_val=5).prepare()


def test_sorted_files_leave_some_of_each_class_for_training(root):
    labels = np.arange(20, dtype=np.uint8) // 4
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    data = IdxImages(str(root), n_val=5)
    assert data.split("val").label.tolist() == [0, 1, 2, 3, 4]
    assert set(data.split("train").label.tolist()) == set(range(5))


def test_idx_files_of_other_types_are_named(root):
    raw = bytearray(_idx(np.zeros((20, 5, 4), np.uint8)))
    raw[2] = 0x0D
    (root / IMAGES).write_bytes(raw)
    with pytest.raises(UserError, match=r"is an idx file of floats, and only unsigned bytes are read.* data\.range"):
        IdxImages(str(root)).prepare()
