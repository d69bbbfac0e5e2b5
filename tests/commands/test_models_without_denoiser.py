"""sample, evaluate and likelihood of an autoencoder; bounds of a diffusion model by a chain of its steps."""

import csv
import json
import math
import signal

import numpy as np
import pytest
import torch

from sde_diffusion.config import build
from sde_diffusion.density.dequantisation import in_bins
from sde_diffusion.training import GenerativeModel
from sde_diffusion.variational import DiffusionChain, bound


def rows_of(folder):
    with (folder / "likelihood.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return np.array([float(row[name]) for row in rows_of(folder)])


def read(folder):
    return json.loads((folder / "likelihood.json").read_text())


def test_samples_are_decoded_from_latents_that_are_functions_of_the_seed(command, autoencoder, tmp_path):
    ckpt, runs = f"ckpt={autoencoder}", {}
    for name, more in {
        "mean": ("n=6", "latents=true"),
        "draw": ("n=6", "decode=draw", "batch_size=4"),
        "later": ("n=2", "seed=4", "decode=draw", "latents=true"),
    }.items():
        done = command("sample", ckpt, f"out={tmp_path / name}", *more, cwd=tmp_path)
        assert done.status == 0, done.err
        assert "1 network pass each" in done.out
        assert {"mean": "is the mean of p(x | z)"}.get(name, "is drawn from p(x | z)") in done.out
        runs[name] = np.load(tmp_path / name / "samples.npz")
        assert str(runs[name]["decode"]) == {"mean": "mean"}.get(name, "draw")
    latents = [np.load(tmp_path / name / "latents.npz") for name in ("mean", "later")]
    assert latents[0]["seeds"].tolist() == list(range(6))
    np.testing.assert_allclose(latents[0]["z_1"][4:], latents[1]["z_1"], rtol=1e-6)
    np.testing.assert_array_equal(runs["draw"]["images"][4:], runs["later"]["images"])
    model = GenerativeModel.load_from_checkpoint(autoencoder)
    with torch.no_grad():
        x = model.autoencoder.decode([torch.from_numpy(latents[0]["z_1"])])
    np.testing.assert_allclose(runs["mean"]["images"][:, :, :, 0], (127.5 * (x[:, 0] + 1)).numpy(), atol=0.51)
    levels = runs["draw"]["images"] * (16 / 255)
    np.testing.assert_allclose(levels, levels.round(), atol=0.05)
    assert np.abs(runs["draw"]["images"].astype(float) - runs["mean"]["images"]).mean() > 5


@pytest.mark.slow
def test_samples_are_evaluated(command, autoencoder, tmp_path):
    done = command("evaluate", f"ckpt={autoencoder}", "n=40", "decode=draw", "metrics=[kernel]", "out=e", cwd=tmp_path)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert (report["nfe"], report["sampler"], report["decode"]) == (1, None, "draw")


REFUSED = {
    "a sampler": ("sample", ["sampler=ddpm", "sampler.steps=3"], "draws its samples in one pass: leave sampler out"),
    "a film": ("sample", ["film=1"], "film= needs a denoiser"),
    "an edit": ("sample", ["edit=x.png"], "edit= needs a denoiser"),
    "guidance": ("sample", ["guidance=cfg"], "guidance= needs a denoiser"),
    "a word for decoding": ("sample", ["decode=mode"], "decode must be one of mean, draw"),
    "a repair": ("restore", ["operator=grey"], "restore needs a denoiser"),
    "a benchmark": ("nfe_fid", [], "nfe_fid needs a denoiser"),
    "a solver": (
        "likelihood",
        ["rtol=1e-3", "elbo.steps=5"],
        "has no flow of the data: leave rtol=1e-3 elbo.steps=5 out",
    ),
    "an argument of no bound": ("likelihood", ["+bound.foo=1"], "foo"),
}


QUICK_ONES = ("a sampler", "a repair", "a solver")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK_ONES else [pytest.mark.slow]) for c in REFUSED]
)
def test_what_needs_a_denoiser_is_refused(case, command, autoencoder, tmp_path):
    name, settings, words = REFUSED[case]
    done = command(name, f"ckpt={autoencoder}", *settings, "out=refused", cwd=tmp_path)
    assert (done.status, words in done.err, done.err.count("\n")) == (1, True, 1), done.err
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_what_is_for_autoencoders_is_refused(command, trained, tmp_path):
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    for name, settings, words in (
        ("sample", ["latents=true"], "no latent variables: leave latents=true out"),
        ("sample", ["decode=draw"], "no p(x | z): leave decode=draw out"),
        ("likelihood", ["+bound.rows=1"], "elbo.KEY"),
        ("likelihood", ["importance=2", "elbo=null"], "leave elbo=null out"),
    ):
        done = command(name, ckpt, *settings, "out=refused", cwd=tmp_path)
        assert (done.status, words in done.err, done.err.count("\n")) == (1, True, 1), done.err
        assert not (tmp_path / "refused").exists()


