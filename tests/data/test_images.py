"""Image files with every kind of values, which files in a folder are found, and which are not used."""

import logging
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data import Folder, IdxImages
from sde_diffusion.data.images import Reading
from sde_diffusion.errors import UserError

RNG = np.random.default_rng(0)


def _save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def _fill(folder, n=10, shape=(4, 4)):
    for i in range(n):
        _save(folder / f"{i}.png", RNG.integers(0, 256, shape, dtype=np.uint8))


def _tiff(path, array, kind):
    """A bare TIFF of any numbers: kind 1 unsigned, 2 signed, 3 floats."""
    height, width, channels = (*array.shape, 1)[:3]
    data, place = array.tobytes(), 8 + 2 + 10 * 12 + 4
    words = {
        key: struct.pack(f"<{channels}H", *[value] * channels)
        for key, value in ((258, array.itemsize * 8), (339, kind))
    }
    entries, extra = [], b""
    for tag, value in (
        (256, width),
        (257, height),
        (258, None),
        (259, 1),
        (262, 1 if channels == 1 else 2),
        (273, None),
        (277, channels),
        (278, height),
        (279, len(data)),
        (339, None),
    ):
        if tag in words and channels > 1:
            entries.append((tag, 3, channels, place + len(extra)))
            extra += words[tag]
        elif tag in words:
            entries.append((tag, 3, 1, int.from_bytes(words[tag], "little")))
        else:
            entries.append(
                (tag, 4, 1, value if value is not None else place + (2 * 2 * channels if channels > 1 else 0))
            )
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(head + bytes(4) + extra + data)


FLOATS = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)


def test_floats_from_0_to_1_are_256_levels_of_grey(tmp_path):
    for i in range(6):
        _save(tmp_path / f"{i}.tif", FLOATS)
    data = Folder(str(tmp_path)).prepare()
    assert (data.shape, data.levels) == ((1, 4, 4), 256)
    assert np.array_equal(data.split("train").x[0, 0], np.round(FLOATS * 255))


@pytest.mark.parametrize(
    ("array", "kind", "ends", "expected"),
    [
        (np.full((4, 4), 2500, np.float32), 3, [0, 5000], 128),
        (np.full((4, 4), -7, np.int16), 2, [-10, 5], 51),
        (np.full((4, 4), 7, np.uint32), 1, [0, 70], 26),
        (np.full((4, 4), 1000, np.uint16), 1, [0, 4000], 64),
        (np.full((4, 4), 32896, np.uint16), 1, None, 128),
    ],
)
def test_grey_values_of_more_than_8_bits(tmp_path, array, kind, ends, expected):
    for i in range(4):
        _tiff(tmp_path / f"{i}.tif", array, kind)
    data = Folder(str(tmp_path), range=ends).prepare()
    assert data.shape == (1, 4, 4)
    assert data.split("train").x[:].unique().tolist() == [expected]


@pytest.mark.parametrize(
    ("array", "kind", "arguments", "message"),
    [
        (np.full((4, 4), 7, np.int32), 2, {}, r"32-bit integers, whose range is unknown: set data\.range=\[lo,hi\]"),
        (np.full((4, 4), 3, np.float32), 3, {}, r"values from 3 to 3, outside \[0, 1\]: set data\.range"),
        (np.full((4, 4), -3, np.int16), 2, {"range": [0, 9]}, r"values from -3 to -3, outside \[0, 9\]"),
        (np.full((4, 4), np.nan, np.float32), 3, {}, "holds NaN or infinite values"),
        (np.full((4, 4), np.inf, np.float32), 3, {"range": [0, 1]}, "holds NaN or infinite values"),
        (np.full((4, 4), 0.5), 3, {}, "Pillow does not read this kind of TIFF, such as colours as floats"),
        (np.full((4, 4, 3), 0.5, np.float32), 3, {}, "Pillow does not read this kind of TIFF"),
    ],
)
def test_refused_values(tmp_path, array, kind, arguments, message):
    for i in range(4):
        _tiff(tmp_path / f"{i}.tif", array, kind)
    with pytest.raises(UserError, match=message) as caught:
        Folder(str(tmp_path), **arguments).prepare()
    assert ".tif" in str(caught.value)


