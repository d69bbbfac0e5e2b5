"""Classes of a user's module, loaded on the command line by +plugins=[my_parts], and never by a file."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from damage_cases import saved, write
from sweep_cases import run_json

from sde_diffusion import plugins
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.training import GenerativeModel

MODULE = """
import dataclasses
from subprocess import Popen
import torch
from sde_diffusion import SDE, ExactTrace, GaussianDecoder, GaussianPrior, GenerativeModel, Sampler, UniformTime
from sde_diffusion.sampling import ODEMethod, Samples


@dataclasses.dataclass(frozen=True)
class Polynomial(SDE):
    _: dataclasses.KW_ONLY
    power: float = 2.0
    t_min: float = 1e-4
    t_max: float = 0.99

    def log_alpha(self, t):
        return torch.log1p(-t**self.power)

    def log_sigma(self, t):
        return t.log()


class Euler(Sampler):
    def __init__(self, steps=50, denoise=True, t_end=None):
        super().__init__(denoise, t_end)
        self.steps = steps

    def walk(self, x, run):
        times = UniformTime().times(run.sde, self.steps + 1, run.t_end)
        run.plan(times)
        for t, s in zip(times[:-1], times[1:]):
            run.visit(x, t)
            x = x + float(s - t) * run.predict(x, t).velocity
        run.visit(x, times[-1])
        return run.predict(x, times[-1]).x0 if self.denoise else x


class EulerMethod(ODEMethod):
    adaptive = False

    def solve(self, solver, flow, y, ends, norm):
        size = (ends.end - ends.start) / solver.steps
        for n in range(solver.steps):
            y = y + size * flow.drift(ends.start + n * size, y)
        return y


class Scaled(ExactTrace):
    def __init__(self, probes, scale=2.0):
        super().__init__()
        self.probes, self.scale = probes, scale

    def divergence(self, products, vectors):
        return self.scale * super().divergence(products, vectors)


class Lifted(GaussianPrior):
    def __init__(self, sde, nats=0.0):
        super().__init__(0.0, float(sde.sigma(sde.t_max)) ** 2)
        self.nats = nats

    def _log_prob(self, x, spread):
        return super()._log_prob(x, spread) + self.nats


class Confident(GaussianDecoder):
    def __init__(self, nats=0.0):
        self.nats = nats

    def expected(self, sde, t_end, x, noise):
        return super().expected(sde, t_end, x, noise) + self.nats


class Halves(torch.nn.Module):
    num_features = 2

    def __init__(self, shape, by=2.0):
        super().__init__()
        self.shape, self.by = shape, by

    def forward(self, x):
        return x.flatten(1)[:, :2] / self.by


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Linear(3, 2)

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


class Gaussian(GenerativeModel):
    '''N(mean, std^2) by maximum likelihood.'''

    def __init__(self, start=0.0, lr=0.05, data=None, **others):
        super().__init__(lr, data=data, **others)
        self.save_hyperparameters({"start": start})
        self.mean = torch.nn.Parameter(torch.full(data["shape"], start))
        self.log_std = torch.nn.Parameter(torch.zeros(data["shape"]))

    def _losses(self, x):
        law = torch.distributions.Normal(self.mean, self.log_std.exp())
        return -law.log_prob(x).flatten(1).sum(1)

    def training_loss(self, batch):
        return self._losses(self.filled(batch["x"])).mean()

    def validation_losses(self, batch, generator):
        return {"losses": self._losses(batch["x"])}

    def draw_samples(self, sampler, denoiser, shape, **options):
        return Samples(torch.distributions.Normal(self.mean, self.log_std.exp()).sample(shape[:1]), nfe=0)
