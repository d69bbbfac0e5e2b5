"""What kind of thing x is: values, files, descriptions, what metrics see and what is drawn."""

import math

import numpy as np
import pytest
import torch

from sde_diffusion.errors import UserError
from sde_diffusion.modality import (
    Images,
    Points,
    Signals,
    kind_by_shape,
    modality_of,
    pictures,
    read_samples,
    write_samples,
)
from sde_diffusion.modality.units import Units

CELSIUS, COLUMNS = Units((-40.0,), (60.0,)), Units((0.0, -10.0, 1.0), (5000.0, 30.0, 2.0))


def noise(n, shape):
    return 0.7 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


def last(x):
    return np.moveaxis(x, 1, -1)


FILES = {  # a modality, and what a file holds of x by a formula of its own
    "levels": (Images([3, 4, 5], levels=17), "images", lambda x: last(np.rint(127.5 * (x.clip(-1, 1) + 1)))),
    "mask": (Images([1, 4, 5], levels=2), "images", lambda x: last(255 * (x > 0))),
    "floats": (Images([1, 4, 5], units=CELSIUS), "images", lambda x: last(10 + 50 * x.clip(-1, 1))),
    "of old, units not known": (
        modality_of({"shape": [1, 4, 5], "levels": None}),
        "images",
        lambda x: last(np.rint(127.5 * (x.clip(-1, 1) + 1))),
    ),
    "points": (Points([3]), "points", lambda x: x),
    "columns": (Points([3], units=COLUMNS), "points", lambda x: [2500, 10, 1.5] + np.array([2500, 20, 0.5]) * x),
    "points on levels": (Points([3], levels=17), "points", lambda x: 8 + 8 * x),
    "signals": (Signals([2, 6]), "signals", lambda x: x),
    "signals in units": (Signals([2, 6], units=CELSIUS), "signals", lambda x: 10 + 50 * x),
}


@pytest.mark.parametrize("case", FILES)
def test_samples_come_back_from_their_file(case, tmp_path):
    modality, name, formula = FILES[case]
    x, path = noise(9, modality.shape), tmp_path / "samples.npz"
    labels = torch.arange(9) % 2
    write_samples(path, modality, torch.split(x, 4), range(5, 14), {"label": labels, "side": labels}, NAMES)
    with np.load(path, allow_pickle=False) as file:
        held = dict(file)
    assert set(held) == {name, "seeds", "labels", "class_names", "side", "side_names"}
    assert (held["class_names"].tolist(), held["side_names"].tolist()) == (["cat", "dog"], ["left", "right"])
    assert held["seeds"].tolist() == list(range(5, 14))
    expected = np.asarray(formula(x.double().numpy()))
    assert held[name].dtype == (np.uint8 if case in ("levels", "mask", "of old, units not known") else np.float32)
    np.testing.assert_allclose(held[name], expected, rtol=1e-6, atol=1e-5)
    stored = read_samples(path, modality, ["label", "side"])
    assert all(torch.equal(stored.classes[condition], labels) for condition in NAMES)
    back = torch.cat(list(stored.batches(4)))
    if case == "mask":
        x = x.sign()
    elif modality.bounded:
        x = x.clamp(-1, 1)
    assert back.shape == x.shape
    assert (back - x).abs().max() < (1 / 255 + 1e-6 if held[name].dtype == np.uint8 else 1e-6)


