"""Variations of given items: where their walks begin, what they depend on, and what is refused."""

import signal

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from schema_cases import refusal

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    AncestralSampler,
    CosineVPSDE,
    GaussianDenoiser,
    ODESampler,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    UserError,
    noised,
    start_time,
)
from sde_diffusion.commands import editing
from sde_diffusion.commands.typed_conditions import with_paths
from sde_diffusion.modality import Images, Points, Signals
from sde_diffusion.modality.images import to_uint8
from sde_diffusion.training.base import BaseModel

PATHS = (VPSDE(), SubVPSDE(), VESDE(), CosineVPSDE(), EDMSDE(), RectifiedFlow())
STEPS = ("sampler=ddpm", "sampler.steps=3")
DDPM = {"_target_": "sde_diffusion.sampling.AncestralSampler", "steps": 3}


def test_the_same_strength_is_the_same_noise_level_on_every_path():
    for strength, s, r in ((0.5, 1.0, 1.0), (0.9, 0.5, 1.5), (0.01, 2.0, 2 / 99**0.5), (1e-5, 100.0, 0.31622935)):
        for sde in PATHS:
            t = start_time(sde, strength, s)
            assert float(sde.sigma(t) / sde.alpha(t)) == pytest.approx(r, rel=1e-7), (sde, strength)
    assert [start_time(sde, 1.0) for sde in PATHS] == [sde.t_max for sde in PATHS]
    assert start_time(VESDE(sigma_max=10.0), 0.999) == 1.0  # r = 31.6 is beyond the path


def edited(sampler, strength, n, std, sde):
    """What `edit=` makes of the point 2 for N(0.5, std^2), [n]."""
    denoiser = GaussianDenoiser(sde, torch.tensor([0.5]), std)
    t = start_time(sde, strength, std)
    item = editing.Edit(torch.tensor([[2.0]]), t)
    return item.on(sampler)(denoiser, (n, 1), seeds=range(n), latent=item.each(n), dtype=torch.float64).x[:, 0]


def test_strength_is_the_share_that_is_lost():
    """Of N(m, s^2), the reverse SDE leaves 1 - S of the difference from m, and the flow sqrt(1 - S).

    The variances are s^2 (1 - (1 - S)^2) and s^2 S. Four standard errors of four numbers: false alarms 2.5e-4; beside
    them 1.5% for the steps.
    """
    n, strength, s = 4000, 0.4, 0.8
    for sampler, kept in ((AncestralSampler(200, 1.0), 1 - strength), (ODESampler(), (1 - strength) ** 0.5)):
        found = edited(sampler, strength, n, s, VPSDE())
        std = s * (1 - kept**2) ** 0.5
        assert abs(found.mean() - 0.5 - kept * 1.5) < 4 * std / n**0.5 + 0.015 * s, sampler
        assert abs(found.std() / std - 1) < 4 / (2 * n) ** 0.5 + 0.015, sampler


