"""A folder of images: every mode and layout of folders, and every way it can be wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data import Folder
from sde_diffusion.data.images import Reading
from sde_diffusion.errors import UserError

RNG = np.random.default_rng(0)


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def _noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def _fill(root, n=20, size=(6, 5), suffix=".png", folder=""):
    """Save ``n`` random colour images and return them by name."""
    images = {f"{i:02d}{suffix}": _noise(*size, 3) for i in range(n)}
    for name, image in images.items():
        _save(root / folder / name, image)
    return images


def _rows(x):
    return sorted(map(bytes, np.ascontiguousarray(x)))


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_come_back(tmp_path, in_memory):
    images = np.stack(list(_fill(tmp_path, 40).values())).transpose(0, 3, 1, 2)
    data = Folder(str(tmp_path), in_memory=in_memory, batch_size=8, min_batches_per_epoch=1)
    splits = [data.split(name) for name in ("train", "val", "test")]
    assert [len(split) for split in splits] == [36, 2, 2]
    assert _rows(torch.cat([split.x[:] for split in splits]).numpy()) == _rows(images)
    assert (data.shape, data.levels, data.n_classes) == ((3, 6, 5), 256, 0)
    seen = torch.cat([batch["x"] for batch in data.train_dataloader()]).numpy()
    rows = set(_rows(data.tensor("train").numpy()))
    assert len(set(_rows(seen)) & rows) == len(seen) == 32
    assert data.std == pytest.approx(data.tensor("train").double().std(correction=0).item(), rel=1e-9)


def test_reading_from_files_and_from_memory_agree(tmp_path):
    _fill(tmp_path, 40)
    memory, files = (Folder(str(tmp_path), in_memory=keep, batch_size=8) for keep in (True, False))
    for a, b, _ in zip(memory.train_dataloader(), files.train_dataloader(), range(9), strict=False):
        assert torch.equal(a["x"], b["x"])
    assert (memory.in_files, files.in_files) == (False, True)


def test_auto_reads_from_files_what_does_not_fit(tmp_path, monkeypatch):
    _fill(tmp_path, 20)
    monkeypatch.setattr("sde_diffusion.data.folder._IN_MEMORY", 20 * 3 * 6 * 5)
    fits = Folder(str(tmp_path))
    fits.prepare()
    monkeypatch.setattr("sde_diffusion.data.folder._IN_MEMORY", 20 * 3 * 6 * 5 - 1)
    large = Folder(str(tmp_path))
    large.prepare()
    assert (fits.in_files, large.in_files) == (False, True)


def test_subfolders_are_classes(tmp_path):
    for name, value in (("cat", 10), ("bird", 20), ("dog", 30)):
        for i in range(20):
            _save(tmp_path / name / "deep" / f"{i}.png", np.full((4, 4), value, np.uint8))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/a.png").write_bytes(b"passed over")
    data = Folder(str(tmp_path))
    assert (data.n_classes, data.shape) == (3, (1, 4, 4))
    for name, n in (("train", 54), ("val", 3), ("test", 3)):
        split = data.split(name)
        assert len(split) == n
        assert split.x[:][:, 0, 0, 0].tolist() == [[20, 10, 30][label] for label in split.label]
        assert split.label.bincount().tolist() == [n // 3] * 3


def test_splits_given_as_subfolders(tmp_path):
    for split, value in (("train", 1), ("test", 2)):
        for i in range(20):
            _save(tmp_path / split / f"{i}.bmp", np.full((4, 4), value, np.uint8))
    data = Folder(str(tmp_path))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [19, 1, 20]
    assert [data.split(name).x[:].unique().tolist() for name in ("train", "val", "test")] == [[1], [1], [2]]
    assert data.n_classes == 0
    _save(tmp_path / "test/a/0.bmp", np.zeros((4, 4), np.uint8))
    _save(tmp_path / "test/b/0.bmp", np.zeros((4, 4), np.uint8))
    for path in (tmp_path / "test").glob("*.bmp"):
        path.unlink()
    with pytest.raises(UserError, match=r"test has the classes a, b that train lacks.*none \(no subfolders\)"):
        Folder(str(tmp_path)).prepare()


GREY = np.linspace(0, 255, 12).astype(np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY),
        (GREY > 100, np.where(GREY > 100, 255, 0)),
        (GREY.astype(np.uint16) * 257, GREY),  # 16 bits of grey: Pillow's own conversion clips at 255
        (GREY.astype(np.uint16) * 257 - GREY // 3, GREY),
        (np.stack([GREY] * 3, -1), GREY),
        (np.stack([GREY, np.full_like(GREY, 255)], -1), GREY),
        (np.stack([GREY, np.zeros_like(GREY)], -1), np.full_like(GREY, 255)),  # transparent: the white behind it
        (np.stack([GREY] * 3 + [np.full_like(GREY, 128)], -1), np.round(255 - (255.0 - GREY) * 128 / 255)),
    ],
)
def test_any_mode_read_as_grey(tmp_path, array, expected):
    path = _save(tmp_path / "a.png", array)
    found = Reading(None, "center", "L")(path)[0].numpy().astype(int)
    assert np.abs(found - expected).max() <= 1
    colour = Reading(None, "center", "RGB")(path).numpy().astype(int)
    assert np.abs(colour - expected).max() <= 1


def test_palette_and_animation(tmp_path):
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    found = Reading(None, "center", "RGB")(tmp_path / "a.gif")
    assert found.flatten(1).unique(dim=1).T.tolist() == [[255, 0, 0]]


def test_exif_orientation_is_obeyed(tmp_path):
    image = _noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    for i in range(4):
        Image.fromarray(image).save(tmp_path / f"{i}.png", exif=exif)
    data = Folder(str(tmp_path))
    assert data.shape == (3, 6, 4)
    upright = np.rot90(image, -1).transpose(2, 0, 1)
    assert np.array_equal(data.split("train").x[:][0], upright)


def test_crop_and_stretch(tmp_path):
    image = np.zeros((8, 16), np.uint8)
    image[:, 4:12] = 200  # the middle square is bright, both sides are black
    for i in range(4):
        _save(tmp_path / f"{i}.png", image)
    cropped, stretched = (
        Folder(str(tmp_path), size=8, crop=crop).split("train").x[:][0, 0] for crop in ("center", "none")
    )
    assert cropped.unique().tolist() == [200]
    assert stretched[:, [0, 7]].max() <= 10
    assert stretched[:, 3:5].min() >= 190


@pytest.mark.parametrize("crop", ["center", "none"])
def test_resizing_averages(tmp_path, crop):
    """Shrinking noise 16 times must keep its mean, with little spread: picking single pixels would keep the spread."""
    for i in range(4):
        _save(tmp_path / f"{i}.png", _noise(128, 128))
    x = Folder(str(tmp_path), size=8, crop=crop).split("train").x[:].double()
    assert x.mean().item() == pytest.approx(127.5, abs=1.5)
    assert x.std().item() < 256 / 12**0.5 / 8


def test_mixed_sizes(tmp_path):
    _fill(tmp_path, 5)
    _save(tmp_path / "zz.jpg", _noise(7, 9, 3))
    with pytest.raises(
        UserError, match=r"different sizes: \S*\d\d\.png is 5x6 and \S*zz\.jpg is 9x7; set data\.size=32"
    ):
        Folder(str(tmp_path)).prepare()
    assert Folder(str(tmp_path), size=4).shape == (3, 4, 4)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif", ".gif"])
def test_truncated_file_is_named(tmp_path, suffix, in_memory):
    _fill(tmp_path, 5, size=(64, 64), suffix=suffix)
    path = tmp_path / f"03{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = Folder(str(tmp_path), in_memory=in_memory)
    with pytest.raises(UserError, match=rf"03\{suffix} cannot be read as an image: .*remove or replace it"):
        _ = [data.tensor(name) for name in ("train", "val", "test")]


def test_damaged_file_in_training_from_files_is_named(tmp_path):
    _fill(tmp_path, 40, size=(64, 64))
    data = Folder(str(tmp_path), in_memory=False, batch_size=4)
    path = data.split("train").x.paths[0]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"{path.name} cannot be read as an image"):
        list(data.train_dataloader())


def test_not_an_image(tmp_path):
    _fill(tmp_path, 5)
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(UserError, match=r"notes\.png cannot be read as an image"):
        Folder(str(tmp_path)).prepare()


def test_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Folder(str(tmp_path / "nowhere")).prepare()
    with pytest.raises(UserError, match=r"no images in it or its subfolders; images are files ending in \.png"):
        Folder(str(tmp_path)).prepare()
    _fill(tmp_path, 2, folder="train")
    with pytest.raises(UserError, match="2 training items are too few to split off 1 and 1"):
        Folder(str(tmp_path)).prepare()
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match=r"no images in \S*val or its subfolders"):
        Folder(str(tmp_path)).prepare()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size must be a number of pixels.* or None; got 0"),
        ({"crop": "random"}, "crop must be center or none; got 'random'"),
        ({"mode": "CMYK"}, "mode must be L, RGB or None; got 'CMYK'"),
        ({"in_memory": "yes"}, "in_memory must be True, False or auto; got 'yes'"),
        ({"num_workers": 0}, "num_workers must be an integer of at least 1; got 0"),
    ],
)
def test_arguments_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Folder("x", **wrong)
