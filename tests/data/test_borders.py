"""Checks of data: ranges, labels, units; errors and warnings."""

import logging
import re

import numpy as np
import pytest
import torch

from sde_diffusion.data import Arrays, DataModule, Density, Digits, Moons, Split
from sde_diffusion.data.names import array_names, split_folders
from sde_diffusion.errors import UserError
from sde_diffusion.modality.units import Units

RNG = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


class Own(DataModule):
    """A user-defined data set with these splits."""

    name = "own"

    def __init__(self, bounded=True, **splits):
        super().__init__()
        self.given, self.bounded = splits, bounded

    def load(self):
        return {name: self.given.get(name, self.given["train"]) for name in ("train", "val", "test")}


def _said(caplog, make):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        make()
    return caplog.text


X = torch.rand(40, 3) * 2 - 1


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": Split(X * 5000)}, r"the train split of 'own' has values from -4\S+ to \S+, but models need"),
        ({"train": Split(X), "val": Split(X * 1.1)}, "the val split .* but models need values in"),
        ({"train": Split(X), "test": Split(X / 0)}, "the test split of 'own' holds NaN or infinite values"),
        ({"train": Split(X.log())}, "the train split of 'own' holds NaN or infinite values"),
        ({"train": Split(X), "val": Split(X[:0])}, "has no items in val"),
        ({"train": Split(X), "val": Split(X[:, :2])}, r"train has items of shape \[3\] with no levels, and val \[2\]"),
        ({"train": Split(torch.full((9, 2), 17).byte(), levels=17)}, "values from 1.125 to 1.125"),
        ({"train": Split(X, torch.rand(40))}, "labels of train must be integers from 0 up"),
        ({"train": Split(X, torch.arange(40) - 1)}, "labels of train must be integers from 0 up"),
        ({"train": Split(X, torch.arange(39))}, "one for each of its 40 items"),
    ],
)
def test_what_no_model_can_learn_from(splits, message):
    with pytest.raises(UserError, match=message):
        Own(**splits).prepare()


def test_tails_of_a_density_may_pass_the_ends(caplog):
    assert not Density.bounded
    assert _said(caplog, Own(bounded=False, train=Split(X * 3)).prepare) == ""
    assert _said(caplog, Moons(n_train=500).prepare) == ""
    assert _said(caplog, Digits().prepare) == ""


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"train_images": RNG.random((40, 5)) / 50}, {"range": [-1, 1]}, r"fills (0\.9\d?|1)% of \[-1, 1\]"),
        ({"train_images": RNG.random((40, 5))}, {"range": [0, 5000]}, r"fills 0\.02% of \[-1, 1\]"),
        ({"train_images": RNG.integers(0, 2, (40, 5), np.uint8)}, {}, r"fills 0\.39% .* data\.levels=N"),
        ({"train_images": np.eye(400)}, {"range": [0, 50]}, "standard deviation 0.00"),
        ({"train_images": np.full((40, 5), 7, np.uint8)}, {}, "all values of the training split are equal"),
        ({"train_images": RNG.random((40, 2)) * [1, 100]}, {"range": [0, 100]}, "column 0 .* less than 10%"),
    ],
)
def test_a_range_that_is_hardly_used_is_pointed_out(save, caplog, arrays, arguments, message):
    said = _said(caplog, Arrays(save(**arrays), **arguments).prepare)
    assert len(said.splitlines()) == 1
    assert re.search(message, said), said


def test_booleans_have_two_levels(save, caplog):
    mask = RNG.random((60, 4, 4)) > 0.5
    data = Arrays(save(train_images=mask))
    assert _said(caplog, data.prepare) == ""
    assert (data.levels, data.shape, data.units) == (2, (1, 4, 4), None)
    assert data.tensor("train").unique().tolist() == [-1, 1]
    assert data.std == pytest.approx(1, abs=0.01)
    assert torch.equal(data.decode(data.encode(mask[:, None])).bool(), torch.from_numpy(mask[:, None]))


