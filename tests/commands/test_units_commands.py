"""Samples in the data's own units and classes by name, from training through sampling to evaluation."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from sde_diffusion.commands.conditions import for_items
from sde_diffusion.data import Arrays
from sde_diffusion.modality import Images, read_samples
from sde_diffusion.modality.units import Units
from sde_diffusion.training import ScoreModel

RNG = np.random.default_rng(0)
QUICK = ("sampler=ddpm", "sampler.steps=3")


def _run(command, cwd, *arguments):
    done = command(*arguments, cwd=cwd)
    assert done.status == 0, done.err
    return done


def _train(command, folder, *arguments):
    short = ("trainer.max_steps=4", "data.min_batches_per_epoch=4", "data=arrays")
    _run(command, folder, "train", *TINY, *short, f"hydra.run.dir={folder / 'run'}", *arguments)
    return f"ckpt={folder / 'run' / 'checkpoints' / 'last.ckpt'}"


def _sample(command, folder, ckpt, *arguments):
    done = _run(command, folder, "sample", ckpt, *QUICK, f"out={folder / 'drawn'}", "overwrite=true", *arguments)
    return dict(np.load(folder / "drawn" / "samples.npz", allow_pickle=False)), done


def _latents(command, folder, ckpt, n, shape):
    """The samples as the model makes them, on [-1, 1]."""
    from sde_diffusion.sampling import AncestralSampler

    model = ScoreModel.load_from_checkpoint(ckpt.removeprefix("ckpt="))
    label = {name: kind.in_turn(n) for name, kind in model.conditions.items()}
    return AncestralSampler(steps=3, eta=1.0)(model.denoiser, (n, *shape), seeds=range(n), **label).x, model.data


def _same_figures(command, folder, ckpt, data, n):
    """Evaluating a checkpoint and the file of its samples gives the same result."""
    figures = []
    for name, origin in (("a", [ckpt, *QUICK, f"n={n}"]), ("b", ["samples=drawn/samples.npz", *data])):
        metrics = "metrics=[energy,sliced_wasserstein]"
        _run(command, folder, "evaluate", *origin, metrics, "resamples=20", f"out={folder / name}")
        figures.append(json.loads((folder / name / "metrics.json").read_text()))
    for key in ("energy_distance", "sliced_wasserstein"):
        assert figures[1][key] == pytest.approx(figures[0][key], rel=1e-4), key
    return figures[1]


@pytest.mark.slow
def test_images_of_floats_come_back_in_their_units(command, tmp_path):
    x = RNG.uniform(0, 5000, (60, 5, 6, 1)).astype(np.float32)
    names = np.array(["12", "cat", "0"])
    np.savez(tmp_path / "x.npz", train_images=x, train_labels=np.arange(60) % 3, class_names=names)
    data = ("data=arrays", "data.path=x.npz", "data.range=[0,5000]")
    ckpt = _train(command, tmp_path, *data[1:], "conditional=true")
    found, done = _sample(command, tmp_path, ckpt, "n=6")
    assert (found["images"].dtype, found["images"].shape) == (np.float32, (6, 5, 6, 1))
    made, kept = _latents(command, tmp_path, ckpt, 6, (1, 5, 6))
    assert np.abs(found["images"] - (made.clamp(-1, 1).numpy().transpose(0, 2, 3, 1) + 1) * 2500).max() < 2
    assert kept["units"] == {"low": [0.0], "high": [5000.0]}
    assert found["class_names"].tolist() == kept["conditions"]["label"]["names"] == ["12", "cat", "0"]
    assert "label: 0 12, 1 cat, 2 0" in done.out
    stored = read_samples(tmp_path / "drawn" / "samples.npz", Images([1, 5, 6], units=Units((0.0,), (5000.0,))))
    assert np.abs(next(stored.batches()).numpy() - made.clamp(-1, 1).numpy()).max() < 1e-3
    grid = np.asarray(Image.open(tmp_path / "drawn" / "grid.png").convert("L"))
    assert grid.max() - grid.min() > 50
    model = ScoreModel.load_from_checkpoint(ckpt.removeprefix("ckpt="))
    test = Arrays(str(tmp_path / "x.npz"), range=[0, 5000]).split("test")
    np.save(tmp_path / "labels.npy", for_items(model, {}, test, 24)["label"])  # evaluate draws under the items' own
    _sample(command, tmp_path, ckpt, "n=24", "conditions.label=labels.npy")
    _same_figures(command, tmp_path, ckpt, data, 24)

    for label, number in (("cat", 1), ("0", 2), ("12", 0), ("1", 1)):
        drawn, _ = _sample(command, tmp_path, ckpt, "n=2", f"label={label}")
        assert drawn["labels"].tolist() == [number] * 2, label
    commands = {
        "sample": (*QUICK, "n=4"),
        "evaluate": (*QUICK, "n=4", "metrics=[energy]", "resamples=20"),
        "likelihood": ("n=1", "method=dopri5", "rtol=0.1", "atol=0.1", "elbo=null"),
    }
    for name, arguments in commands.items():
        usual = (name, ckpt, *arguments, f"out={tmp_path / name}")
        wrong, right = (command(*usual, label, cwd=tmp_path) for label in ("label=cow", "label=cat"))
        assert (wrong.status, right.status) == (1, 0), (wrong.err, right.err)
        assert "label=cow is not a class; the classes are 12, cat, 0" in wrong.err


def test_tables_come_back_in_their_units(command, tmp_path):
    rows = RNG.normal([5, 0, 0], [1, 1000, 0.01], (200, 3))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,c", comments="")
    data = ("data=arrays", "data.path=rows.csv", "data.range=auto")
    ckpt = _train(command, tmp_path, *data[1:])
    found, _ = _sample(command, tmp_path, ckpt, "n=50")
    made, kept = _latents(command, tmp_path, ckpt, 50, (3,))
    low, high = np.array(kept["units"]["low"]), np.array(kept["units"]["high"])
    assert np.allclose(found["points"], low + (high - low) * (made.numpy() + 1) / 2, rtol=1e-4, atol=1e-4 * high)
    # Restored: one column is known, in its own unit, and the others are missing.
    np.save(tmp_path / "known.npy", np.array([[5.0, np.nan, np.nan], [6.0, np.nan, np.nan]]))
    mask = ("operator=mask", "operator.coordinates=[1,2]", "y=known.npy", "noise=0", "posterior=ddnm", "n=3")
    _run(command, tmp_path, "restore", ckpt, *mask, "sampler.steps=3", "out=restored")
    restored = np.load(tmp_path / "restored" / "restored.npz")["points"]
    assert restored.shape == (2, 3, 3)
    assert np.allclose(restored[:, :, 0], [[5.0], [6.0]], atol=1e-4)
    assert np.ptp(restored[0, :, 1]) > 1
    report = _same_figures(command, tmp_path, ckpt, data, 50)
    # Each column in half its range, so that none counts alone: 2 E|X - Y| - E|X - X'| - E|Y - Y'|.
    test = Arrays(str(tmp_path / "rows.csv"), range="auto")
    x = torch.from_numpy((found["points"] - low) / ((high - low) / 2))
    y = torch.from_numpy((test.decode(test.tensor("test")).numpy() - low) / ((high - low) / 2))
    within = [torch.pdist(z).mean() for z in (x, y)]
    assert report["energy_distance"] == pytest.approx(float(2 * torch.cdist(x, y).mean() - sum(within)), rel=1e-3)


def test_masks_come_back_black_and_white(command, tmp_path):
    np.savez(tmp_path / "m.npz", train_images=RNG.random((90, 4, 4)) > 0.5)
    ckpt = _train(command, tmp_path, "data.path=m.npz")
    found, _ = _sample(command, tmp_path, ckpt, "n=20")
    made, kept = _latents(command, tmp_path, ckpt, 20, (1, 4, 4))
    assert kept["levels"] == 2
    assert np.array_equal(found["images"][..., 0], np.where(made[:, 0] > 0, 255, 0))


def test_labels_of_the_test_split_alone(command, tmp_path):
    x = RNG.random((60, 4, 4)) > 0.5
    np.savez(tmp_path / "m.npz", train_images=x, test_images=x, test_labels=np.arange(60) % 2)
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    done = command("train", *TINY, folder, "data=arrays", "data.path=m.npz", "conditional=true", cwd=tmp_path)
    assert done.status == 1
    assert done.err == "error: conditional=true needs labels, and arrays has none\n"
    assert "test has labels and train and val has none" in done.out