"""
OWN = "+plugins=[my_parts]"
PARTS = ("data=moons", "sde._target_=my_parts.Polynomial", "sde.power=3", "sampler._target_=my_parts.Euler")
CKPT = "ckpt=run/checkpoints/last.ckpt"
ON_A_MODEL = {
    "sample": ("sampler._target_=my_parts.Euler", "sampler.steps=3", "n=3", "out=drawn"),
    "evaluate": (
        "sampler=ddim",
        "sampler.steps=2",
        "n=30",
        "metrics=[energy]",
        "out=scores",
        "extractor._target_=my_parts.Halves",
        "extractor.by=4",
    ),
    "likelihood": (
        *(
            "steps=2",
            "n=3",
            "elbo.draws=8",
            "elbo.t_end=0.01",
            "out=likelihood",
            "method._target_=my_parts.EulerMethod",
        ),
        *("trace._target_=my_parts.Scaled", "trace.scale=1.0", "grid._target_=sde_diffusion.sde.UniformTime"),
        *("prior._target_=my_parts.Lifted", "prior.nats=3.0"),
        *("elbo.decoder._target_=my_parts.Confident", "elbo.decoder.nats=7.0"),
    ),
    "train": ("trainer.max_steps=32",),
}


@pytest.fixture(scope="module")
def own(command, tmp_path_factory):
    """A folder with my_parts.py and a run with its path and its sampler; and what the run printed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_parts.py").write_text(MODULE)
    done = command("train", OWN, *TINY, *PARTS, "hydra.run.dir=run", cwd=folder)
    assert done.status == 0, done.err
    return folder, done.out


@pytest.fixture
def in_python(own, monkeypatch):
    """my_parts.py, loaded as a plugin, and unloaded at the end."""
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(own[0])
    plugins.load("my_parts")
    yield sys.modules["my_parts"]
    del sys.modules["my_parts"]


def test_what_is_trained_is_ones_own(own):
    """The default path's settings are removed; the commands printed at the end name the module."""
    folder, printed = own
    kept = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["denoiser"]["sde"] == {"_target_": "my_parts.Polynomial", "power": 3}
    assert run_json(folder / "run")["config"]["sampler"] == {"_target_": "my_parts.Euler", "steps": 5}
    assert "path     Polynomial(t_min=0.0001, t_max=0.99, power=3.0)" in printed
    assert printed.count('"+plugins=[my_parts]" ckpt=') == 3


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_the_commands_take_it_when_it_is_named_again(name, own, command):
    folder, _ = own
    refused = command(name, CKPT, *ON_A_MODEL[name], cwd=folder)
    assert (refused.status, refused.err.count("\n")) == (1, 1), refused.err
    assert "is not a class of sde_diffusion; to use the class" in refused.err
    assert "of the module my_parts, if you trust it" in refused.err
    assert 'add "+plugins=[my_parts]"' in refused.err
    done = command(name, OWN, CKPT, *ON_A_MODEL[name], cwd=folder)
    assert done.status == 0, done.err


def test_likelihood_and_evaluate_compute_with_ones_own_parts(own, command):
    """The same parts of the library, chosen by name, give the same numbers but for what ones own add to them."""
    folder, _ = own
    parts = ("method=euler", "trace=exact", "grid._target_=sde_diffusion.sde.UniformTime")
    for settings in ((OWN, *ON_A_MODEL["likelihood"]), (OWN, *ON_A_MODEL["likelihood"][:4], "out=named", *parts)):
        done = command("likelihood", CKPT, *settings, "overwrite=true", cwd=folder)
        assert done.status == 0, done.err
    mine, named = (list(csv.DictReader((folder / f"{name}/likelihood.csv").open())) for name in ("likelihood", "named"))
    for column, added in (("log_prob", 3), ("elbo", 10), ("elbo_reconstruction", 7)):
        difference = [float(one[column]) - float(other[column]) for one, other in zip(mine, named, strict=True)]
        assert difference == pytest.approx([added] * 3, abs=1e-6), column
    done = command("evaluate", OWN, CKPT, *ON_A_MODEL["evaluate"], "overwrite=true", cwd=folder)
    assert done.status == 0, done.err
    report = json.loads((folder / "scores/metrics.json").read_text())
    assert (report["extractor"], report["features"]) == ("my_parts.Halves(by=4)", 2)


def test_samples_are_those_of_the_class_itself(own, command, in_python):
    folder, _ = own
    drawn = command("sample", "plugins=my_parts", CKPT, *ON_A_MODEL["sample"], "overwrite=true", cwd=folder)
    assert drawn.status == 0, drawn.err
    model = GenerativeModel.load_from_checkpoint("run/checkpoints/last.ckpt")
    assert float(model.denoiser.sde.alpha(torch.tensor(0.5, dtype=torch.float64))) == 1 - 0.5**3
    x = in_python.Euler(steps=3)(model.denoiser, (3, 2), seeds=[0, 1, 2]).x
    np.testing.assert_allclose(np.load("drawn/samples.npz")["points"], x, atol=1e-5)


