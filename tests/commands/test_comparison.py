"""Evaluation of a user's pictures and points, of two models against each other, and of many runs in one table."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf
from PIL import Image

from sde_diffusion.commands.loading import load_data
from sde_diffusion.data import Digits
from sde_diffusion.metrics import FrechetDistance, KernelDistance, difference, load_extractor
from sde_diffusion.modality import Images, Points

FEW = ("resamples=10", "metrics=[frechet,frechet_infinity,kernel,prdc,memorisation]")


@pytest.fixture(scope="module")
def digits():
    return Digits().prepare()


@pytest.fixture(scope="module")
def second(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second") / "run"
    done = command("train", *TINY, "seed=5", "model.lr=0.01", f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.status == 0, done.err
    return folder / "checkpoints" / "last.ckpt"


def evaluate(command, out, *arguments):
    done = command("evaluate", *arguments, f"out={out}", cwd=out.parent)
    assert done.status == 0, done.err
    return json.loads((out / "metrics.json").read_text()), done


def levels(x):
    return (x * 127.5 + 127.5).round().to(torch.uint8)


def write_pictures(folder, x, suffix=".png", mode="L", size=None):
    folder.mkdir()
    for number, image in enumerate(levels(x)):
        picture = Image.fromarray(image[0].numpy()).convert(mode)
        (picture if size is None else picture.resize(size)).save(folder / f"{number:04d}{suffix}")


def test_every_figure_of_three_hundred_pictures_of_ones_own(command, tmp_path, digits):
    """A data set without an extractor of its own: metrics with intervals from 300 pictures, in 16 features."""
    np.savez(tmp_path / "own.npz", train_images=levels(digits.tensor("train"))[:, 0].numpy())
    (tmp_path / "drawn").mkdir()
    write_pictures(tmp_path / "drawn" / "pictures", digits.tensor("val").repeat(5, 1, 1, 1)[:300])
    data = ("data=arrays", f"data.path={tmp_path / 'own.npz'}", "data.test_fraction=0.3")
    found, done = evaluate(command, tmp_path / "out", f"samples={tmp_path / 'drawn'}", *data, "resamples=10")
    assert set(found["skipped"]) == {"inception_score", "sliced_wasserstein", "energy"}
    assert {"frechet_distance", "frechet_infinity", "kernel_distance", "coverage"} < set(found["intervals"])
    assert (found["n"], found["features"], found["extractor"]) == (300, 16, "pca16")
    assert "in 16 features of pca16" in done.out
    assert "300 pictures in" in done.out


@pytest.mark.slow
def test_pictures_are_their_files(command, tmp_path, digits):
    """PNG files, grey or RGB, give exactly the metrics of the same samples in an npz; others are errors or resized."""
    x = digits.tensor("val")
    np.savez(tmp_path / "own.npz", images=levels(x).movedim(1, -1).numpy())
    write_pictures(tmp_path / "grey", x)
    write_pictures(tmp_path / "rgb", x, mode="RGB")
    write_pictures(tmp_path / "large", x, ".jpg", size=(20, 16))
    few = ("data=digits", "resamples=5", "metrics=[kernel,prdc]")
    expected, _ = evaluate(command, tmp_path / "0", f"samples={tmp_path / 'own.npz'}", *few)
    for name in ("grey", "rgb"):
        found, _ = evaluate(command, tmp_path / f"out-{name}", f"samples={tmp_path / name}", *few)
        assert found["intervals"] == expected["intervals"]
    found, done = evaluate(command, tmp_path / "1", f"samples={tmp_path / 'large'}", "resize=true", *few)
    assert "resized to 8x8" in done.out
    assert found["kernel_distance"] > expected["kernel_distance"]
    done = command("evaluate", f"samples={tmp_path / 'large'}", *few, f"out={tmp_path / '2'}", cwd=tmp_path)
    assert (done.status, "is 20x16, and the data are 8x8: set resize=true" in done.err) == (1, True), done.err
    red = Image.new("RGB", (8, 8), "red")
    red.save(tmp_path / "grey" / "red.png")
    done = command("evaluate", f"samples={tmp_path / 'grey'}", *few, f"out={tmp_path / '2'}", cwd=tmp_path)
    assert (done.status, "has colour pictures, and the data are grey" in done.err) == (1, True), done.err
    (tmp_path / "grey" / "red.png").write_text("words")
    done = command("evaluate", f"samples={tmp_path / 'grey'}", *few, f"out={tmp_path / '2'}", cwd=tmp_path)
    assert (done.status, "red.png" in done.err, "Traceback" in done.err) == (1, True, False), done.err
    assert not (tmp_path / "2" / "metrics.json").exists()


def test_points_of_many_dimensions(command, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = (0.2 * torch.randn(900, 200, generator=generator)).clamp(-1, 1).numpy()
    np.savez(tmp_path / "own.npz", train_images=x[:600], test_images=x[600:])
    np.savez(tmp_path / "drawn.npz", points=1.3 * x[:300][::-1].copy())
    data = ("data=arrays", f"data.path={tmp_path / 'own.npz'}", "data.range=[-1,1]", "resamples=10")
    found, _ = evaluate(command, tmp_path / "out", f"samples={tmp_path / 'drawn.npz'}", *data)
    assert list(found["skipped"]) == ["inception_score"]
    assert found["extractor"] == "pca16"
    assert found["intervals"]["frechet_distance"]["low"] > found["training_split"]["frechet_distance"]


def test_against_another_checkpoint(command, trained, second, tmp_path, digits):
    """Differences are those of the library, of samples that `sample` draws from the same seeds."""
    quick = ("n=300", "sampler=ddim", "sampler.steps=3")
    ckpt = trained / "checkpoints" / "last.ckpt"
    found, done = evaluate(
        command,
        tmp_path / "out",
        f"ckpt={ckpt}",
        f"against={second}",
        *quick,
        "resamples=10",
        "metrics=[frechet,kernel]",
    )
    against = found["against"]
    assert (against["n"], against["paired"], against["skipped"]) == (300, True, {})
    alone, _ = evaluate(
        command, tmp_path / "alone", f"ckpt={second}", *quick, "resamples=10", "metrics=[frechet,kernel]"
    )
    assert against["figures"]["kernel_distance"] == pytest.approx(alone["kernel_distance"], rel=1e-6)
    extractor, drawn = load_extractor("digits"), []
    for name, path in (("a", ckpt), ("b", second)):
        out = tmp_path / name
        assert command("sample", f"ckpt={path}", *quick, f"out={out}", cwd=tmp_path).status == 0
        images = torch.from_numpy(np.load(out / "samples.npz")["images"]).movedim(-1, 1)
        drawn.append((images.double() / 255 * 16).round().float() / 8 - 1)
    for kind in (KernelDistance, lambda e: FrechetDistance(e, keep_features=True)):
        pair = [kind(extractor) for _ in drawn]
        for metric, x in zip(pair, drawn, strict=True):
            metric.update(digits.tensor("test"), real=True)
            metric.update(x, real=False)
        for key, gap in difference(*pair, resamples=10).items():
            # A file has 256 levels, of which the digits' 17 are not all: a few pixels may round the other way.
            assert against["differences"][key]["value"] == pytest.approx(gap.value, rel=0.1, abs=0.02)
            assert f"{against['differences'][key]['value']:+.4g}" in done.out
    assert not (tmp_path / "out" / ".against").exists()


def test_files_against_each_other(command, tmp_path, digits):
    x = digits.tensor("train")
    for name, part in (("one", x[:200]), ("two", 0.5 * x[200:400]), ("few", x[:90])):
        np.savez(tmp_path / f"{name}.npz", images=levels(part).movedim(1, -1).numpy())
    few = ("data=digits", "resamples=10", "metrics=[kernel,memorisation]")
    one = f"samples={tmp_path / 'one.npz'}"
    found, done = evaluate(command, tmp_path / "out", one, f"against={tmp_path / 'two.npz'}", *few)
    gap = found["against"]["differences"]["kernel_distance"]
    assert gap["high"] < 0
    assert (found["against"]["paired"], "better" in done.out) == (False, True)
    found, done = evaluate(command, tmp_path / "unequal", one, f"against={tmp_path / 'few.npz'}", *few)
    assert found["against"]["differences"] == {}
    assert "differences need equal numbers" in done.out
    done = command("evaluate", one, "against=other.ckpt", *few, f"out={tmp_path / 'x'}", cwd=tmp_path)
    assert (done.status, "draw from the checkpoint first" in done.err) == (1, True), done.err


def test_many_runs_leave_one_table(command, trained, second, tmp_path):
    first = trained / "checkpoints" / "last.ckpt"
    quick = ("n=150", "sampler=ddim,ddpm", "sampler.steps=3", "resamples=10", "metrics=[kernel,energy]")
    done = command("evaluate", "--multirun", f"ckpt={first},{second}", *quick, f"out={tmp_path / 'all'}", cwd=tmp_path)
    assert done.status == 0, done.err
    with (tmp_path / "all" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["figure"]) for row in rows] == [
        (str(run), figure) for run in range(4) for figure in ("kernel_distance", "energy_distance")
    ]
    for row in rows:
        report = json.loads((tmp_path / "all" / row["run"] / "metrics.json").read_text())
        assert float(row["value"]) == report[row["figure"]]
        if row["run"] == "0":
            assert row["difference"] == ""
            continue
        base = json.loads((tmp_path / "all" / "0" / "metrics.json").read_text())
        assert float(row["difference"]) == pytest.approx(report[row["figure"]] - base[row["figure"]], abs=1e-9)
        assert float(row["difference_low"]) < float(row["difference"]) < float(row["difference_high"])
        assert row["paired"] == "True"
        assert "sampler=" in row["settings"]
    assert "run 3: " in done.out
    assert not list((tmp_path / "all").glob("*/.*"))


def test_pictures_have_data_beside():
    x = torch.rand(30, 1, 8, 8) * 2 - 1
    both, alone = Images([1, 8, 8]).beside(x, x[:20]), Images([1, 8, 8]).draw(x)
    assert both.width > 2 * alone.width
    assert both.height > alone.height
    points = torch.randn(50, 2)
    assert Points([2]).beside(points, 3 * points).width > 1.5 * Points([2]).draw(points).width
    assert Points([1]).beside(torch.randn(50, 1), torch.randn(40, 1)).width > 0


@pytest.mark.parametrize(("n", "others"), [(4, 30), (30, 4)])
def test_images_beside_others_are_enlarged_by_the_same_factor(n, others):
    """Of images that are light grey, all stretches of this grey in a line of the picture have the same length."""
    x = torch.full((30, 1, 8, 8), 0.5)
    line = np.asarray(Images([1, 8, 8]).beside(x[:n], x[:others]).convert("L"))[30]
    ends = np.flatnonzero(np.diff((line == 191).astype(int), prepend=0, append=0))
    assert len(ends) > 4
    assert len(set(ends[1::2] - ends[::2])) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "the checkpoint does not say which data it was trained on; the data are digits"),
        ({"_target_": "sde_diffusion.data.Digits"}, "the model was trained on exported, but the data are digits"),
    ],
)
def test_a_checkpoint_of_another_program_does_not_say_its_data(config, words, caplog):
    """Its name is that of its file or folder."""
    cfg = OmegaConf.create({"data": {"_target_": "sde_diffusion.data.Digits", "root": None}})
    load_data(cfg, SimpleNamespace(data={"name": "exported", "shape": [1, 8, 8], "config": config}))
    assert caplog.messages == [words]