NAMES = {"label": ["cat", "dog"], "side": ["left", "right"]}
OWN = np.zeros((4, 2, 6), np.float32)
REFUSED = {
    "another modality": ({"points": np.zeros((4, 12))}, r"holds points, and the data are signals of shape \[2, 6\]"),
    "another name": ({"waves": OWN}, r"no array named signals; .* numpy.savez\(FILE, signals=...\)"),
    "another shape": ({"signals": OWN[:, :1]}, r"samples of shape \[1, 6\], and the data's is \[2, 6\]"),
    "words": ({"signals": np.array(["a"])}, r"signals must be numbers \[N, C, L\]; got <U1 \[1\]"),
    "none": ({"signals": OWN[:0]}, "holds no samples"),
    "infinite": ({"signals": OWN.astype(np.float64) + 1e300}, "NaN or infinite"),
    "labels": ({"signals": OWN, "labels": np.zeros(3, int)}, r"labels must be integers \[4\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_other_samples_are_refused(case, tmp_path):
    arrays, words = REFUSED[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=words):
        read_samples(tmp_path / "x.npz", Signals([2, 6]), ["label"])


def test_images_are_refused_for_points_and_the_other_way_round(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((3, 2, 2, 1), np.uint8))
    with pytest.raises(UserError, match=r"images.npz holds images, and the data are points of shape \[2\]"):
        read_samples(tmp_path / "images.npz", Points([2]))
    np.savez(tmp_path / "points.npz", points=np.zeros((3, 1, 2, 2), np.float32))
    with pytest.raises(UserError, match=r"holds points, and the data are images of shape \[1, 2, 2\]"):
        read_samples(tmp_path / "points.npz", Images([1, 2, 2]))


@pytest.mark.parametrize("modality", [Images([1, 4, 4], levels=17), Points([3], units=COLUMNS), Signals([2, 6])])
def test_a_description_comes_back(modality):
    units = None if modality.units is None else modality.units.describe()
    data = {"shape": list(modality.shape), "levels": modality.levels, "units": units}
    for description in (data, {**data, "modality": modality.describe()}):
        found = modality_of(description)
        assert type(found) is type(modality)
        assert (found.shape, found.levels, found.units) == (modality.shape, modality.levels, modality.units)
    assert modality.describe() == {"_target_": f"sde_diffusion.modality.{type(modality).__name__}"}


def test_without_a_kind_the_shape_decides():
    shapes = {(3,): Points, (2, 6): Signals, (1, 4, 4): Images, (1, 4, 4, 4): Points}
    assert {shape: kind_by_shape(shape) for shape in shapes} == shapes


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"_target_": "sde_diffusion.sde.VESDE"}, "VESDE takes no shape"),
        ({"_target_": "os.system"}, "not a class of sde_diffusion"),
        ({"_target_": "sde_diffusion.modality.Images"}, r"data.modality.shape must be \[C, H, W\] for images"),
        ({}, "not a kind of data"),
    ],
)
def test_a_description_of_something_else_is_refused(node, words):
    with pytest.raises(UserError, match=words):
        modality_of({"shape": [2, 6], "modality": node})


def test_metrics_see_scales_without_offsets():
    """Seconds of one minute of an epoch: as floats of their own units they would all be one number."""
    x = torch.linspace(-1, 1, 61)[:, None]
    for modality, shaped in ((Points, x), (Signals, x[..., None])):
        own = modality(shaped.shape[1:], units=Units((1.7e9,), (1.7e9 + 60,)))
        assert torch.allclose(own.for_metrics(shaped).diff(dim=0).flatten(), torch.ones(60), atol=1e-5)


def test_columns_with_ranges_of_their_own_count_alike():
    x = torch.randn(5, 3)
    assert torch.equal(Points([3], units=COLUMNS).for_metrics(x), x)
    assert torch.equal(Points([3]).for_metrics(x), x)
    images = torch.rand(2, 1, 3, 3)
    assert torch.equal(Images([1, 3, 3], units=CELSIUS).for_metrics(images), images)


@pytest.mark.parametrize("units", [CELSIUS, COLUMNS, None])
def test_what_metrics_saw_comes_back(units):
    x, modality = noise(4, (3,)), Points([3], units=units)
    assert torch.allclose(modality.from_metrics(modality.for_metrics(x)), x)


def test_every_number_of_a_signal_is_in_its_pictures():
    x, modality = noise(2, (2, 20)), Signals([2, 20])
    other = x.clone()
    other[:, 1, 15] += 1.0
    pictures = {
        "alone": modality.draw,
        "beside data": lambda x: modality.beside(x, noise(4, (2, 20))),
        "film strip": lambda x: modality.film_strip(x[None], [1.0]),
        "film": lambda x: modality.film_frames(x[None], x[None], [1.0])[0],
    }
    for name, draw in pictures.items():
        first, second = (np.asarray(draw(some).convert("RGB")) for some in (x, other))
        assert first.shape != second.shape or (first != second).any(), name


@pytest.mark.parametrize("modality", [Images([1, 5, 5]), Points([1]), Points([4]), Signals([1, 1]), Signals([6, 9])])
def test_films_have_frames_of_one_size(modality):
    x = noise(3, (2, *modality.shape))
    frames = modality.film_frames(x, 3 * x, [1.0, 0.5, 0.0])
    assert len(frames) == 3
    assert len({frame.size for frame in frames}) == 1
    assert modality.film_strip(x, [1.0, 0.5, 0.0]).width > 0


