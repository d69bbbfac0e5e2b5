"""Cascades: small samples, enlarged by a model that was trained given small pictures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf

from sde_diffusion import EDMSDE, Denoiser, Downsample
from sde_diffusion.commands.cascade import Stage, enlarge
from sde_diffusion.conditions import Conditions
from sde_diffusion.denoiser import GaussianMixtureDenoiser
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.training import Measured
from sde_diffusion.training.base import BaseModel
from sde_diffusion.training.dropout import ConditionDropout

MEASURED = "model.measured={_target_:sde_diffusion.training.Measured,operator:{_target_:%s,factor:2},noise:0.3}"
STEPS = ("sampler=ddpm", "sampler.steps=3")


@pytest.fixture(scope="module")
def models(command, tmp_path_factory):
    """Folder of two tiny models of the digits: `small` draws 4x4, `large` enlarges them to 8x8."""
    folder = tmp_path_factory.mktemp("cascade")
    short = (*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples=null")
    for name, more in (("small", "data.shrink=2"), ("large", MEASURED % "sde_diffusion.guidance.Downsample")):
        done = command("train", *short, more, f"hydra.run.dir={name}", cwd=folder)
        assert done.status == 0, done.err
    assert "measured Downsample(factor=2, method='area'), with noise from 0 to 0.3" in done.out
    assert "sde_diffusion.restore" in done.out
    return folder


def both(small="small", large="large"):
    return f"ckpt={small}/checkpoints/last.ckpt", f"upsampler.ckpt={large}/checkpoints/last.ckpt", *STEPS


def test_a_cascade_whose_samples_depend_on_their_own_seeds(command, models):
    done = command("sample", *both(), "n=5", "batch_size=3", "film=2", "out=five", cwd=models)
    assert done.status == 0, done.err
    assert "disagreement with the small ones is" in done.out
    assert command("sample", *both(), "n=1", "seed=3", "out=one", cwd=models).status == 0
    five, one = (np.load(models / name / "samples.npz") for name in ("five", "one"))
    assert five["images"].shape == (5, 8, 8, 1)
    assert np.abs(five["images"][3].astype(int) - one["images"][0]).max() <= 1
    assert command("sample", both()[0], *STEPS, "n=5", "out=small", cwd=models).status == 0
    small = np.load(models / "five" / "small.npz")["images"]
    assert np.array_equal(small, np.load(models / "small" / "samples.npz")["images"])
    assert {path.name for path in (models / "five").iterdir()} >= {"grid.png", "film.png", "small.npz"}
    assert not list((models / "five").glob(".*"))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (both(large="small"), ["was not trained given small pictures", "model.measured"]),
        (both(small="large"), ["draws 8x8, grey", "enlarges 4x4, grey to 8x8, grey"]),
        ((*both(), "upsampler.noise=0.4"), ["upsampler.noise must lie in [0, 0.3]", "got 0.4"]),
        ((*both(), "upsampler.noise=5"), ["upsampler.noise must be", "from 0 to 2"]),
    ],
)
def test_models_that_do_not_fit(settings, parts, command, models):
    done = command("sample", *settings, "out=none", cwd=models)
    assert done.status == 1
    assert all(part in done.err for part in parts), done.err
    assert not (models / "none" / "samples.npz").exists()


def test_restore_with_the_models_own_operator(command, models, trained):
    """Without noise, the draws are moved onto the measurements: means of blocks of 2x2."""
    own = ("split=test", "items=3", "n=2", *STEPS)
    done = command("restore", f"ckpt={models}/large/checkpoints/last.ckpt", *own, "noise=0", "out=own", cwd=models)
    assert done.status == 0, done.err
    report = json.loads((models / "own" / "restore.json").read_text())
    assert (report["operator"]["factor"], report["posterior"], report["gradients"]) == (2, None, 0)
    assert (report["residual"]["unit"], report["residual"]["median"] < 1e-5) == ("[-1, 1]", True), report["residual"]
    for model, more, part in (
        (models / "large", "noise=0.5", "noise must lie in [0, 0.3]"),
        (models / "large", "posterior=dps", "leave posterior= out"),
        (trained, "noise=0.1", "choose operator= from blur, downsample, grey, linear, mask"),
    ):
        refused = command("restore", f"ckpt={model}/checkpoints/last.ckpt", *own, more, "out=no", cwd=models)
        assert (refused.status, part in refused.err) == (1, True), refused.err


class Exact(Denoiser):
    """E[x_0 | x_t, y, s] of N(0, C), C = [[0.25, 0.1], [0.1, 0.25]] in pairs, in closed form."""

    def __init__(self):
        super().__init__()
        self.sde, self.sigma_data = EDMSDE(), 0.5
        self.covariance = torch.block_diag(*[torch.tensor([[0.25, 0.1], [0.1, 0.25]])] * 2)

    def forward(self, x_t, t, measurement=None, measurement_noise=None):
        prior = GaussianMixtureDenoiser(self.sde, torch.zeros(1, 4), covariances=self.covariance[None])
        noise = float(measurement_noise[0])
        return prior.posterior(Downsample(2), noise)(x_t, t, y=measurement)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_exact_models_in_a_cascade_draw_from_the_data(noise, tmp_path):
    n, measured = 4000, Measured(Downsample(2), noise=0.5)
    kinds = Conditions(measured.conditions((4,)))
    data = {"name": "pairs", "levels": None, "units": None}
    model = BaseModel()
    model.data, model.denoiser, model.measured = {**data, "shape": [4]}, Exact(), measured
    model.conditions, model.dropout = kinds, ConditionDropout(kinds, 0.0)
    # Means of pairs, made of the numbers from which a first model would start: the second one must not use them too.
    means = 0.175**0.5 * Noise(range(n), (2,)).normal(0)
    small = SimpleNamespace(data={**data, "shape": [2]})
    drawn = SimpleNamespace(batches=lambda: iter(torch.split(means, 1500)))
    sampler = {"_target_": "sde_diffusion.sampling.DPMSolver", "steps": 12}
    cfg = {"sampler": sampler, "n": n, "seed": 0, "batch_size": 2000, "overwrite": False, "upsampler": {"noise": noise}}
    with torch.no_grad():
        stage = enlarge(
            OmegaConf.create(cfg), Stage(small, {}, range(n), drawn), model, torch.device("cpu"), tmp_path / "parts"
        )
    x = torch.cat(list(stage.drawn.batches()))
    # 5 standard errors of a variance, and the solver's 1%. Noise that is not added gives 0.16 in place of 0.25, noise
    # that the model is not told 0.34.
    assert (x.T @ x / n - model.denoiser.covariance).abs().max() < 0.25 * 5 * (2 / n) ** 0.5 + 0.0025
    # The small samples and the means of the large ones are independent given y, with the posterior's variance each.
    variance = 0.175 * noise**2 / (0.175 + noise**2)
    found = (x.unflatten(1, (2, 2)).mean(2) - means).square().mean().sqrt()
    assert abs(found - (2 * variance) ** 0.5) < 0.04 * (2 * variance) ** 0.5 + 1e-3