def test_the_written_tiffs_are_those_of_a_library(tmp_path):
    """The tests above of values that Pillow does not read rely on these bytes."""
    for array, kind in ((FLOATS, 3), (RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8), 1)):
        _tiff(tmp_path / "a.tif", array, kind)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.tif")), array)


def test_black_and_white_files_have_two_levels(tmp_path):
    masks = RNG.random((8, 4, 4)) > 0.5
    for i, mask in enumerate(masks):
        _save(tmp_path / f"{i}.png", mask)
    data = Folder(str(tmp_path))
    assert (data.shape, data.levels) == ((1, 4, 4), 2)
    found = torch.cat([data.split(name).x for name in ("train", "val", "test")])[:, 0].numpy()
    assert sorted(map(bytes, found)) == sorted(map(bytes, masks.astype(np.uint8)))
    assert Folder(str(tmp_path), size=8).levels == 256  # resizing makes greys
    _save(tmp_path / "z.png", np.full((4, 4), 99, np.uint8))
    assert Folder(str(tmp_path)).levels == 256


def test_grey_palettes_stay_grey(tmp_path):
    for i in range(4):
        image = Image.fromarray(np.full((4, 4), i, np.uint8)).convert("P")
        image.putpalette([value for k in range(256) for value in (255 - k,) * 3])
        image.save(tmp_path / f"{i}.png")
    data = Folder(str(tmp_path))
    assert data.shape == (1, 4, 4)
    found = torch.cat([data.split(name).x for name in ("train", "val", "test")])
    assert sorted(found[:, 0, 0, 0].tolist()) == [252, 253, 254, 255]
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "3.png")
    assert Folder(str(tmp_path)).shape == (3, 4, 4)


def test_a_folder_has_no_more_levels_than_its_values(tmp_path, caplog):
    for i in range(6):
        _save(tmp_path / f"{i}.png", RNG.integers(0, 4, (4, 4)).astype(np.uint8))
    with caplog.at_level(logging.WARNING):
        Folder(str(tmp_path)).prepare()
    assert "fills 1.2% of [-1, 1]" in caplog.text


@pytest.mark.parametrize("crop", ["center", "none"])
def test_heights_and_widths(tmp_path, crop):
    image = np.zeros((8, 24), np.uint8)
    image[:, 4:20] = 200
    for i in range(4):
        _save(tmp_path / f"{i}.png", image)
    data = Folder(str(tmp_path), size=[4, 8], crop=crop)
    assert (data.shape, data.config["size"]) == ((1, 4, 8), [4, 8])
    columns = data.split("train").x[0, 0].float().mean(0)
    assert columns.min() > 180 if crop == "center" else columns[0] < 30  # the middle 8 x 16 is all bright
    assert columns[4] > 190


@pytest.mark.parametrize("size", [16.5, "32", True, [32], [32, 32, 3], [32, 1.5], [[3, 3], 3]])
@pytest.mark.parametrize("cls", [Folder, IdxImages])
def test_a_size_that_is_none(cls, size):
    with pytest.raises(ValueError, match=r"data\.size must be a number of pixels, such as 32, or \[height,width\]"):
        cls("x", size=size)
    assert cls("x", size=np.int64(5)).size == 5


