"""Long runs of sampling: killed, interrupted, started again."""

import json
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

SLOW_STEPS = ("sampler=ddpm", "sampler.steps=300", "n=200", "batch_size=10")


def wait_for_parts(out, process, n=2):
    until = time.monotonic() + 120
    while len(list((out / ".samples").glob("*.safetensors"))) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_and_ends_with_the_same_file(how, status, command, start, trained, tmp_path):
    ckpt = trained / "checkpoints" / "last.ckpt"
    complete, broken = tmp_path / "complete", tmp_path / "broken"
    assert command("sample", f"ckpt={ckpt}", f"out={complete}", *SLOW_STEPS, cwd=tmp_path).status == 0
    process = start("sample", f"ckpt={ckpt}", f"out={broken}", *SLOW_STEPS, cwd=tmp_path)
    wait_for_parts(broken, process)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, (out, err)
    assert "Traceback" not in out + err
    kept = {path: path.stat().st_mtime_ns for path in (broken / ".samples").glob("*.safetensors")}
    assert 2 <= len(kept) < 20
    assert not (broken / "samples.npz").exists()
    # Another plan does not get mixed in, whatever it changes.
    other = command("sample", f"ckpt={ckpt}", f"out={broken}", *SLOW_STEPS, "seed=1", cwd=tmp_path)
    assert (other.status, "overwrite=true" in other.err) == (1, True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    done = command("sample", f"ckpt={ckpt}", f"out={broken}", *SLOW_STEPS, "batch_size=64", cwd=tmp_path)
    assert done.status == 0, done.err
    a, b = (np.load(folder / "samples.npz", allow_pickle=False) for folder in (complete, broken))
    assert np.array_equal(a["seeds"], b["seeds"])
    # Another batch size may round the network's sums otherwise: a grey level of 256 here and there.
    assert np.abs(a["images"].astype(int) - b["images"]).max() <= 1
    assert not (broken / ".samples").exists()


def test_begun_anew_with_overwrite(command, trained, tmp_path):
    ckpt = trained / "checkpoints" / "last.ckpt"
    parts = tmp_path / "out" / ".samples"
    parts.mkdir(parents=True)
    (parts / "plan.json").write_text(json.dumps({"n": 3}))
    save_file({"x": torch.zeros(3, 1, 8, 8), "nfe": torch.tensor(3)}, parts / "000000000.safetensors")
    arguments = ("sample", f"ckpt={ckpt}", "sampler=ddim", "sampler.steps=3", "n=4", f"out={tmp_path / 'out'}")
    assert command(*arguments, cwd=tmp_path).status == 1
    assert command(*arguments, "overwrite=true", cwd=tmp_path).status == 0
    assert np.load(tmp_path / "out" / "samples.npz", allow_pickle=False)["images"].shape == (4, 8, 8, 1)


@pytest.mark.slow
def test_damaged_parts_are_named(command, start, trained, tmp_path):
    ckpt = trained / "checkpoints" / "last.ckpt"
    process = start("sample", f"ckpt={ckpt}", f"out={tmp_path / 'out'}", *SLOW_STEPS, cwd=tmp_path)
    wait_for_parts(tmp_path / "out", process)
    process.kill()
    process.communicate()
    part = sorted((tmp_path / "out" / ".samples").glob("*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:100])
    done = command("sample", f"ckpt={ckpt}", f"out={tmp_path / 'out'}", *SLOW_STEPS, cwd=tmp_path)
    assert (done.status, part.name in done.err) == (1, True)


def test_a_film_shows_the_walk(command, trained, tmp_path):
    """Frames from the data's mean, the prediction for pure noise, to the sample: contrast grows to the right."""
    ckpt = trained / "checkpoints" / "last.ckpt"
    out = tmp_path / "out"
    arguments = (f"ckpt={ckpt}", "sampler=ddim", "sampler.steps=12", "n=4", "film=2", f"out={out}")
    assert command("sample", *arguments, cwd=tmp_path).status == 0
    with Image.open(out / "film.gif") as moving:
        assert moving.n_frames == 12  # of the sampler's 12 times
        assert moving.info["loop"] == 0
        left, right = [], []
        for k in (0, 11):
            moving.seek(k)
            picture = np.asarray(moving.convert("L"), dtype=float)[26:]
            left.append(picture[:, : picture.shape[1] // 2 - 4])
            right.append(picture[:, picture.shape[1] // 2 + 4 :])
        assert left[0].shape == right[0].shape
        assert np.abs(left[0] - right[0]).mean() > 3 * np.abs(left[1] - right[1]).mean()  # they meet at the data
    film = np.asarray(Image.open(out / "film.png").convert("L"), dtype=float)
    width = film.shape[1] // 12
    middle = slice(film.shape[0] // 4, None)
    contrast = [film[middle, i * width + 20 : (i + 1) * width - 20].std() for i in range(12)]
    assert contrast[-1] > 1.2 * contrast[0]
    assert command("sample", *arguments, "film=5", "overwrite=true", cwd=tmp_path).status == 1
