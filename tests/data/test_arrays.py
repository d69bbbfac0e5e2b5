"""Data from an .npz file: every way it is read, and every way it can be wrong."""

import logging

import numpy as np
import pytest
import torch

from sde_diffusion.data import Arrays, to_levels
from sde_diffusion.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


def _bytes(*shape, high=256):
    x = RNG.integers(0, high, shape, dtype=np.uint8)
    x.flat[:2] = 0, high - 1
    return x


def _all(data, *names):
    """The rows of the named splits together, in a canonical order, for comparison with those of the file."""
    rows = torch.cat([data.split(name).x[:] for name in names]).numpy()
    return sorted(map(bytes, np.ascontiguousarray(rows)))


@pytest.mark.parametrize(
    ("array", "layout", "channels_first"),
    [
        (_bytes(40, 5, 6), None, lambda x: x[:, None]),
        (_bytes(40, 5, 6, 3), None, lambda x: x.transpose(0, 3, 1, 2)),
        (_bytes(40, 3, 5, 6), None, lambda x: x),
        (_bytes(40, 1, 5, 6), None, lambda x: x),
        (_bytes(40, 3, 5, 3), "NHWC", lambda x: x.transpose(0, 3, 1, 2)),
        (_bytes(40, 3, 5, 3), "NCHW", lambda x: x),
        (_bytes(40, 7), None, lambda x: x),
        (_bytes(40, 5, 6, 3).astype(np.int64), None, lambda x: x.transpose(0, 3, 1, 2)),
        (RNG.uniform(-1, 1, (40, 5, 6, 3)).astype(np.float32), None, lambda x: x.transpose(0, 3, 1, 2)),
        (RNG.uniform(-1, 1, (40, 5, 6)).astype(np.float32), None, lambda x: x),
        (RNG.uniform(-1, 1, (40, 5, 6)).astype(np.float32), "NHW", lambda x: x[:, None]),
        (RNG.uniform(-1, 1, (40, 2, 5, 6, 7)).astype(np.float32), None, lambda x: x),
    ],
)
def test_layouts(save, array, layout, channels_first, caplog):
    with caplog.at_level(logging.INFO):
        data = Arrays(save(train_images=array), layout=layout)
        assert _all(data, "train", "val", "test") == sorted(
            map(bytes, np.ascontiguousarray(_u8(channels_first(array))))
        )
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [34, 2, 4]
    assert f"read as 40 {data.modality.kind}" in caplog.text


def _u8(x):
    return x.astype(np.uint8) if x.dtype.kind == "i" else x


def test_images_labels_and_given_test(save):
    x, y = _bytes(40, 4, 4), np.repeat(np.arange(4), 10)
    test_x, test_y = _bytes(8, 4, 4), np.arange(8)[:, None] % 4
    data = Arrays(save(train_images=x, train_labels=y, test_images=test_x, test_labels=test_y), val_fraction=0.1)
    assert np.array_equal(data.split("test").x[:][:, 0], test_x)
    assert data.split("test").label.tolist() == test_y[:, 0].tolist()
    assert sorted(data.split("val").label.tolist()) == [0, 1, 2, 3]
    assert data.n_classes == 4
    # every image kept its label
    for name in ("train", "val"):
        for image, label in zip(data.split(name).x[:].numpy(), data.split(name).label.tolist(), strict=True):
            assert label in y[(x == image[0]).all((1, 2))]


