"""evaluate of=reconstructions: an autoencoder's reconstructions of a split, beside what they were made from."""

import json

import pytest
import torch
from conftest import TINY

from sde_diffusion.data import Digits
from sde_diffusion.metrics import FrechetDistance, load_extractor
from sde_diffusion.training import GenerativeModel

OF = ("of=reconstructions", "n=200", "metrics=[frechet,memorisation]", "batch_size=64")


@pytest.fixture(scope="module")
def first_stage(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_stage") / "run"
    tiny = [word for word in TINY if not word.startswith(("network.", "sampler"))]
    settings = (
        "model=vq",
        "model.autoencoder.channels=[8,8]",
        "model.autoencoder.codebook_size=16",
        f"hydra.run.dir={folder}",
    )
    done = command("train", *tiny, *settings, cwd=folder.parent)
    assert done.status == 0, done.err
    assert "codes.png        how many codes are used, and their perplexity" in done.out
    assert done.out.count("in nats per dimension; validation without the commitment") == 1
    assert "  samples          pictures during training: samples, reconstructions\n" in done.out
    last = folder / "checkpoints" / "last.ckpt"
    assert f"sde_diffusion.evaluate ckpt={last} of=reconstructions" in done.out
    assert f"sde_diffusion.train model=latent first_stage.ckpt={last}" in done.out
    assert not (folder / "kl.png").exists()  # the rate of codes is constant
    return folder


def test_they_are_the_models_and_are_compared_with_the_split(first_stage, command, tmp_path):
    ckpt = first_stage / "checkpoints" / "last.ckpt"
    done = command("evaluate", f"ckpt={ckpt}", *OF, f"out={tmp_path}", cwd=tmp_path)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "metrics.png").is_file()
    assert "200 reconstructions, against 300 of digits test" in done.out
    assert "(rmse: over all values, on the model's scale of [-1, 1]; psnr: in dB)" in done.out
    data = Digits().prepare()
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:200]
    x, model = data.split("test").tensor(rows), GenerativeModel.load_from_checkpoint(ckpt)
    made = model.reconstruct(x)
    assert "made from" in report["skipped"]["memorisation"]
    assert report["rmse"] == pytest.approx(float((made - x).square().mean().sqrt()), rel=1e-5)
    assert report["psnr"] == pytest.approx(20 * torch.tensor(2 / report["rmse"]).log10().item(), rel=1e-5)
    for of, found in ((made, report), (x, report["originals"])):
        metric = FrechetDistance(load_extractor("digits"))
        metric.update(data.tensor("test"), real=True)
        metric.update(data.modality.for_metrics(of), real=False)
        assert found["frechet_distance"] == pytest.approx(float(metric.compute()), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampler=ddim"], "sampler= cannot be given with of=reconstructions"),
        (["data=moons"], "moons has items of shape [2], and the model [1, 8, 8]"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message, first_stage, command, tmp_path):
    ckpt = first_stage / "checkpoints" / "last.ckpt"
    done = command("evaluate", f"ckpt={ckpt}", *OF, *settings, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 1
    assert message in done.err


def test_more_draws_of_codes_that_are_not_random_gain_nothing(first_stage, command, tmp_path):
    ckpt = first_stage / "checkpoints" / "last.ckpt"
    done = command("likelihood", f"ckpt={ckpt}", "importance=2", "n=4", "out=scores", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "IWAE-2 equals the ELBO: the encoder's codes are not random" in done.out
    assert "tighter" not in done.out
