"""The code of the tutorials in docs/ runs; shortened in the quick tests (see docs/run.py)."""

import gzip
import importlib.util
import itertools
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

RESTORED = ("mmps", "ddnm", "noisy", "noisy-dps")
DOCS = Path(__file__).parents[1] / "docs"
_spec = importlib.util.spec_from_file_location("docs_run", DOCS / "run.py")
docs_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_run)


def follow(name, command, folder, quick):
    """Run a page as a reader would: the names that it defines, and its pictures, which are redrawn."""

    def typed(words):
        done = command(words[0].removeprefix("sde_diffusion."), *words[1:], cwd=folder)
        assert done.status == 0, f"{words}: {done.err}"

    page = DOCS / f"{name}.md"
    found = docs_run.run(page, typed, quick)
    shown = set(re.findall(r"!\[[^]]*\]\((pictures/[^)]*)\)", page.read_text()))
    assert shown == {path.as_posix() for path in Path("pictures").iterdir()}
    for picture in shown:
        assert np.asarray(Image.open(picture).convert("L")).std() > 1, f"{picture} is blank"
        assert (DOCS / picture).stat().st_size < 100_000
    return found


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_default_dtype(torch.float32)  # a page may set another


def substitutes():
    """What `upsampling` needs: MNIST of noise in DIR, and photographs of noise."""
    source = np.random.default_rng(0)
    Path("DIR").mkdir()
    for part, n in (("train", 40), ("t10k", 10)):
        for kind, array in (("images", source.integers(0, 256, (n, 28, 28))), ("labels", np.arange(n) % 10)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            path = Path("DIR", f"{part}-{kind}-idx{array.ndim}-ubyte.gz")
            path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    Path("photos").mkdir()
    for number in range(20):
        Image.fromarray(source.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(f"photos/{number}.png")


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("repair", "pretrained", *docs_run.WITH_DOWNLOADS)]
"""Those that take more than ten seconds even when they are shortened."""


@pytest.mark.parametrize(
    "name", [*(name for name in docs_run.TUTORIALS if name not in ("repair", "pretrained")), *LONG]
)
def test_tutorials_run_shortened(name, command, tmp_path):
    if name in docs_run.WITH_DOWNLOADS:
        substitutes()
    follow(name, command, tmp_path, quick=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", docs_run.TUTORIALS)
def test_tutorials_do_what_they_say(name, command, tmp_path):
    found = follow(name, command, tmp_path, quick=False)
    if name == "points":  # the learned density is the true one to a few hundredths of a nat
        assert abs(float(found["learned"].mean() - found["true"].mean())) < 0.1
    if name == "classes":  # each row of the picture is of one class, says the classifier that the library ships
        from sde_diffusion.metrics import load_extractor

        classifier = load_extractor("digits").eval()
        right = classifier.head(classifier(found["x"])).argmax(1) == found["labels"]
        assert float(right.float().mean()) > 0.8
    if name == "repair":  # one training run with little data: what the page says, with room
        figures = {run: json.loads(Path(f"runs/{run}/restore.json").read_text())["against_truth"] for run in RESTORED}
        assert 0.8 < figures["mmps"]["error_over_spread"] < 1.6
        assert figures["mmps"]["rmse"] < figures["ddnm"]["rmse"]
        assert figures["noisy-dps"]["error_over_spread"] > figures["noisy"]["error_over_spread"]
        hidden = found["missing"]
        truth = np.array(found["right"])[hidden] / 127.5 - 1
        error = (found["x"].mean(0).permute(1, 2, 0)[hidden] - torch.as_tensor(truth)).square().mean().sqrt()
        assert float(error) < 0.5 * float(np.std(truth))
    if name == "own":
        # Gaussian data: standard errors of 2,000 samples are 0.3 / 45 and 0.3 / 63; five of them, 1 in a million
        mean, std = found["exact"].mean, 0.3
        assert ((found["x"].mean(0) - torch.as_tensor(mean)).abs() < 5 * std / 2000**0.5).all()
        assert ((found["x"].std(0) - std).abs() < 5 * std / 4000**0.5).all()
        errors = found["errors"]
        assert all(1.7 < coarse / fine < 2.3 for coarse, fine in itertools.pairwise(errors))  # order 1
        radius = found["drawn"].x.norm(dim=1)  # the ring of radius 0.8
        assert abs(float(radius.mean()) - 0.8) < 0.05
        assert float(radius.std()) < 0.1
        # the path of two functions: g^2 = d sigma^2/dt - 2 f sigma^2, by hand
        t = torch.tensor(0.5, dtype=torch.float64)
        by_hand = 2 * t + 2 * (2 * t / (1 - t**2)) * t**2
        assert abs(found["sde"].diffusion(t) ** 2 - by_hand) < 1e-12