GAUSSIAN = ("data=moons", "model._target_=my_parts.Gaussian", "model.start=0.25", "trainer.max_steps=300")


def test_a_model_that_is_no_denoiser(own, command, in_python):
    """Trained, validated, stored, resumed, loaded and drawn from by the same commands, unless they need a denoiser."""
    folder, _ = own
    words = ("trainer.val_check_interval=100", "sde=ve", "hydra.run.dir=gaussian")
    done = command("train", OWN, *GAUSSIAN, *words, cwd=folder)
    assert done.status == 0, done.err
    assert "model    my_parts.Gaussian, 4 parameters" in done.out
    assert "a Gaussian has no sde: these settings have no effect" in done.out
    assert "sde_diffusion.sample" in done.out.partition("Next:")[2]
    assert "sde_diffusion.likelihood" not in done.out
    assert (folder / "gaussian/samples/step-0000300.png").is_file()
    assert not (folder / "gaussian/noise_levels.csv").exists()
    ckpt = "gaussian/checkpoints/last.ckpt"
    done = command("train", OWN, f"ckpt={ckpt}", "trainer.max_steps=600", cwd=folder)
    assert done.status == 0, done.err
    model = GenerativeModel.load_from_checkpoint(folder / ckpt)
    assert model.hparams["start"] == 0.25
    x = build(model.data["config"]).tensor("train")  # whose moments the fit has; those of a batch are off by 0.04
    torch.testing.assert_close(model.mean.detach(), x.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(model.log_std.exp().detach(), x.std(0), atol=0.05, rtol=0)
    done = command("sample", OWN, f"ckpt={ckpt}", "n=5", "out=gaussian/drawn", cwd=folder)
    assert done.status == 0, done.err
    assert np.load(folder / "gaussian/drawn/samples.npz")["points"].shape == (5, 2)
    for name, more, why in (
        ("likelihood", (), ", which has neither a flow nor a bound on log p"),
        ("restore", ("operator=grey",), ", and restore needs a denoiser"),
        ("sample", ("film=1",), ", and film= needs a denoiser"),
    ):
        done = command(name, OWN, f"ckpt={ckpt}", "out=refused", *more, cwd=folder)
        assert done.err == f"error: {ckpt} contains a Gaussian (my_parts.Gaussian, 4 parameters){why}\n"
        assert not (folder / "refused").exists()
    done = command("train", OWN, *GAUSSIAN, "guidance=cfg", "hydra.run.dir=refused", cwd=folder)
    assert done.err == "error: guidance= needs a denoiser, and a Gaussian has none: leave it out\n"
    assert not (folder / "refused").exists()


BROKEN = {
    "no_such": ("", "there is no module no_such, neither in this folder"),
    "my_part": ("", "there is no module my_part (did you mean my_parts?)"),
    "os": ("", "'os' is not the name of a user's module"),
    "sde_diffusion.storage": ("", "is not the name of a user's module"),
    "raises": ("import torch\n\ntorch.zeros(3).reshape(2)\n", "raises.py, line 3: RuntimeError: shape"),
    "misspelt": ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax (misspelt.py, line 2)"),
    "lacks": ("import not_installed\n", "lacks.py, line 1: ModuleNotFoundError: No module named 'not_installed'"),
    "ends": ("import sys\nsys.exit(3)\n", "ends.py, line 2: SystemExit: 3"),
}


@pytest.mark.parametrize("module", BROKEN)
def test_a_module_that_cannot_be_used(module, in_python, tmp_path, monkeypatch):
    text, words = BROKEN[module]
    if text:
        monkeypatch.chdir(tmp_path)
        (tmp_path / f"{module}.py").write_text(text)
    with pytest.raises(UserError) as raised:
        plugins.load(module)
    assert words in str(raised.value)
    assert plugins.settings() == {"+plugins": ["my_parts"]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such", "plugins: there is no module no_such"),
        ("[]", "plugins must be the name of a module, or a list of them"),
    ],
)
def test_one_message_of_a_command(value, words, own, command):
    done = command("sample", f"+plugins={value}", CKPT, cwd=own[0])
    assert (done.status, done.err.count("\n"), words in done.err) == (1, 1, True), done.err


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("my_parts.Polynomal", "my_parts has no class Polynomal of its own (did you mean Polynomial?); it has"),
        ("my_parts.Popen", "my_parts has no class Popen of its own"),  # which it only imports
        ("my_parts.Euler", "sde._target_ must name a class that extends SDE; got sde._target_=my_parts.Euler"),
    ],
)
def test_a_module_without_the_class(named, words, own, command):
    done = command("train", OWN, *TINY, f"sde._target_={named}", "hydra.run.dir=other", cwd=own[0])
    assert (done.status, done.err.count("\n"), words in done.err) == (1, 1, True), done.err


