"""Encoded images in parquet files and in data sets of the Hugging Face hub: read, cached, or one message."""

import logging
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from parquet_files import NAMES, png, write

from sde_diffusion.data import HubImages, ParquetImages
from sde_diffusion.data.images import Reading
from sde_diffusion.errors import UserError

SHARED = Path(os.environ.get("SDE_DATA", Path(__file__).parents[2] / "../shared/data"))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """30 training images in two files, and 10 to test on."""
    images, labels = [png(one) for one in PIXELS], [i % 3 for i in range(40)]
    for name, some in (
        ("train-00000-of-00002", slice(0, 18)),
        ("train-00001-of-00002", slice(18, 30)),
        ("test-00000-of-00001", slice(30, 40)),
    ):
        write(tmp_path / "data" / f"{name}.parquet", images[some], labels[some])
    return tmp_path / "data"


def loaded(root, **options):
    return ParquetImages(str(root), **{"n_val": 6, "cache": str(root.parent / "cache"), **options})


def test_images_and_labels_are_those_of_the_files(root):
    data = loaded(root)
    assert (data.shape, data.levels, data.class_names) == ((3, 6, 5), 256, tuple(NAMES))
    assert torch.equal(data.split("test").x, torch.from_numpy(PIXELS[30:]).permute(0, 3, 1, 2))
    assert data.split("test").label.tolist() == [i % 3 for i in range(30, 40)]
    assert data.split("val").label.bincount().tolist() == [2, 2, 2]
    both = torch.cat([data.split("train").x, data.split("val").x]).permute(0, 2, 3, 1).numpy()
    assert sorted(one.tobytes() for one in both) == sorted(one.tobytes() for one in PIXELS[:30])
    assert data.conditions["label"].words(torch.tensor(2)) == "fox"


def test_grey_and_resized_images(root):
    grey = np.random.default_rng(1).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(root / f"{name}.parquet", [png(one) for one in grey], [0, 1, 2] * 3)
    data = loaded(root, n_val=2)
    assert torch.equal(data.split("test").x[:, 0], torch.from_numpy(grey))
    small = loaded(root, n_val=2, size=4, mode="RGB", label="row")
    assert (small.shape, small.n_classes) == ((3, 4, 4), 9)


def test_images_are_decoded_once(root, monkeypatch, caplog):
    first = loaded(root).prepare()
    (cached,) = (root.parent / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "read", lambda *_: pytest.fail("decoded again"))
        again = loaded(root).prepare()
    assert again.fingerprint == first.fingerprint
    cached.write_bytes(cached.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        assert loaded(root).fingerprint == first.fingerprint
    assert "is damaged" in caplog.text
    write(root / "test-00000-of-00001.parquet", [png(one) for one in PIXELS[:10]], [0] * 10)  # other images
    assert torch.equal(loaded(root).split("test").x, torch.from_numpy(PIXELS[:10]).permute(0, 3, 1, 2))


def test_a_cache_that_cannot_be_written_is_done_without(root, caplog):
    (root.parent / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert len(loaded(root).split("test")) == 10
    assert "could not be kept" in caplog.text


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def bent(path):
    """One byte of the pixels of the image in row 3."""
    whole = path.read_bytes()
    at = whole.index(png(PIXELS[21])) + 60
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut,
            r"train-00001-of-00002\.parquet cannot be read as a parquet file: .*18 images were read from other files",
        ),
        (bent, r"train-00001-of-00002\.parquet, row 3 cannot be read as an image"),
        (lambda path: path.write_bytes(b""), r"train-00001-of-00002\.parquet is empty"),
        (lambda path: path.unlink(), r"lacks train-00001-of-00002\.parquet: .* says that there are 2 files"),
        (lambda path: write(path, [png(PIXELS[0][:4])], [1]), r"different sizes: .*row 0 is 5x6 and .*row 0 is 5x4"),
    ],
)
def test_damaged_files(root, damage, message):
    damage(root / "train-00001-of-00002.parquet")
    with pytest.raises(UserError, match=message):
        loaded(root).prepare()


def test_wrong_settings(root, tmp_path):
    for options, message in (
        ({"image": "imgs"}, r"has no column data\.image=imgs.*did you mean img"),
        ({"image": "label"}, r"the column data\.image=label is int64, and images are stored as bytes"),
        ({"label": "img"}, r"the column data\.label=img is .*, and labels are integers"),
        ({"n_val": 28}, r"data, data\.n_val=28: 30 training items are too few"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(root, **options).prepare()
    write(root / "more" / "train-00000-of-00001.parquet", [png(PIXELS[0])], [0])
    with pytest.raises(UserError, match=r"has train files in \., more, as several data sets have: choose one of them"):
        loaded(root).prepare()
    for folder, message in (("nowhere", "no such folder; it must be"), ("empty", "it holds nothing; it must be")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            loaded(tmp_path / folder).prepare()
    with pytest.raises(UserError, match=r"it holds nothing; .* with train-00000-of-.*: download .*https://huggingface"):
        loaded(tmp_path / "empty", name="cifar10").prepare()


def test_without_the_libraries(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs pyarrow, .*pip install 'sde_diffusion\[parquet\]'"):
        loaded(tmp_path).prepare()
    with pytest.raises(UserError, match=r"needs datasets, .*pip install 'sde_diffusion\[hub\]'"):
        HubImages("owner/name").prepare()


def test_the_hub_is_not_asked_unless_wanted(monkeypatch):
    asked = []
    fake = types.SimpleNamespace(config=types.SimpleNamespace(HF_HUB_OFFLINE=False))

    def load_dataset(name, subset, revision):
        asked.append(fake.config.HF_HUB_OFFLINE)
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub")

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(UserError, match=r"data\.name=owner/name: Couldn't reach .*unless you set data\.download=true"):
        HubImages("owner/name").prepare()
    with pytest.raises(UserError, match=r"Couldn't reach 'owner/name' on the Hub$"):
        HubImages("owner/name", download=True).prepare()
    assert asked == [True, False]
    assert not fake.config.HF_HUB_OFFLINE


def test_a_folder_in_the_format_of_the_hub(root, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    data = HubImages(str(root), n_val=6, cache=str(tmp_path / "cache"))
    assert data.describe()["conditions"] == loaded(root).describe()["conditions"]
    assert all(torch.equal(data.split(name).x, loaded(root).split(name).x) for name in ("train", "val", "test"))
    with pytest.raises(UserError, match=r"owner/name: Couldn't reach .*data\.download=true"):
        HubImages("owner/name").prepare()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason=f"no CIFAR-10 files in {SHARED / 'cifar10'}")
def test_cifar10_is_cifar10(tmp_path):
    pytest.importorskip("pyarrow")
    data = ParquetImages(str(SHARED / "cifar10"), cache=str(tmp_path))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [49_000, 1_000, 10_000]
    x = torch.cat([data.split("train").x, data.split("val").x]).double() / 255
    # published figures of the 50,000 training images on [0, 1]
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    assert data.split("test").label.bincount().tolist() == [1000] * 10
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
