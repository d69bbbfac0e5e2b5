"""`benchmarks.guidance`: figures at scales of guidance and in intervals, those of samples drawn and measured here."""

import json
import math

import pytest
import torch
from setting_cases import GUIDANCE

from sde_diffusion import DPMSolver, ScoreModel
from sde_diffusion.config import build
from sde_diffusion.metrics import FrechetDistance, load_extractor
from sde_diffusion.modality.levels import from_levels, to_levels
from sde_diffusion.training.guided_denoiser import guided_denoiser


def test_scales_and_intervals(command, classes, tmp_path):
    out = tmp_path / "out"
    done = command("guidance", f"ckpt={classes}", *GUIDANCE.split(), f"out={out}", cwd=tmp_path)
    assert done.status == 0, done.err
    rows = {(row["scale"], row["high"]): row for row in json.loads((out / "guidance.json").read_text())["rows"]}
    assert set(rows) == {(None, None), (1.0, math.inf), (3.0, math.inf), (3.0, 2.0)}
    assert (rows[1.0, math.inf]["passes"], rows[3.0, math.inf]["passes"]) == (3, 6)
    assert 3 <= rows[3.0, 2.0]["passes"] < 6
    model = ScoreModel.load_from_checkpoint(classes)
    data = build(model.data["config"]).prepare()
    split, extractor = data.split("test"), load_extractor("digits", data.shape)
    label = split.label[torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:140]]
    guided = guided_denoiser(model, {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": 3.0})
    x = DPMSolver(3)(guided, (140, 1, 8, 8), label=label).x
    x = from_levels(to_levels(x, 17), 17)
    share = float((extractor.logits(x).argmax(1) == label).double().mean())
    found = rows[3.0, math.inf]
    assert found["share"] == pytest.approx(share, abs=1e-9)
    assert found["share_low"] < share < found["share_high"]
    metric = FrechetDistance(extractor)
    metric.update(data.tensor("test"), real=True)
    metric.update(x, real=False)
    assert found["frechet_distance"] == pytest.approx(float(metric.compute()), rel=1e-4)
    assert found["frechet_distance_low"] < found["frechet_distance"] < found["frechet_distance_high"]
    assert rows[None, None]["share"] > 0.97  # training images, of their own class
    assert "| cfg, in [0.5, 2] | 3 |" in (out / "guidance.md").read_text()
    assert (out / "guidance.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("classifier=FILE",), "classifier= and unconditional= go together"),
        (("scales=[1,1]",), "each scale and interval once"),
        (("n=60",), "need at least 130 samples and data; got n=60"),
        (("classifier=CKPT", "unconditional=CKPT"), "which has no classifier"),
    ],
)
def test_scales_and_intervals_refused(command, classes, settings, words, tmp_path):
    typed = [word.replace("CKPT", str(classes)) for word in settings]
    done = command("guidance", f"ckpt={classes}", *typed, "out=out", cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert words in done.err
