"""Signals from the command line: trained on, drawn, compared, scored."""

import json

import numpy as np
import torch
from conftest import TINY
from PIL import Image

from sde_diffusion.data.processes import OrnsteinUhlenbeck

SHORT = ("sampler=ddpm", "sampler.steps=3")


def test_signals(command, tmp_path):
    """In their own units, -40 ... 60: an .npz of [N, C, L]."""

    def run(*arguments):
        done = command(*arguments, cwd=tmp_path)
        assert done.status == 0, done.err
        return done.out

    x = OrnsteinUhlenbeck(channels=2, length=10).sample(300, torch.Generator().manual_seed(0))
    np.savez(tmp_path / "x.npz", x=(10 + 50 * x.clamp(-1, 1)).float().numpy())
    data = ("data=arrays", "data.path=x.npz", "data.range=[-40,60]")
    short = ("trainer.max_steps=4", "data.min_batches_per_epoch=4")
    told = run("train", *TINY, *short, *data, "hydra.run.dir=run")
    assert "read as 300 signals of shape [2, 10]" in told
    assert "training signals of shape [2, 10]" in told
    assert " signals/s" in told
    ckpt = "ckpt=run/checkpoints/last.ckpt"

    told = run("sample", ckpt, *SHORT, "n=30", "film=2", "out=drawn")
    assert "signals: float32 [30, 2, 10], in the data's own units" in told
    drawn = np.load(tmp_path / "drawn" / "samples.npz")
    assert set(drawn) == {"signals", "seeds"}
    assert abs(drawn["signals"].mean() - 10) < 10
    for name in ("drawn/grid.png", "drawn/film.png", "drawn/film.gif", "run/samples/step-0000004.png"):
        assert min(Image.open(tmp_path / name).size) > 100, name

    few = ("metrics=[frechet,energy]", "resamples=20")
    run("evaluate", ckpt, *SHORT, "n=30", *few, "against=drawn", "out=scores")
    report = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert report["extractor"] == "pca8"
    for name in ("frechet_distance", "energy_distance"):  # of the model's samples, and of the same ones in their file
        assert abs(report["against"]["figures"][name] / report[name] - 1) < 1e-4, name

    run("likelihood", ckpt, "n=2", "method=dopri5", "rtol=0.1", "atol=0.1", "elbo=null", "out=l")
    report = json.loads((tmp_path / "l" / "likelihood.json").read_text())
    assert report["own_units"]["log_volume"] == 20 * np.log(50)

    # Restored: a gap in given signals, and shorter ones made from the model's own; both in the data's units.
    given, quick = np.load(tmp_path / "x.npz")["x"][:2], ("sampler.steps=3", "posterior.iterations=1")
    np.save(tmp_path / "gaps.npy", np.where(np.arange(10) // 3 == 1, np.nan, given))
    gap = ("operator=mask", "operator.coordinates=[3,4,5]", "y=gaps.npy", "noise=0", "n=2")
    run("restore", ckpt, *gap, *quick, "out=filled")
    filled = np.load(tmp_path / "filled" / "restored.npz")["signals"]
    assert filled.shape == (2, 2, 2, 10)
    where = np.arange(10) // 3 != 1
    assert np.allclose(filled[..., where], given[:, None][..., where], atol=1e-4)
    assert np.ptp(filled[0, :, 0, 3]) > 1e-3
    means = given.reshape(2, 2, 5, 2).mean(3)
    np.savez(tmp_path / "means.npz", signals=means)
    run("restore", ckpt, "operator=downsample", "operator.factor=2", "y=means.npz", "noise=0", *quick, "out=long")
    found = np.load(tmp_path / "long" / "restored.npz")["signals"]
    assert np.allclose(found.reshape(2, 4, 2, 5, 2).mean(4), means[:, None], atol=1e-3)
    run("evaluate", "samples=filled/restored.npz", *data, *few, "out=scored")
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["n"] == 4

    np.savez(tmp_path / "points.npz", points=np.zeros((40, 2, 10), np.float32))
    wrong = command("evaluate", "samples=points.npz", *data, "out=w", cwd=tmp_path)
    assert wrong.err == "error: points.npz holds points, and the data are signals of shape [2, 10]\n"
    assert (wrong.status, (tmp_path / "w" / "metrics.json").exists()) == (1, False)