@pytest.mark.parametrize("modality", [Images([1, 5, 5]), Points([2]), Points([4]), Signals([2, 9])])
def test_posteriors_show_draws_truth_and_measurements(modality):
    """Each changes the picture."""
    draws, truth = noise(3 * 4, modality.shape).unflatten(0, (3, 4)), 0.5 * noise(3, modality.shape)
    known = torch.zeros(modality.shape, dtype=torch.bool)
    known[..., 0] = True
    shown = [
        modality.draw_posterior(draws),
        modality.draw_posterior(0.9 * draws),
        modality.draw_posterior(draws, truth=truth),
        modality.draw_posterior(draws, truth, truth, known),
        modality.draw_posterior(draws, truth, truth, known.flip(-1)),
    ]
    assert len({picture.tobytes() for picture in shown}) == 5
    if len(modality.shape) > 1:  # shorter signals, smaller pictures
        assert modality.draw_posterior(draws, truth[..., ::2]).size[0] > 100


def test_the_picture_of_a_posterior_has_spread_and_error_on_one_scale():
    """White is the largest of both; of a pixel in which only one of three channels differs, the root mean square."""
    truth, x = torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 3, 8, 8)
    x[0, :, 0, 0, 1] = torch.tensor([0.15, -0.15])  # standard deviation 0.15 sqrt(2)
    x[0, :, :, 0, 2] = 0.3
    picture = Images([3, 8, 8]).draw_posterior(x, truth, truth)
    columns = ["measured", "truth", "draw 0", "draw 1", "mean", "spread", "error"]

    def pixel(title, column):
        return picture.getpixel((columns.index(title) * (88 + 6) + 11 * column + 5, 22 + 5))

    assert pixel("mean", 2) == (166, 166, 166)  # 127.5 + 0.3 * 127.5
    assert [pixel("error", column) for column in range(4)] == [(0, 0, 0), (0, 0, 0), (255, 255, 255), (0, 0, 0)]
    share = 3 * 0.15 * 2**0.5 / 3**0.5 / 0.3  # of red alone, as it is beyond a third
    assert pixel("spread", 1) == (255, round((share - 1) * 255), 0)
    assert pixel("spread", 2) == (0, 0, 0)
    assert picture.width == 7 * 94 + 76
    assert Images([3, 8, 8]).draw_posterior(x[:, :1], truth).width == 2 * 94 - 6  # one draw has neither mean nor spread


def test_draws_of_posteriors_are_read_as_samples(tmp_path):
    x, modality = noise(6, (3,)), Points([3])
    np.savez(tmp_path / "restored.npz", points=x.reshape(2, 3, 3).numpy(), seeds=np.arange(6).reshape(2, 3))
    assert torch.equal(read_samples(tmp_path / "restored.npz", modality).kept, x)
    np.savez(tmp_path / "other.npz", points=x.reshape(2, 3, 3).numpy(), seeds=np.arange(6))
    with pytest.raises(UserError, match=r"samples of shape \[3, 3\]"):
        read_samples(tmp_path / "other.npz", modality)


def test_points_are_their_own_features_where_there_are_enough():
    assert [Points([3]).extractor(n) for n in (29, 30)] == ["pca", "pixels"]
    assert Images([1, 8, 8]).extractor(10**6) == Signals([1, 2]).extractor(10**6) == "pca"


def test_bad_shapes_are_refused():
    for modality, shape in ((Images, [3]), (Points, []), (Signals, [2, 3, 4]), (Signals, [2, 0])):
        with pytest.raises(ValueError, match="shape must be"):
            modality(shape)
    with pytest.raises(ValueError, match="levels"):
        Images([1, 2, 2], levels=1)
    assert math.prod(Points([2, 2, 2, 2]).shape) == 16


def test_single_points_of_curves_are_whole_and_the_legend_is_beside_them(tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text("step,a,b\n19,20.1,20.2\n")
    monkeypatch.setattr(pictures, "render", lambda drawing: drawing)
    drawn = pictures.Curves({"a": "a", "b": "b"}, "nats", "what").plot(tmp_path / "metrics.csv")
    assert drawn.axes[0].get_ylim()[1] > 1.02 * 20.2
    assert drawn.axes[0].get_legend() is None
    assert len(drawn.legends) == 1