def test_splits_depend_on_their_seed_alone(save):
    path = save(train_images=_bytes(60, 4))
    one, two, three = Arrays(path), Arrays(path, seed=3, batch_size=7), Arrays(path, split_seed=1)
    assert torch.equal(one.tensor("test"), two.tensor("test"))
    assert not torch.equal(one.tensor("test"), three.tensor("test"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_range_is_mapped_linearly(save, dtype):
    x = np.linspace(-3, 5, 41).astype(dtype)[:, None]
    data = Arrays(save(train_images=x), range=[-3, 5])
    found = np.sort(torch.cat([data.tensor(name) for name in ("train", "val", "test")]).numpy(), axis=None)
    assert np.allclose(found, np.interp(x[:, 0], [-3, 5], [-1, 1]), atol=2e-3 if dtype == np.float16 else 2e-7)
    assert (found[0], found[-1]) == (-1, 1)


def test_floats_already_in_range_are_kept_bit_for_bit(save):
    x = (RNG.uniform(-1, 1, (40, 2)) * 10.0 ** RNG.uniform(-30, 0, (40, 2))).astype(np.float32)
    assert _all(Arrays(save(train_images=x)), "train", "val", "test") == sorted(map(bytes, x))


def test_unit_range_is_pointed_out(save, caplog):
    with caplog.at_level(logging.WARNING):
        Arrays(save(train_images=np.linspace(0, 1, 40)[:, None])).prepare()
    assert "set data.range=[0,1]" in caplog.text


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_come_back(save, levels):
    x = _bytes(40, 3, 3, high=levels)
    data = Arrays(save(train_images=x, test_images=x), levels=levels)
    assert np.array_equal(to_levels(data.tensor("test"), levels)[:, 0], x)
    assert data.tensor("test").aminmax() == (-1, 1)
    described = data.describe()
    assert (described["levels"], described["config"]["levels"]) == (levels, levels)
    assert Arrays(save(train_images=x)).config["levels"] is None


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"test_images": _bytes(9, 4)}, {}, r"has no train_images; it holds test_images; the names are train_images, "),
        ({"images": _bytes(9, 4), "x_train": _bytes(9, 4)}, {}, "both images and x_train would be train_images"),
        ({}, {}, "has no train_images; it holds nothing"),
        ({"train_images": np.array([[1.0, np.nan], [np.inf, 2]])}, {}, "train_images holds 2 NaN or infinite .* of 4"),
        ({"train_images": np.array([[1j]])}, {}, "train_images has dtype complex128; it must be uint8 or a float"),
        ({"train_images": np.array([["a"]])}, {}, "train_images has dtype <U1"),
        ({"train_images": np.array([[{}]])}, {}, "array of Python objects, which is never loaded"),
        ({"train_images": np.zeros((0, 4, 4), np.uint8)}, {}, r"shape \[0, 4, 4\]; it must be \[N, \.\.\.\] and not"),
        ({"train_images": np.zeros(4, np.uint8)}, {}, r"shape \[4\]; it must be \[N, \.\.\.\]"),
        ({"train_images": np.full((9, 4), 3.5)}, {}, r"from 3\.5 to 3\.5, outside data\.range=\[-1,1\]; set data\.r"),
        ({"train_images": np.full((9, 4), 3.5)}, {"range": [0, 2]}, r"outside data\.range=\[0,2\]"),
        ({"train_images": np.full((9, 4), 300)}, {}, "integers from 300 to 300; with 256 levels .* 0 to 255"),
        ({"train_images": np.full((9, 4), -1)}, {}, "integers from -1 to -1"),
        ({"train_images": _bytes(9, 4, high=18)}, {"levels": 17}, "integers from 0 to 17; with 17 levels .* 0 to 16"),
        ({"train_images": _bytes(9, 3, 5, 3)}, {}, r"it is not clear which axis has the channels; set data\.layout="),
        ({"train_images": _bytes(9, 5, 5, 5)}, {}, "it is not clear which axis has the channels"),
        ({"train_images": _bytes(9, 5)}, {"layout": "NHWC"}, r"shape \[9, 5\], which data\.layout=NHWC does not fit"),
        ({"train_images": _bytes(2, 5)}, {}, "2 training items are too few to split off 1 and 1"),
        ({"train_images": _bytes(9, 5), "test_images": _bytes(9, 6)}, {}, r"of shape \[5\] and .* of shape \[6\]"),
        ({"train_images": _bytes(9, 5), "test_images": np.zeros((9, 5))}, {}, "are integers .* and test_images floats"),
        (
            {"train_images": _bytes(9, 5), "train_labels": np.arange(8)},
            {},
            r"\[8\]; 9 images need labels of shape \[9\]",
        ),
        ({"train_images": _bytes(9, 5), "train_labels": np.eye(9)}, {}, r"\[9, 9\]; 9 images need labels"),
        ({"train_images": _bytes(9, 5), "train_labels": np.full(9, -1)}, {}, "must be integers from 0 up"),
        ({"train_images": _bytes(9, 5), "train_labels": np.zeros(9)}, {}, "integers from 0 up .* found float64"),
        ({"train_images": np.full((9, 4), 3e4, np.int32)}, {}, r"or data\.range=\[29999,30001\] \(or wider\) to read"),
        ({"train_images": np.full((9, 4), 250.5)}, {}, r"set data\.range=\[0,255\] or wider, or data\.range=auto"),
        ({"train_images": np.full((9, 4), 3)}, {"range": [[0, 9]] * 3}, r"3 ranges, and train_images has .* \[4\]"),
        ({"train_images": np.full((9, 2), 3)}, {"range": [[0, 9], [0, 2]]}, "in column 1, outside"),
    ],
)
def test_unusable_arrays(save, arrays, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        Arrays(save(**arrays), **arguments).prepare()
    assert "data.npz" in str(caught.value)


def test_unusable_files(save, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.npz does not exist"):
        Arrays(str(tmp_path / "nothing.npz")).prepare()
    save(train_images=_bytes(99, 40))
    complete = tmp_path / "data.npz"
    raw = complete.read_bytes()
    complete.write_bytes(b"some text, no archive")
    with pytest.raises(UserError, match=r"is neither an \.npz nor an \.npy file"):
        Arrays(str(complete)).prepare()
    for damaged in (raw[:-200], raw[:2000] + b"\0" * 500 + raw[2500:]):
        complete.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or truncated"):
            Arrays(str(complete)).prepare()


def test_code_in_a_file_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "bomb.npz", train_images=np.array([Bomb()], dtype=object))
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(UserError, match="Python objects"):
        Arrays(str(tmp_path / "bomb.npz")).prepare()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"range": [1, 0]}, "lo < hi"),
        ({"range": [0]}, "two finite numbers"),
        ({"range": [[0, 1], [1, 1]]}, "two finite numbers"),
        ({"range": "all"}, "auto or None; got 'all'"),
        ({"range": [0, 1], "levels": 2}, "levels or range, not both"),
        ({"levels": 2.5}, "levels must be an integer from 2 to 256, or None; got 2.5"),
        ({"levels": 1}, "from 2 to 256, or None; got 1"),
        ({"layout": "HWC"}, "one of NHW, NHWC, NCHW, NCL, NLC, as_is, or None; got 'HWC'"),
        ({"val_fraction": 0.0}, "must be positive with a sum below 1; got val_fraction=0.0"),
    ],
)
def test_arguments_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Arrays("x.npz", **wrong)
