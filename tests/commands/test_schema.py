"""Configurations are checked once, before a command begins: one message that names the key, or a run."""

import math
import time

import pytest
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf
from schema_cases import GIVEN, accepted_lists, composed, keys_of, override_lists, refusal, trains_or_says_why

from sde_diffusion.checks.hints import Count, at_least, fits, words
from sde_diffusion.commands.config_checks import ConfigChecks
from sde_diffusion.commands.schema import COMMANDS
from sde_diffusion.errors import UserError

WRONG = {
    "ckpt=7": "ckpt must be text or null; got ckpt=7 (text made of digits needs quotes: \"ckpt='7'\")",
    "network=null": "network=null: choose network= from adm, ddpm, ddpmpp, digits",
    "logger=5": "logger=5: choose logger= from csv, none, wandb",
    "+sde=[vp,3]": "choose sde= from cosine",
    "callbacks.ema=3": "callbacks.ema must be null, or describe an object of class Callback",
    "callbacks.ema.decay=2": "callbacks.ema.decay must lie in [0, 1]",
    "callbacks.samples.n=0": "callbacks.samples.n must be an integer of at least 1",
    "callbacks.progress.refresh_every=0": "callbacks.progress.refresh_every must be an integer of at least 1",
    "+callbacks.mine={_target_: no.such.Thing}": "callbacks.mine._target_=no.such.Thing: ",
    "+callbacks.mine={_target_: lightning.pytorch.callbacks.EarlyStoping}": "(did you mean EarlyStopping?)",
    "+callbacks.mine={_target_: os.system}": "must name a class, MODULE.CLASS; got callbacks.mine._target_=os.system",
    "+logger.x={_target_: sde_diffusion.sde.VPSDE}": "logger.x._target_ must name a class that extends Logger; got",
    "+plugin=[mine]": "unknown key 'plugin' (did you mean plugins?); allowed: callbacks, ",
    "data": "'data' is not KEY=VALUE: choose data= from arrays, ",
    "data={name:x}": "unknown key 'data.name': data=digits has no name, unlike ",
    "network.patch_size=3": "unknown key 'network.patch_size' (did you mean network.patch?)",
    "patch_size=3": "unknown key 'patch_size' (did you mean network.patch?)",
    "fid=true": "unknown key 'fid' (evaluate computes it: metrics=[frechet])",
    "resume=last.ckpt": "unknown key 'resume' (did you mean ckpt?)",
    "labels=true": "unknown key 'labels' (did you mean conditional?)",
    "sampler.stps=3": "unknown key 'sampler.stps' (did you mean sampler.steps?)",
    "sampler.steps=0": "sampler.steps cannot be given with dopri5, which chooses its own steps by rtol and atol; got 0",
    "sampler.method=eulr": "got 'eulr' (did you mean euler?); or give an ODEMethod",
    "trainer.devices=[a]": "got trainer.devices=[a]",
    "logger.csv.folder=3": "logger.csv.folder must be text",
    "model=null": "model=null: choose model= from classifier, ",
    "model=gan": "model=gan is not a choice; choose model= from classifier",
    "model._target_=sde_diffusion.sde.VPSDE": "which is neither sde_diffusion.training.ScoreModel",
    "model.betas=[0.9]": "model.betas must be a list of 2 finite numbers; got model.betas=[0.9]",
    "model.betas=[0.9,x]": "model.betas must be a list of 2 finite numbers",
    "model.compile=abc": "model.compile must be true or false; got model.compile=abc",
    "model.warmup_steps=1.5": "model.warmup_steps must be an integer; got model.warmup_steps=1.5",
    "model.lr=nan": "model.lr must be a finite number; got model.lr=nan",
    "model.lr=-1": "model.lr must be positive; got -1",
    "model.lr=${nothing}": "model.lr: Interpolation key 'nothing' not found",
    "+model.n_classes=3": "model.n_classes: ScoreModel takes no n_classes",
    "data.batch_size=1.5": "data.batch_size must be an integer; got data.batch_size=1.5",
    "data.batch_size=100000000000000000000": "data.batch_size must be an integer",
    "data.batch_size=100000000": "an epoch of 25000000000 items",
    "data.flip=inf": "data.flip must be true or false; got data.flip=inf",
    "data=moons data.n_train=1": "data.n_train must be an integer of at least 2",
    "data=cifar10": "add data.root=VALUE (folder with train-00000-of-….parquet and test-00000-of-….parquet, perhaps",
    "data=folder": "data.root must be given: add data.root=VALUE",
    "data=folder data.root=3": "data.root must be text; got data.root=3",
    "trainer.max_time=[1]": "trainer.max_time must be a time DAYS:HOURS:MINUTES:SECONDS",
    "trainer.max_time=00:00:00:00": "trainer.max_time must be a time",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val must be a number of at least 0 or null",
    "trainer.gradient_clip_val=inf": "trainer.gradient_clip_val must be a number of at least 0 or null",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches must be an integer of at least 1",
    "trainer.log_every_n_steps=-1": "trainer.log_every_n_steps must be an integer of at least 0",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch must be an integer of at least 1 or null",
    "+trainer.max_epochs=0": "trainer.max_epochs must be an integer, -1 (no limit) or at least 1",
    "+trainer.callbacks=[]": "trainer.callbacks: Trainer takes no callbacks",
    "+trainer.max_step=5": "trainer.max_step: Trainer takes no max_step (did you mean max_steps?)",
    "network.channels=0": "network.channels must be an integer of at least 1; got 0",
    "network.embedding_dim=7": "network.embedding_dim must be even and at least 4; got 7",
    "network.embedding=foo": "network.embedding",
    "network._target_=os.system": "network._target_: 'os.system' is not a class of sde_diffusion",
    "denoiser.sigma_data=-1": "denoiser.sigma_data (the data's standard deviation) must be positive",
    "denoiser=v sde=ve": "denoiser.prediction 'v' is defined on variance-preserving paths only",
    "sde.beta_min=30": "sde: VPSDE needs 0 < beta_min <= beta_max",
    "objective=vdm": "VPSDE has no schedule to learn: take sde=learned for objective=vdm, or objective=elbo",
    "model=vdm sde=learned sde.log_snr_max=-6": "-60 <= log_snr_min < log_snr_max <= 60; got -5 and -6",
    "model=vdm sde=learned sde.log_snr_max=61": "-60 <= log_snr_min < log_snr_max <= 60; got -5 and 61",
    "model=vdm sde=learned sde.schedule=knot": "sde.schedule must be one of linear, knots, net; got 'knot'",
    "objective.times.std=0": "objective.times.std must be positive",
    "sampler.grid={_target_:sde_diffusion.sde.KarrasRho,rho:x}": "sampler.grid.rho must be a finite number",
    "sampler.grid=3": "sampler.grid must be text, of class Grid, {_target_: CLASS, ...} or null; got sampler.grid=3",
    "sampler.grid=karras": "grid must be one of uniform_time, ",
    "~seed": "seed is needed: give seed=VALUE",
    "~model": "model is needed: choose model= from classifier, ",
    "~denoiser.network": "denoiser.network must be given",
    "~sde._target_": "sde must describe an object of class SDE: choose sde= from cosine",
    "seed=-1": "seed must be an integer from 0 to 4294967295; got seed=-1",
    "conditional=null": "conditional must be true or false; got conditional=null",
}
ELSEWHERE = {
    "sample": {
        "n=0": "n must be",
        "film=-1": "film must be",
        "ckpt=''": "ckpt must be text",
        "conditions=3": "conditions must be",
    },
    "evaluate": {
        "confidence=1": "confidence must be a number between 0 and 1",
        "metrics.prdc.k=0": "metrics.prdc.k must be an integer of at least 1",
        "metrics=[]": "metrics is needed: choose metrics= from energy",
        "resize=1": "resize must be true or false",
        "++extractor._target_=sde_diffusion.metrics.Pixls": "(did you mean Pixels?)",
        "reference=foo": "reference must be one of sampled, fixed",
        "data=mnist": "data.root must be given",
        "data.root=5": "data.root must be text or null; got data.root=5",
    },
    "likelihood": {
        "elbo.draws=0": "elbo.draws must be an integer of at least 1",
        "elbo.t_end=nan": "elbo.t_end must be a finite number or null",
        "rtol=0": "rtol must be a positive number",
        "trace=exat": "exact or settings {_target_: CLASS, ...}; got trace=exat (did you mean exact?)",
        "++trace._target_=sde_diffusion.sde.VPSDE": "must name a class that extends Trace; got trace._target_=sde_",
        "++trace._target_=sde_diffusion.density.Hutch": "; sde_diffusion.density has ",
        "++prior._target_=os.system": "prior._target_: 'os.system' is not a class",
        "++elbo.decoder={_target_:sde_diffusion.density.LevelDecoder,levls:3}": "no levls (did you mean levels?)",
        "elbo.grid=5": "elbo.grid must be one of uniform_time, ",
        "steps=10": "steps cannot be given with adams, which chooses its own steps",
        "split=[1]": "split must be text or a list of text",
    },
    "nfe_fid": {
        "nfe=[]": "nfe must be a list",
        "exact=1": "exact must be true or false",
        "samplers.pc.each=x": "samplers.pc.each",
    },
    "guidance": {
        "scales=[-1]": "scales must be a list of finite numbers of at least 0 (1: conditional, 0: unconditional)",
        "intervals=[[2,1]]": "[low,high] in sigma/alpha with 0 <= low < high",
    },
    "sweep": {
        "n=0": "n must be",
        "file=3": "file must be text",
        "seed=-1": "seed must be an integer of at least 0",
    },
}