def test_likelihood_by_its_bound(command, autoencoder, tmp_path):
    """Killed after a batch and resumed: the figures of a run that was not, and of the library."""
    settings = (f"ckpt={autoencoder}", "importance=4", "draws=5", "n=20", "batch_size=8", "split=[val,test]")
    complete, broken = tmp_path / "complete", tmp_path / "broken"
    done = command("likelihood", *settings, f"out={complete}", cwd=tmp_path)
    assert done.status == 0, done.err
    stopped = command("likelihood", *settings, f"out={broken}", cwd=tmp_path, signal_at="work:2", number=signal.SIGKILL)
    assert stopped.status == -signal.SIGKILL, stopped.err
    assert list(broken.glob(".scores/*/*.safetensors"))
    other = command("likelihood", *settings, "draws=2", f"out={broken}", cwd=tmp_path)
    assert (other.status, "unfinished results of another command" in other.err) == (1, True)
    again = command("likelihood", *settings, f"out={broken}", cwd=tmp_path)
    assert again.status == 0, again.err
    assert "resuming" in again.out
    assert {**read(complete), "seconds": 0} == {**read(broken), "seconds": 0}
    assert (complete / "likelihood.csv").read_text() == (broken / "likelihood.csv").read_text()
    model = GenerativeModel.load_from_checkpoint(autoencoder)
    items = [int(row["index"]) for row in rows_of(complete) if row["split"] == "test"]
    x = build(model.data["config"]).prepare().tensor("test")[items]
    found, test = bound(model.autoencoder, x, 5, 4, seeds=items), column(complete, "iwae")[20:]
    np.testing.assert_allclose(test, found.log_prob, rtol=1e-5)
    np.testing.assert_allclose(column(complete, "iwae_error")[20:], found.std_error, rtol=1e-3)
    np.testing.assert_allclose(column(complete, "elbo_z_1")[20:], -found.kl[0], rtol=1e-5)
    report = read(complete)
    assert report["bits_per_dim"] == report["iwae"]["bits_per_dim"] == pytest.approx(-test.mean() / 64 / math.log(2))
    terms = report["elbo"]["reconstruction"] + report["elbo"]["z_1"]
    assert report["elbo"]["bits_per_dim"] == pytest.approx(terms)
    assert report["order"][0]["difference"] == pytest.approx(
        float((found.log_prob - found.elbo).mean()) / 64 / math.log(2), rel=1e-4
    )
    assert "lower bounds on the log-probability log P(x) of data on 17 levels" in report["convention"]
    assert "IWAE-4 is tighter than the ELBO" in done.out


LINEAR = """
import torch
from torch import nn
from sde_diffusion.variational import VAE

class Outputs(nn.Linear):
    def forward(self, z):
        return super().forward(z)[:, None]

class LinearVAE(VAE):
    def __init__(self, shape, observation):
        super().__init__(nn.Linear(3, 2), Outputs(1, 3), observation, shape, [1])
        w, b, noise = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.1, 0.0, -0.1]), torch.tensor(0.04)
        variance = 1 / (1 + w.square().sum() / noise)  # of z given x
        with torch.no_grad():
            self.decoder.weight.copy_(w[:, None])
            self.decoder.bias.copy_(b)
            observation.log_std.copy_(0.5 * noise.log())
            self.encoder.weight.copy_(torch.stack([variance * w / noise, 0 * w]))
            self.encoder.bias.copy_(torch.stack([-variance * (w * b).sum() / noise, (1.5 * variance.sqrt()).log()]))

    def fit_statistics(self, x):
        pass
"""