@pytest.mark.parametrize(
    ("array", "range", "ends"),
    [
        (RNG.integers(0, 65536, (40, 4, 4), np.uint16), [0, 65535], (0, 65535)),
        (RNG.integers(-300, 300, (40, 3)), [-300, 300], (-300, 300)),
        (RNG.integers(0, 256, (40, 4, 4), np.uint8), [0, 255], (0, 255)),
        (RNG.random((40, 3)) > 0.5, [0, 1], (0, 1)),
        (RNG.uniform(0, 255, (40, 4, 4)), [0, 255], (0, 255)),
        (RNG.uniform(0, 9, (40, 3)).astype(np.float16), [0, 9], (0, 9)),
        (RNG.uniform(0, 9, (40, 3)).astype(">f8"), [0, 9], (0, 9)),
    ],
)
def test_any_numbers_with_a_range(save, array, range, ends):
    data = Arrays(save(train_images=array, test_images=array), range=range)
    expected = np.interp(array.astype(np.float64), ends, [-1, 1])
    found = data.tensor("test")
    assert np.abs(found.numpy().reshape(array.shape) - expected).max() < 2e-7
    assert np.abs(data.decode(found).numpy().reshape(array.shape) - array.astype(np.float64)).max() < 4e-7 * ends[1]
    assert (data.levels, data.describe()["units"]) == (None, {"low": [float(ends[0])], "high": [float(ends[1])]})


def test_ranges_of_columns(save):
    rows = RNG.uniform([0, -100, 5], [1, 300, 6], (200, 3))
    data = Arrays(save(train_images=rows, test_images=rows), range=[[0, 1], [-100, 300], [5, 6]])
    expected = np.stack([np.interp(rows[:, k], ends, [-1, 1]) for k, ends in enumerate(data.range)], 1)
    assert np.abs(data.tensor("test").numpy() - expected).max() < 1e-6
    assert np.allclose(data.decode(data.encode(rows)), rows, rtol=1e-6, atol=1e-4)
    assert Arrays(**{k: v for k, v in data.config.items() if k != "_target_"}).units == data.units


def test_the_range_of_the_training_split(save, caplog):
    rows = RNG.uniform([0, -100, 5], [1, 300, 6], (200, 3))
    rows[:, 2] = 5
    far = rows * 10
    data = Arrays(save(train_images=rows, test_images=far), range="auto")
    assert "outside" not in _said(caplog, data.prepare)
    own = data.decode(data.tensor("train")).numpy().astype(np.float64)
    assert data.tensor("train")[:, :2].aminmax() == (-1, 1)
    assert np.allclose(data.units.low, [*own[:, :2].min(0), 4], atol=1e-4)
    assert np.allclose(data.units.high, [*own[:, :2].max(0), 6], atol=1e-4)
    assert data.tensor("test").max() > 5  # beyond the ends, and not cut off there
    assert np.allclose(data.decode(data.tensor("test")), far, rtol=1e-6, atol=1e-3)
    images = Arrays(save(train_images=RNG.uniform(3, 9, (90, 4, 4))), range="auto").prepare()
    assert len(images.units.low) == 1
    assert images.tensor("train").aminmax() == (-1, 1)


def test_units_of_a_model_take_the_place_of_the_datas(save):
    rows = RNG.uniform(0, 1, (100, 3))
    data = Arrays(save(train_images=rows, test_images=rows), range=[0, 1])
    data.change_units(Units((0.0,), (10.0,)))
    assert np.abs(data.tensor("test").numpy() - (rows / 5 - 1)).max() < 1e-6
    assert np.abs(data.decode(data.tensor("test")).numpy() - rows).max() < 1e-6
    data.change_units(None)
    assert np.abs(data.tensor("test").numpy() - rows).max() < 1e-6


def test_tables(tmp_path, caplog):
    rows = RNG.normal(size=(50, 3)).round(4)
    files = {
        "a.csv": ("x,y,z\n", ","),
        "b.csv": ("", ","),
        "c.csv": ('"x";"y";"z"\n', ";"),
        "d.tsv": ("", "\t"),
        "e.txt": ("\ufeffx y z\n", " "),
    }
    for name, (head, mark) in files.items():
        text = head + "\n".join(mark.join(map(str, row)) for row in rows) + "\n\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    np.save(tmp_path / "f.npy", rows)
    for name in [*files, "f.npy"]:
        with caplog.at_level(logging.INFO):
            data = Arrays(str(tmp_path / name), range=[-9, 9])
            found = torch.cat([data.decode(data.tensor(split)) for split in ("train", "val", "test")]).numpy()
        assert np.abs(np.sort(found, axis=0) - np.sort(rows, axis=0)).max() < 1e-5, name
    assert caplog.text.count("columns x, y, z") == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"1,2\n3,\n", "is not a table of numbers: could not convert string '' to float64 at row 1, column 2"),
        ("a.csv", b"1,2\n3,4,5\n", "is not a table of numbers: .* columns"),
        ("a.csv", b"x,y\n1,two\n", "is not a table of numbers: could not convert string 'two'"),
        ("a.csv", b"\xff\xfe1,2", "is not text in UTF-8"),
        ("a.csv", b"1,nan\n3,4\n3,4\n3,4\n3,4\n", "1 NaN or infinite values of 10"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.dat", b"1,2\n3,4\n", r"begins with 31 2c 32 0a; tables of numbers must end in \.csv"),
    ],
)
def test_unusable_tables(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Arrays(str(tmp_path / name)).prepare()


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        ("x_train y_train x_test y_test", "train_images train_labels test_images test_labels"),
        ("X y", "train_images train_labels"),
        ("images labels seeds", "train_images train_labels -"),
        ("train_x train_y valid_x valid_y", "train_images train_labels val_images val_labels"),
        ("xtrain ytrain xdev", "train_images train_labels val_images"),
        ("data target target_names", "train_images train_labels class_names"),
        ("training_images validation_images testing_images", "train_images val_images test_images"),
        ("train val test", "train_images val_images test_images"),
        ("arr_0", "train_images"),
        ("train_images train_masks extra_train_images", "train_images - -"),
    ],
)
def test_spellings(names, roles):
    found = array_names(names.split(), "here")
    expected = {role: name for name, role in zip(names.split(), roles.split(), strict=True) if role != "-"}
    assert found == expected