@pytest.mark.parametrize("typed", WRONG)
def test_refused(typed):
    message = refusal("train", *(typed.split() if typed.startswith("data=") or " sde=" in typed else [typed]))
    assert message is not None
    assert "\n" not in message
    assert WRONG[typed] in message


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("callbacks.ema=3", "callbacks.ema must be null, or describe an object of class Callback"),
        ("callbacks.ema._target_=no.such", "callbacks.ema._target_=no.such: No module named 'no'"),
        ("callbacks.last.depth=3", "callbacks.last.depth: LastCheckpoint takes no depth"),
    ],
)
def test_refused_on_resuming(typed, words):
    """Before the checkpoint is read, which has the other settings."""
    assert words in refusal("train", "ckpt=run/checkpoints/last.ckpt", f"++{typed}")


@pytest.mark.parametrize(
    ("command", "typed"), [(command, typed) for command in ELSEWHERE for typed in ELSEWHERE[command]]
)
def test_refused_by_the_other_commands(command, typed):
    message = refusal(command, typed)
    assert message is not None
    assert "\n" not in message
    assert ELSEWHERE[command][typed] in message


@pytest.mark.parametrize("command", GIVEN)
def test_every_key_is_known_to_the_schema(command):
    """Everything in a configuration file is checked: top-level keys, and the arguments below."""
    assert COMMANDS.keys() == GIVEN.keys()
    cfg = composed(command, GIVEN[command])
    checks = ConfigChecks(cfg)
    COMMANDS[command](checks)
    assert set(cfg) - checks.seen <= {"out", "ckpt"}
    for key in keys_of(cfg):
        if "." in key and not key.endswith(("_target_", ".options")):
            changed = cfg.copy()
            OmegaConf.update(changed, key, {"a": {"b": 1}}, merge=False)
            with pytest.raises(UserError):
                COMMANDS[command](ConfigChecks(changed))