def test_a_checkpoint_names_no_module(own, command):
    """Its entry `plugins` is ignored, and the module of its class is not imported."""
    folder, _ = own
    kept = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    kept["sde_diffusion"]["run"]["plugins"] = ["my_parts", "evil"]
    kept["hyper_parameters"]["denoiser"]["sde"] = {"_target_": "evil.Path"}
    kept["sde_diffusion"]["run"]["sde"] = {"_target_": "evil.Path"}
    write(folder / "evil.ckpt", saved(kept), sealed=True)
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()\nclass Path: pass\n")
    for words in (("sample", "out=x"), ("train",), ("sample", OWN, "out=x"), ("train", OWN)):
        done = command(*words, "ckpt=evil.ckpt", cwd=folder)
        assert done.status == 1
        assert "is not a class of sde_diffusion" in done.err
        assert ("the class Path of the module evil" in done.err) or words == (
            "train",
        )  # whose sampler is looked at first
    assert 'add "+plugins=[my_parts,evil]"' in done.err
    assert not (folder / "canary").exists()


def test_a_folder_of_configurations_of_ones_own(own, command):
    """`sde=mine`, beside the package's choices."""
    folder, _ = own
    for group, node in (("sde", {"_target_": "my_parts.Polynomial"}), ("network", {"_target_": "my_parts.Net"})):
        (folder / "conf" / group).mkdir(parents=True, exist_ok=True)
        (folder / "conf" / group / "mine.yaml").write_text(yaml.safe_dump(node))
    short = [word for word in TINY if not word.startswith("network.")]
    words = ("--config-dir=conf", OWN, *short, "data=moons", "sde=mine", "network=mine", "hydra.run.dir=run_mine")
    done = command("train", *words, cwd=folder)
    assert done.status == 0, done.err
    done = command("train", "--config-dir=conf", "sde=mina", cwd=folder)
    assert "choose sde= from cosine, edm, learned, mine, rectified" in done.err


def test_in_python(in_python, monkeypatch):
    node = {"_target_": "my_parts.Polynomial", "power": 2}
    assert build(node) == in_python.Polynomial(power=2.0)
    monkeypatch.setattr(plugins, "_named", [])
    with pytest.raises(
        UserError, match=r"_target_: my_parts.Polynomial is not a class of sde_diffusion; to use the class Polynomial"
    ):
        build(node)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes(strategy, own, start):
    """Over gloo, and resumed."""
    folder, _ = own
    two = ("trainer.devices=2", "trainer.accelerator=cpu", f"trainer.strategy={strategy}")
    for words in ((*PARTS, f"hydra.run.dir={strategy}"), (f"ckpt={strategy}/checkpoints/last.ckpt",)):
        longer = "trainer.max_steps=40" if "ckpt" in words[0] else "trainer.max_steps=20"
        short = () if "ckpt" in words[0] else TINY
        process = start("train", OWN, *short, *words, *two, longer, cwd=folder)
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, out + err
    assert run_json(folder / strategy)["finished"] is not None


@pytest.mark.slow
def test_in_a_sweep(own, start):
    folder, _ = own
    short = [word for word in TINY if "width" not in word]
    words = ("file=grid", "n=2", "out=swept", "--", OWN, *short, *PARTS, "trainer.max_steps=10")
    process = start("sweep", *words, "trainer.val_check_interval=5", cwd=folder)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, out + err
    with (folder / "swept" / "runs.csv").open(newline="") as file:
        assert all("+plugins=[my_parts]" in row["command"] for row in csv.DictReader(file))