def test_spellings_of_split_folders():
    assert split_folders(["Train", "valid", "extra"], "here") == {"train": "Train", "val": "valid"}
    assert split_folders(["cat", "test"], "here") == {}
    with pytest.raises(UserError, match="both dev and val would be val"):
        split_folders(["dev", "train", "val"], "here")
    with pytest.raises(UserError, match="holds test and valid, and no train"):
        split_folders(["test", "valid"], "here")


def test_unused_members_are_named(save, caplog):
    said = _said(caplog, Arrays(save(x_train=RNG.random((40, 3)), masks=RNG.random(3), test_labels=[1])).prepare)
    assert "not used: masks" in said
    assert "not used: test_labels, as there are no test_images" in said


def test_given_validation_items_are_taken(save):
    x = RNG.integers(0, 256, (40, 4, 4), dtype=np.uint8)
    data = Arrays(save(x_train=x, x_val=x[:7], y_train=np.arange(40) % 4, y_val=np.arange(7) % 4))
    assert np.array_equal(data.split("val").x[:, 0], x[:7])
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [36, 7, 4]


def test_labels_of_the_test_split_alone(save, caplog):
    x = RNG.integers(0, 256, (40, 4, 4), dtype=np.uint8)
    data = Arrays(save(train_images=x, test_images=x, test_labels=np.arange(40) % 5))
    assert "test has labels and train and val has none; they cannot be used for training" in _said(caplog, data.prepare)
    assert data.n_classes == 0


@pytest.mark.parametrize(
    ("train", "test", "n_classes", "message"),
    [
        ([0, 1, 5], [0, 1, 5], 6, "labels run to 5, but train lacks 2, 3, 4"),
        ([0, 1, 2], [0, 7, 9], 10, "test has the labels 7, 9 that train lacks"),
        ([10**9, 0, 1], [0, 1], 0, r"train lacks 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\."),
        ([0, 1, 2], [0, 1], 3, ""),
    ],
)
def test_gaps_in_labels(save, caplog, train, test, n_classes, message):
    x = RNG.integers(0, 256, (60, 4), dtype=np.uint8)
    y, z = np.resize(train, 60), np.resize(test, 60)
    data = Arrays(save(train_images=x, train_labels=y, test_images=x, test_labels=z))
    said = _said(caplog, data.prepare)
    assert re.search(message, said), said
    assert bool(said) == bool(message)
    assert data.n_classes == n_classes


def test_class_names(save):
    x, y = RNG.integers(0, 256, (60, 4), dtype=np.uint8), np.arange(60) % 3
    names = np.array(["ant", "bee", "cow"])
    for arrays in ({"train_labels": y, "class_names": names}, {"train_labels": names[y]}):
        data = Arrays(save(train_images=x, **arrays))
        assert data.describe()["conditions"]["label"]["names"] == ["ant", "bee", "cow"]
        assert data.n_classes == 3
        rows = {
            bytes(row.numpy()): label
            for row, label in zip(data.split("train").x, data.split("train").label, strict=True)
        }
        assert all(rows.get(bytes(row), label) == label for row, label in zip(x, y, strict=True))
    with pytest.raises(UserError, match="labels run to 2, and there are 2 class names"):
        Arrays(save(train_images=x, train_labels=y, class_names=names[:2])).prepare()
    with pytest.raises(UserError, match="test_labels has dog, and the classes are ant, bee, cow"):
        Arrays(save(train_images=x, train_labels=names[y], test_images=x[:1], test_labels=["dog"])).prepare()
    assert Digits().describe()["conditions"]["label"]["names"] is None