def test_integers_may_be_written_as_fractions():
    cfg = composed(
        "train", ["trainer.max_steps=10.0", "seed=3.0", "model.warmup_steps=5.0", "trainer.gradient_clip_val=1.0"]
    )
    COMMANDS["train"](ConfigChecks(cfg))
    values = (cfg.trainer.max_steps, cfg.seed, cfg.model.warmup_steps, cfg.trainer.gradient_clip_val)
    assert values == (10, 3, 5, 1.0)
    assert [type(value) for value in values] == [int, int, int, float]
    cfg = composed("likelihood", ["ckpt=x", "elbo.steps=5.0", "elbo.t_end=1.0"])
    COMMANDS["likelihood"](ConfigChecks(cfg))
    assert [type(value) for value in (cfg.elbo.steps, cfg.elbo.t_end)] == [int, float]


def test_what_stands_in_for_the_data_stays_out_of_the_configuration():
    cfg = composed("train", [])
    before = OmegaConf.to_container(cfg)
    COMMANDS["train"](ConfigChecks(cfg))
    assert OmegaConf.to_container(cfg) == before


def test_costs_little():
    """Processor time that checking a default run takes; the best of ten, which other programs do not move."""
    cfg, seconds = composed("train", []), []
    for _ in range(10):
        begin = time.process_time()
        COMMANDS["train"](ConfigChecks(cfg))
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.05


def test_hints():
    assert fits(3.0, int) and fits(3, float) and fits(None, int | None) and fits([1, 2], tuple[int, ...])  # noqa: PT018
    assert not any((fits(True, int), fits(1, bool), fits(math.nan, float), fits("3", int), fits([1], tuple[int, int])))
    assert not any(
        (fits(2**63, int), fits(0, Count), fits("", str), fits("ab", list[str]), fits({"a": 1}, dict[str, str]))
    )
    assert words(list[Count]) == "a list of integers of at least 1"
    assert words(Count | None) == "an integer of at least 1 or null"
    assert at_least(2, 5).words == "an integer from 2 to 5"


@pytest.mark.parametrize(
    "command", [*GIVEN][:2] + [pytest.param(name, marks=pytest.mark.slow) for name in [*GIVEN][2:]]
)
def test_any_overrides(command):
    """One message, or none; and never another exception, which `refusal` does not catch."""

    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(override_lists(command))
    def look(typed):
        message = refusal(command, *typed)
        assert message is None or (message and "\n" not in message)

    look()


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_not_refused_trains(number, command, tmp_path):
    trains_or_says_why(command, tmp_path, accepted_lists(5)[number])


@pytest.mark.parametrize(
    "typed", ["network=null", "callbacks.ema=3", "model.betas=[0.9]", "out=${nothing}", "hydra.run.dir=null"]
)
def test_a_refused_command(typed, command, tmp_path):
    """One message through the command itself, and nothing but a log."""
    done = command(
        "train" if typed[0] != "o" else "sample", *(TINY if typed[0] != "o" else ["ckpt=x"]), typed, cwd=tmp_path
    )
    assert (done.status, done.err.count("\n"), done.err[:7]) == (1, 1, "error: "), done.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]