@pytest.fixture
def pictures(tmp_path):
    """Two pictures in a folder, and as an array."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
    (tmp_path / "in").mkdir()
    for name, one in zip("ab", pixels, strict=True):
        Image.fromarray(one).save(tmp_path / "in" / f"{name}.png")
    np.save(tmp_path / "in.npy", pixels)
    return tmp_path, pixels


def test_the_command_stopped_after_a_batch_and_resumed(command, trained, pictures):
    """With the same items and the same strength alone; then as by the public names, and as each picture alone."""
    folder, pixels = pictures
    given = (f"ckpt={trained}/checkpoints/last.ckpt", *STEPS, "edit.strength=0.7")
    typed = ("sample", *given, "edit=in", "n=3", "film=2", "batch_size=4", "out=all")
    stopped = command(*typed, cwd=folder, signal_at="work:2", number=signal.SIGINT)
    assert stopped.status == 130, stopped.err
    np.save(folder / "other.npy", 255 - pixels)
    for change in ("edit.strength=0.6", "edit=other.npy"):
        refused = command(*typed, change, cwd=folder)
        assert (refused.status, "overwrite=true" in refused.err) == (1, True), refused.err
    assert len(list((folder / "all" / ".samples").glob("*.safetensors"))) == 1
    done = command(*typed, cwd=folder, signal_at="work:9")
    assert done.status == 0, done.err
    assert done.calls == 1  # of two batches
    assert "edit of 2 images, 3 samples of each, from t = 0." in done.out
    assert "6 images, 3 network passes each" in done.out  # as many as asked for
    found = np.load(folder / "all" / "samples.npz")
    assert found["seeds"].tolist() == list(range(6))
    assert (folder / "all" / "film.gif").is_file()
    denoiser = ScoreModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt").denoiser
    t = start_time(denoiser.sde, 0.7, denoiser.sigma_data)
    x0 = torch.from_numpy(pixels)[[0, 0, 0, 1, 1, 1], None] / 127.5 - 1
    start = noised(denoiser.sde, x0, t, range(6))
    want = AncestralSampler(3, eta=1.0)(denoiser, x0.shape, range(6), latent=start, t_start=t)
    assert np.array_equal(found["images"], Images((1, 8, 8), levels=17).to_file(want.x))
    # The second picture alone, out of an array.
    np.save(folder / "b.npy", pixels[1:])
    done = command("sample", *given, "edit=b.npy", "n=3", "seed=3", "out=one", cwd=folder)
    assert done.status == 0, done.err
    assert np.array_equal(np.load(folder / "one" / "samples.npz")["images"], found["images"][3:])


def config(path="in.npy", strength=0.5, n=2, **sampler):
    return OmegaConf.create(
        {"ckpt": "model.ckpt", "edit": {"path": path, "strength": strength}, "n": n, "sampler": {**DDPM, **sampler}}
    )


def model_of(modality, levels, sde=None):
    data = {"shape": list(modality.shape), "levels": levels, "modality": modality.describe()}
    zero = torch.zeros(modality.shape)
    found = BaseModel()
    found.data, found.denoiser = data, GaussianDenoiser(sde or VPSDE(), zero, 0.5)
    return found


@pytest.mark.parametrize(
    ("settings", "modality", "parts"),
    [
        ({"path": "none.png"}, Images((1, 8, 8), 256), ["none.png does not exist"]),
        ({"path": "large.png"}, Images((1, 8, 8), 256), ["large.png is 9x8, and must be 8x8", "resized in silence"]),
        ({"path": "in"}, Images((3, 8, 8), 256), ["a.png is grey, and must be in colour"]),
        ({"path": "in"}, Points((64,)), ["give an .npz or .npy in place of in", "points of shape [64]"]),
        ({"path": "shape.npy"}, Points((5,)), ["items to edit must be [N, 5]", "float64 [2, 3]"]),
        ({"path": "shape.npy"}, Signals((1, 5)), ["items to edit must be [N, 1, 5]", "signals of shape [1, 5]"]),
        ({"path": "nan.npy"}, Points((3,)), ["nan.npy 1 have NaN"]),
        ({"path": "bytes.npy"}, Images((1, 8, 8), 256), ["values up to 255", "lie on [-1, 1]"]),
        ({"strength": 1e-6}, Images((1, 8, 8), 256), ["edit.strength must exceed 4e-06", "t_end = 1e-05", "got 1e-06"]),
        ({"t_end": 0.3, "strength": 0.1}, Images((1, 8, 8), 256), ["edit.strength must exceed 0.8", "t_end = 0.3"]),
    ],
)
def test_what_is_refused(settings, modality, parts, pictures, monkeypatch):
    monkeypatch.chdir(pictures[0])
    Image.new("L", (9, 8)).save("large.png")
    np.save("shape.npy", np.zeros((2, 3)))
    np.save("nan.npy", np.array([[0, 0, 0], [0, 0, np.nan]]))
    np.save("bytes.npy", np.full((1, 8, 8), 255.0))
    with pytest.raises(UserError) as error:
        editing.edit_of(config(**settings), model_of(modality, getattr(modality, "levels", None)))
    assert all(part in str(error.value) for part in parts), error.value


def test_points_and_signals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(editing, "is_overridden", lambda key: False)
    for modality in (Points((2,)), Signals((2, 5))):
        x = torch.randn(3, *modality.shape)
        np.savez("in.npz", **{modality.unit: x.numpy()})
        edit = editing.edit_of(config("in.npz"), model_of(modality, None))
        assert torch.equal(edit.given, x)
        assert edit.picture(modality, edit.each(2), 2).width > 300
    assert editing.edit_of(config(None), model_of(modality, None)) is None
    monkeypatch.setattr(editing, "is_overridden", lambda key: key == "edit.strength")
    with pytest.raises(UserError, match=r"edit.strength=0.5 needs something to edit: add edit=PATH"):
        editing.edit_of(config(None), model_of(modality, None))


def test_the_picture_of_many_variations():
    """The rows of each picture begin with it; those of its further variations with nothing."""
    x, given = torch.rand(2, 20, 1, 8, 8), torch.rand(2, 1, 8, 8)
    edge = 640 // (11 * 9) + 1  # the enlargement of a pixel
    picture = np.asarray(Images((1, 8, 8), 256).draw_edits(2 * x - 1, 2 * given - 1))[24:, :, 0]
    assert len(picture) == 4 * (8 * edge + 1)
    middle = edge // 2 + np.arange(8) * edge
    rows = [picture[row * (8 * edge + 1) + middle][:, middle] for row in range(4)]
    assert np.array_equal(rows[0], to_uint8(2 * given - 1)[0, ..., 0])
    assert np.array_equal(rows[2], to_uint8(2 * given - 1)[1, ..., 0])
    assert (rows[1] == 255).all()


def test_keys():
    assert with_paths("sample", ["sample", "edit=a.png", "edit.strength=0.3", "edit={path:b}", "n=3"]) == [
        "sample", "edit.path=a.png", "edit.strength=0.3", "edit={path:b}", "n=3",
    ]  # fmt: skip
    assert with_paths("evaluate", ["data=digits", "edit=a"]) == ["data=digits", "edit=a"]
    for strength in ("0", "-1", "1.5", "half", "null"):
        assert "edit.strength must be a number in (0, 1], the share of noise" in refusal(
            "sample", "edit.path=a.png", f"edit.strength={strength}"
        )
    assert "edit.path must be text" in refusal("sample", "edit.path=3")
    assert "did you mean edit.strength?" in refusal("sample", "edit.strenght=0.5")
