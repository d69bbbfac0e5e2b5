"""Restored pictures: they agree with what was measured, and their figures with what is known of the truth."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from schema_cases import refusal

from sde_diffusion import UserError
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.commands.described_operators import build_operator
from sde_diffusion.commands.measurements import measurements
from sde_diffusion.commands.restored import against_truth, exactly, left_open
from sde_diffusion.data import Digits
from sde_diffusion.guidance import Blur, Downsample, Grey, Mask
from sde_diffusion.modality import Images

STEPS = ("sampler.steps=4", "posterior.iterations=1")
MASKED = Mask(torch.eye(8, dtype=torch.bool), (3, 8, 8))
MASK = {"_target_": "sde_diffusion.commands.MaskToFill"}


def save(path, pixels, mode=None):
    Image.fromarray(np.asarray(pixels, np.uint8), mode).save(path)
    return path


@pytest.fixture
def files(tmp_path):
    """A mask, and a folder of two pictures with different contents in the hole."""
    rng = np.random.default_rng(0)
    hole = np.zeros((8, 8), np.uint8)
    hole[4:, 2:] = 255
    save(tmp_path / "mask.png", hole)
    (tmp_path / "in").mkdir()
    pixels = rng.integers(0, 256, (2, 8, 8))
    for name, picture in zip("ab", pixels, strict=True):
        save(tmp_path / "in" / f"{name}.png", picture)
    return tmp_path, hole > 0, pixels


def test_known_pixels_are_pasted_back_and_each_draw_has_its_own_seed(command, trained, files):
    folder, hole, pixels = files
    given = (f"ckpt={trained}/checkpoints/last.ckpt", "operator=mask", "operator.path=mask.png", "noise=0", *STEPS)
    done = command("restore", *given, "images=in", "n=3", "batch_size=4", "out=all", cwd=folder)
    assert done.status == 0, done.err
    found = np.load(folder / "all" / "restored.npz")
    assert found["images"].shape == (2, 3, 8, 8, 1)
    assert found["images"].dtype == np.uint8
    assert found["seeds"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for draws, picture in zip(found["images"][..., 0], pixels, strict=True):
        assert (draws[:, ~hole] == picture[~hole]).all()
        assert (draws[0, hole] != draws[1, hole]).any()
    report = json.loads((folder / "all" / "restore.json").read_text())
    assert report["inputs"] == ["a.png", "b.png"]
    assert (report["passes"], report["gradients"]) == (4, 4)
    assert report["residual"]["median"] < 1e-6
    assert Image.open(folder / "all" / "grid.png").width > 4 * 88
    assert sorted(path.name for path in (folder / "all").iterdir()) == [
        "grid.png", "restore.json", "restore.log", "restored.npz",
    ]  # fmt: skip
    # The second alone, as an array, with other contents in the hole: the same draws.
    pixels[1][hole] = 0
    np.save(folder / "b.npy", pixels[1:].astype(np.uint8))
    done = command("restore", *given, "images=b.npy", "n=3", "seed=3", "out=one", cwd=folder)
    assert done.status == 0, done.err
    assert (np.load(folder / "one" / "restored.npz")["images"][0] == found["images"][1]).all()


def test_the_models_own_data_and_their_truth(command, trained, tmp_path):
    given = ("operator=downsample", "operator.factor=2", "split=test", "items=5", "n=3", "noise=0.1", *STEPS)
    done = command("restore", f"ckpt={trained}/checkpoints/last.ckpt", *given, "out=out", cwd=tmp_path)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "out" / "restore.json").read_text())
    images = np.load(tmp_path / "out" / "restored.npz")["images"][..., 0] / 127.5 - 1
    rows = [int(name.split()[1]) for name in report["inputs"]]
    truth = Digits().prepare().tensor("test")[rows, 0].numpy()
    error = float(np.sqrt(((images.mean(1) - truth) ** 2).mean()))
    assert report["against_truth"]["rmse"] == pytest.approx(error, rel=1e-3)  # the file holds 8 bits
    assert sum(report["against_truth"]["ranks"]) <= 5 * 64
    assert len(report["residual"]["each"]) == 5
    assert "RMSE" in done.out


@pytest.mark.parametrize("name", ["ddnm", "repaint", "replacement"])
def test_known_pixels_by_other_methods(name, command, trained, files):
    """mmps: above. Those that cannot do without noise: `test_what_a_likelihood_refuses_is_said_before_the_work`."""
    folder, hole, pixels = files
    given = ("operator=mask", "operator.path=mask.png", "images=in", "noise=0", "n=1", f"posterior={name}")
    steps = {"repaint": "posterior.steps=4", "replacement": "posterior.sampler.steps=4"}.get(name, "sampler.steps=4")
    done = command("restore", f"ckpt={trained}/checkpoints/last.ckpt", *given, steps, "out=out", cwd=folder)
    assert done.status == 0, done.err
    found = np.load(folder / "out" / "restored.npz")["images"][:, 0, ..., 0]
    assert (found[:, ~hole] == pixels[:, ~hole]).all()
    report = json.loads((folder / "out" / "restore.json").read_text())
    assert (report["passes"], report["gradients"]) == ({"repaint": 31}.get(name, 4), 0)
    assert "evidence" not in report


def test_evidence(command, trained, tmp_path):
    """Estimates of log p(y) and their mean; draws and estimates do not depend on how many particles are at once."""
    given = ("operator=mask", "operator.part=center", "split=test", "items=3", "n=4", "noise=0.3", "evidence=true")
    smc = ("posterior=smc", "posterior.steps=4", "posterior.particles=3")
    found, reports = [], []
    for name, size in (("a", 256), ("b", 7)):
        ckpt = f"ckpt={trained}/checkpoints/last.ckpt"
        done = command("restore", ckpt, *given, *smc, f"batch_size={size}", f"out={name}", cwd=tmp_path)
        assert done.status == 0, done.err
        found.append(np.load(tmp_path / name / "restored.npz"))
        reports.append(json.loads((tmp_path / name / "restore.json").read_text()))
    assert [report["batch_sizes"] for report in reports] == [[85], [2]]
    assert np.allclose(found[0]["log_evidence"], found[1]["log_evidence"], atol=1e-3)
    assert np.abs(found[0]["images"].astype(int) - found[1]["images"]).max() <= 1
    z = np.exp(found[0]["log_evidence"])
    evidence = reports[0]["evidence"]
    assert np.exp(evidence["log_evidence"]) == pytest.approx(z.mean(1))
    assert evidence["std_errors"] == pytest.approx(z.std(1, ddof=1) / 2 / z.mean(1))
    assert (reports[0]["passes"], reports[0]["gradients"]) == (12, 0)
    assert set(reports[0]["calibration"]["statistics"]) >= {"values", "mean", "density", "residual"}
    assert "log p(y)" in done.out


def test_what_a_likelihood_refuses_is_said_before_the_work(command, trained, tmp_path):
    given = ("operator=mask", "operator.part=lower_half", "split=test", "items=2", "out=out")
    for more, parts in (
        (("noise=0", "posterior=dps"), ["PointEstimate divides by the noise", "(given: posterior=dps", "mmps"]),
        (("noise=0", "posterior=smc"), ["TwistedSMC weighs particles by the density of y", "noise > 0", "mmps"]),
        (("posterior=smc", "sampler=ddim"), ["has steps of its own", "(given: sampler=ddim)", "posterior.steps=50"]),
        (("evidence=true",), ["evidence=true needs posterior=smc", "has no estimate of log p(y)"]),
    ):
        done = command("restore", f"ckpt={trained}/checkpoints/last.ckpt", *given, *more, cwd=tmp_path)
        assert done.status == 1
        assert done.err.startswith("error: ")
        assert all(part in done.err for part in parts), done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "out").exists()


def test_figures_of_draws_that_are_calibrated_and_of_others():
    modality, where = Images((1, 8, 8)), torch.ones(1, 8, 8, dtype=torch.bool)
    torch.manual_seed(0)
    centre = 0.2 * torch.randn(500, 1, 8, 8)
    truth, x = centre + 0.1 * torch.randn(500, 1, 8, 8), centre[:, None] + 0.1 * torch.randn(500, 4, 1, 8, 8)
    right = against_truth(x, truth, modality, where)
    # 32,000 independent numbers, five standard errors: 1 in a million
    assert right["rmse"] == pytest.approx(0.1 * (1 + 1 / 4) ** 0.5, rel=0.02)
    assert right["error_over_spread"] == pytest.approx(1, abs=0.025)
    assert right["outside"] == pytest.approx(0.4, abs=0.014)
    assert right["outside_if_calibrated"] == 0.4
    assert np.allclose(right["ranks"], 6400, atol=5 * (32_000 * 0.2 * 0.8) ** 0.5)
    certain = against_truth(x.mean(1, keepdim=True) + 0.5 * (x - x.mean(1, keepdim=True)), truth, modality, where)
    assert certain["error_over_spread"] == pytest.approx(2, abs=0.05)
    assert certain["outside"] > 0.55
    # With two levels nearly all numbers are tied; ranks are uniform all the same.
    binary = against_truth(torch.sign(torch.randn(500, 4, 1, 8, 8)), torch.sign(centre), Images((1, 8, 8), 2), where)
    assert sum(binary["ranks"]) == pytest.approx(32_000 * 15 / 16, rel=0.01)
    assert np.ptp(binary["ranks"]) < 8 * 6000**0.5


@pytest.mark.parametrize(
    ("operator", "shape", "left"),
    [
        (Mask(torch.eye(8, dtype=torch.bool)[None]), (1, 8, 8), 56),
        (Downsample(2), (1, 8, 8), 64),
        (Grey((0.2, 0.5, 0.3)), (3, 4, 4), 48),
        (Blur.gaussian(1.0), (1, 8, 8), 64),
    ],
)
def test_exact_measurements(operator, shape, left):
    torch.manual_seed(0)
    x, y = torch.rand(5, *shape), operator(torch.rand(5, *shape))
    assert int(left_open(operator, shape).sum()) == left
    found = exactly(operator, x, y)
    if isinstance(operator, Blur):  # its inverse would amplify the rounding of a picture
        assert found is x
    else:
        assert torch.allclose(operator(found), y, atol=1e-6)
    if isinstance(operator, Mask):
        assert torch.equal(operator(found), y)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, ["operator.path=MASK.png", "lower_half"]),
        ({}, ["operator.path=MASK.png"]),
        ({"path": "mask.png", "part": "center"}, ["operator.path and operator.part", "leave out all but one"]),
        ({"part": "lower"}, ["operator.part=lower (did you mean lower_half?)"]),
        ({"part": "center", "invert": 3}, ["operator.invert must be true or false"]),
        ({"path": "none.png"}, ["none.png does not exist"]),
        ({"path": "large.png"}, ["large.png is 9x8", "8x8"]),
        ({"path": "alpha.png"}, ["alpha.png has an alpha channel", "white is to be filled"]),
        ({"path": "grey.png"}, ["grey.png must have two values, black and white, and has 3", "threshold"]),
        ({"path": "blank.png"}, ["blank.png has one value only", "white is to be filled"]),
        ({"part": "center", "size": 2}, ["size"]),
        ({"_target_": "sde_diffusion.guidance.Downsample", "factor": 3}, ["multiples of it", "[1, 8, 8]"]),
        ({"_target_": "sde_diffusion.guidance.Grey"}, ["Grey is for data with 3 channels", "[1, 8, 8]"]),
        ({"_target_": "sde_diffusion.guidance.GaussianBlur", "std": -1}, ["operator.std must be positive"]),
        ({"_target_": "sde_diffusion.guidance.MomentMatching"}, ["class Operator"]),
    ],
)
def test_operators_that_do_not_fit(settings, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("large.png", np.zeros((8, 9)))
    save("alpha.png", np.zeros((8, 8, 4)))
    save("grey.png", np.eye(8) * 200 + np.tri(8))
    save("blank.png", np.full((8, 8), 255))
    with pytest.raises(UserError) as error:
        build_operator({**MASK, **settings}, (1, 8, 8))
    assert all(part in str(error.value) for part in parts), error.value


def test_white_is_filled_unless_inverted(files):
    folder, hole, _ = files
    for invert in (False, True):
        operator = build_operator({**MASK, "path": str(folder / "mask.png"), "invert": invert}, (2, 8, 8))
        known = operator.adjoint(operator(torch.ones(1, 2, 8, 8)))[0].numpy() > 0
        assert (known == (hole if invert else ~hole)).all()


@pytest.mark.parametrize(
    ("images", "operator", "parts"),
    [
        (None, Downsample(2), ["one of images=", "y=", "split=test"]),
        ("none", Downsample(2), ["none does not exist"]),
        ("empty", Downsample(2), ["empty has no pictures"]),
        ("full.png", Downsample(2), ["full.png is 8x8, and must be 4x4", "8x8, RGB"]),
        (
            "small.png",
            Mask(torch.eye(8, dtype=torch.bool), (3, 8, 8)),
            ["is 4x4, and must be 8x8", "operator.factor=2"],
        ),
        ("small.png", Downsample(2), ["small.png is grey, and must be in colour"]),
        ("full.png", Grey(), ["full.png has colours, and must be grey"]),
        ("shape.npy", Downsample(2), ["[N, 3, 4, 4] or channels last", "uint8 [2, 5, 5, 3]"]),
        ("nan.npy", Downsample(2), ["nan.npy 1 have NaN"]),
        ("bytes.npy", Downsample(2), ["values up to 255", "lie on [-1, 1]"]),
        ("two.npz", Downsample(2), ["one array, or one named images; it holds a, b"]),
    ],
)
def test_measurements_that_do_not_fit(images, operator, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    rng = np.random.default_rng(0)
    save("full.png", rng.integers(0, 256, (8, 8, 3)))
    save("small.png", rng.integers(0, 256, (4, 4)))
    np.save("shape.npy", np.zeros((2, 5, 5, 3), np.uint8))
    np.save("nan.npy", np.stack([np.zeros((3, 4, 4)), np.full((3, 4, 4), np.nan)]))
    np.save("bytes.npy", np.full((1, 4, 4, 3), 255.0))
    np.savez("two.npz", a=np.zeros(2), b=np.zeros(2))
    model = SimpleNamespace(data={"shape": [3, 8, 8], "levels": 256, "modality": Images((3, 8, 8), 256).describe()})
    with pytest.raises(UserError) as error:
        measurements(OmegaConf.create({"images": images, "y": None, "split": None, "noise": 0.02}), model, operator)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("name", [path.stem for path in (config_folder() / "posterior").glob("*.yaml")])
def test_posteriors(name):
    assert refusal("restore", f"posterior={name}") is None


def test_refused_keys():
    assert "from 0 to 2 (of grey levels 0 ... 255: divide it by 127.5)" in refusal("restore", "noise=5")
    assert refusal("restore", "noise=-1").startswith("noise must be")
    assert "must name a class that extends PosteriorMethod" in refusal(
        "restore", "posterior=tmpd", "posterior._target_=sde_diffusion.guidance.Grey"
    )