def test_why_a_file_cannot_be_read(tmp_path, monkeypatch):
    _fill(tmp_path, 5)
    large = _save(tmp_path / "large.png", RNG.integers(0, 256, (40, 40), dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match=r"large\.png is too large: .*1600 pixels.* shrink it or remove it") as caught:
        Folder(str(tmp_path), size=4).prepare()
    assert "damaged" not in str(caught.value)
    monkeypatch.undo()
    for content, message in (
        (b"", r"large\.png is empty"),
        (b"some words", "begins with 73 6f 6d 65, like no image format"),
        (large.read_bytes()[:60], "is damaged or truncated"),
        (b"II*\0\xff\xff\xff\0" + bytes(50), "is damaged or truncated"),
    ):
        large.write_bytes(content)
        with pytest.raises(UserError, match=message):
            Folder(str(tmp_path), size=4).prepare()
    large.unlink()
    monkeypatch.setattr("os.open", _refuse)  # the tests may run as root, who may read anything
    with pytest.raises(UserError, match=r"0\.png cannot be opened: Permission denied"):
        Reading(None, "center", "L")(tmp_path / "0.png")


def _refuse(path, *_):
    raise PermissionError(13, "Permission denied", str(path))


def _said(caplog, data):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data.prepare()
    return caplog.text


def test_links_are_followed_and_loops_end(tmp_path, caplog):
    _fill(tmp_path / "far/cats")
    _fill(tmp_path / "far/dogs")
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "far/cats")
    (root / "dog").symlink_to(tmp_path / "far/dogs")
    data = Folder(str(root))
    assert _said(caplog, data) == ""
    assert data.class_names == ("cat", "dog")
    assert sum(len(data.split(name)) for name in ("train", "val", "test")) == 20
    (tmp_path / "far/cats/again").symlink_to(root)
    (tmp_path / "far/dogs/0.png").unlink()
    (tmp_path / "far/dogs/0.png").symlink_to(tmp_path / "far/cats/0.png")
    (tmp_path / "far/dogs/1.png").unlink()
    (tmp_path / "far/dogs/1.png").symlink_to(tmp_path / "nowhere.png")
    data = Folder(str(root))
    said = _said(caplog, data)
    assert "cat/again, a link to a folder that is read already" in said
    assert "dog/1.png, a link to nothing" in said
    assert sum(len(data.split(name)) for name in ("train", "val", "test")) == 19
    os.mkfifo(tmp_path / "far/dogs/pipe.png")
    assert "dog/pipe.png, no file" in _said(caplog, Folder(str(root)))


def test_a_folder_in_its_own_place_is_read_there(tmp_path, caplog):
    _fill(tmp_path / "cat")
    _fill(tmp_path / "dog")
    (tmp_path / "ant").symlink_to(tmp_path / "dog")
    data = Folder(str(tmp_path))
    assert "ant, a link to a folder that is read already" in _said(caplog, data)
    assert data.class_names == ("cat", "dog")


def test_an_image_beside_class_folders(tmp_path, caplog):
    _fill(tmp_path / "cat")
    _fill(tmp_path / "dog")
    _fill(tmp_path, 1)
    data = Folder(str(tmp_path))
    reason = ": 1 of its images, such as 0.png, are not in the subfolders cat, dog: move them into one, or away"
    assert f"no labels{reason}" in _said(caplog, data)
    assert (data.n_classes, data.class_names) == (0, None)
    assert data.why_no_labels.startswith(reason)


def test_what_is_not_used_is_said(tmp_path, caplog):
    for folder in ("train/a", "train/b", "valid/a", "valid/b", "extra/c"):
        _fill(tmp_path / folder)
    _fill(tmp_path, 1)
    (tmp_path / "train/labels.csv").write_text("0,1")
    (tmp_path / "train/c").mkdir()
    (tmp_path / "valid/README").write_text("words")
    data = Folder(str(tmp_path))
    said = _said(caplog, data)
    for part in (
        "not used, as they are in no split's folder: extra/, 0.png",
        "train: not used: 1 file ending in .csv; c, without images",
        "valid: not used: 1 file without an ending",
    ):
        assert part in said
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [19, 20, 1]
    assert data.class_names == ("a", "b")


def test_a_split_with_a_part_of_the_classes(tmp_path):
    for folder in ("train/a", "train/b", "train/c", "test/b"):
        _fill(tmp_path / folder)
    data = Folder(str(tmp_path))
    assert data.split("test").label.unique().tolist() == [1]
    _fill(tmp_path / "test", 1)
    with pytest.raises(UserError, match=r"train has classes, but \S*test/0\.png of test is in no class folder"):
        Folder(str(tmp_path)).prepare()


@pytest.mark.parametrize("seed", range(8))
def test_a_small_class_stays_in_train(tmp_path, seed):
    _fill(tmp_path / "a", 40)
    _fill(tmp_path / "b", 2)
    _fill(tmp_path / "c", 1)
    data = Folder(str(tmp_path), split_seed=seed)
    assert data.split("train").label.unique().tolist() == [0, 1, 2]