def test_the_bounds_of_a_linear_autoencoder_are_as_far_from_the_density_as_they_must_be(command, tmp_path):
    """log p is that of N(b, w w^T + 0.04 I). q has r = 1.5 times the posterior's standard deviation.

    The gap of the ELBO is KL(q || p(z | x)) = (r^2 - 1 - log r^2) / 2, and that of IWAE-K about Var(w) / 2K with
    Var(w) = r^2 / sqrt(2 r^2 - 1) - 1. Two comparisons at 4 standard errors: false alarms in 1e-4 of the seeds.
    """
    (tmp_path / "linear.py").write_text(LINEAR)
    x = np.clip(0.3 * np.random.default_rng(0).standard_normal((400, 3)), -1, 1).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=x[:100], x_val=x[100:200], x_test=x[200:])
    own, run = "+plugins=[linear]", tmp_path / "run"
    data = ("data=arrays", "data.path=data.npz", "data.range=[-1,1]")
    settings = (
        "model=vae",
        "model.autoencoder=null",
        "model.autoencoder={_target_:linear.LinearVAE}",
        "model.lr=1e-12",
    )
    steps = ("trainer.max_steps=1", "trainer.val_check_interval=1", "callbacks.samples=null", "logger=none")
    done = command("train", own, *data, *settings, *steps, f"hydra.run.dir={run}", cwd=tmp_path)
    assert done.status == 0, done.err
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", own, ckpt, "importance=64", "draws=20", "n=50", "out=scores", cwd=tmp_path)
    assert done.status == 0, done.err
    w, b = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.1, 0.0, -0.1])
    law = torch.distributions.MultivariateNormal(b, torch.outer(w, w) + 0.04 * torch.eye(3))
    scores = {name: column(tmp_path / "scores", name) for name in ("index", "elbo", "iwae", "iwae_error")}
    exact = law.log_prob(torch.from_numpy(x[200:][scores["index"].astype(int)])).numpy()
    variance = 1.5**2 / (2 * 1.5**2 - 1) ** 0.5 - 1
    for name, gap in (("elbo", 0.5 * (1.5**2 - 1 - math.log(1.5**2))), ("iwae", variance / 128)):
        off = exact - scores[name] - gap
        assert abs(off.mean()) < 4 * off.std() / 50**0.5, name
        assert off.std() < 0.05
    z = (exact - scores["iwae"] - variance / 128) / scores["iwae_error"]  # about normal
    assert 0.6 < (z**2).mean() ** 0.5 < 1.5
    report = read(tmp_path / "scores")
    assert report["nats_per_dim"] == report["iwae"]["nats_per_dim"]
    assert report["order"][0]["holds"]
    assert "IWAE-64 is tighter than the ELBO" in done.out


def test_a_diffusion_model_has_all_three(command, trained, tmp_path):
    """The flow, the ELBO and IWAE in one table; those of the chain are what the library's chain has."""
    model = GenerativeModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    flow = ("rtol=1e-2", "atol=1e-2", "elbo.draws=4", "elbo.steps=4", "importance=3", "n=6", "batch_size=4")
    done = command("likelihood", ckpt, *flow, "elbo.decoder=dequantised", "out=scores", cwd=tmp_path)
    assert done.status == 0, done.err
    report, items = read(tmp_path / "scores"), [int(row["index"]) for row in rows_of(tmp_path / "scores")]
    names = [(found["below"], found["above"]) for found in report["order"]]
    assert names == [("chain_elbo", "iwae"), ("elbo", "log_prob"), ("iwae", "log_prob")]
    assert report["chain_steps"] == 4
    x, bins = in_bins(build(model.data["config"]).prepare().tensor("test")[items], 17, items)
    found = bound(DiffusionChain(model.denoiser, [1, 8, 8], 4), x.double(), 1, 3, seeds=items)
    np.testing.assert_allclose(column(tmp_path / "scores", "iwae"), found.log_prob + bins, rtol=1e-5)
    np.testing.assert_allclose(column(tmp_path / "scores", "chain_elbo"), found.elbo + bins, rtol=1e-5)


@pytest.mark.slow
def test_exact_elbo_and_iwae_are_ordered_as_theory_says(command, tmp_path):
    """A perceptron of the digits, trained with dequantisation: exact log p, the ELBO and IWAE-8 of 1,000 steps."""
    run = tmp_path / "run"
    training = ("experiment=digits_likelihood", "network.width=128", "trainer.max_steps=1000", "callbacks.samples=null")
    done = command("train", *training, "trainer.val_check_interval=500", f"hydra.run.dir={run}", cwd=tmp_path)
    assert done.status == 0, done.err
    settings = (
        "elbo.decoder=dequantised",
        "elbo.steps=1000",
        "elbo.draws=256",
        "importance=8",
        "n=32",
        "batch_size=32",
    )
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, *settings, f"out={tmp_path / 'scores'}", cwd=tmp_path)
    assert done.status == 0, done.err
    scores = {name: column(tmp_path / "scores", name) for name in ("chain_elbo", "elbo", "iwae", "log_prob")}
    for below, above in (("chain_elbo", "iwae"), ("elbo", "iwae"), ("iwae", "log_prob")):
        gap = scores[above] - scores[below]
        assert gap.mean() > -3 * gap.std() / 32**0.5, (below, above)
    assert all(found["holds"] for found in read(tmp_path / "scores")["order"])
