"""Sweep files that wandb accepts, and its agent's command lines."""

import csv
import math
import re
import sys

import hydra
import pytest
import scipy.stats
import yaml
from omegaconf import OmegaConf
from sweep_cases import written
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from sde_diffusion.commands import configurations, sweep
from sde_diffusion.commands.sweep_file import read_sweep
from sde_diffusion.errors import UserError

FILES = sorted((configurations.config_folder() / "sweeps").glob("*.yaml"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_a_grid_and_a_bayesian_search_are_there():
    methods = {yaml.safe_load(path.read_text())["method"] for path in FILES}
    assert methods >= {"grid", "bayes"}
    assert "sweeps" not in configurations.choices("train")  # which are no group of the configuration


@every_file
def test_the_files_are_wandbs(path, trained):
    """Read by wandb, swept keys are the configuration's, the metric is one that a run logs."""
    raw = load_sweep_config(str(path))
    described = read_sweep(path)
    assert described.parameters.keys() == raw["parameters"].keys()
    configurations.register_resolvers()
    with hydra.initialize_config_dir(str(configurations.config_folder()), version_base="1.3"):
        for point in described.points(3, seed=0):
            words = described.agent_command(point)
            overrides = words[words.index("sde_diffusion.train") + 1 :]
            cfg = hydra.compose("train", overrides=overrides, return_hydra_config=True)
            chosen = cfg.hydra.runtime.choices  # of the groups
            assert {key: chosen.get(key, OmegaConf.select(cfg, key)) for key in point if point[key] is not None} == {
                key: value for key, value in point.items() if value is not None
            }
    with (trained / "metrics.csv").open(newline="") as file:
        assert raw["metric"]["name"] in csv.DictReader(file).fieldnames
    assert raw["metric"]["goal"] == "minimize"
    # The loss is the error of something else where one of these changes.
    assert not {"sde", "objective", "data", "model.dequantise"} & raw["parameters"].keys()
    if raw["method"] == "bayes":
        assert raw["early_terminate"] == {"type": "hyperband", "min_iter": 3, "eta": 2}
        steps, interval = (raw["parameters"][f"trainer.{key}"]["value"] for key in ("max_steps", "val_check_interval"))
        assert raw["early_terminate"]["min_iter"] < steps // interval  # there is something left to stop


@every_file
def test_command_lines_are_the_agents(path, tmp_path, monkeypatch):
    """Those that wandb's agent itself would start, for the values that the server would send."""
    issued = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command, **_: issued.append(command) or type("P", (), {})())
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(key, str(tmp_path))
    raw, described = load_sweep_config(str(path)), read_sweep(path)
    agent = wandb_agent.Agent(api=None, queue=None)
    agent._sweep_command = raw["command"]
    points = described.points(3, seed=0)
    for point in points:
        sent = {key: {"value": value} for key, value in point.items()}
        agent._command_run({"run_id": "a", "type": "run", "program": raw["program"], "args": sent})
    assert [described.agent_command(point) for point in points] == issued
    assert issued[0][:5] == ["/usr/bin/env", "python", "-m", "sde_diffusion.train", "logger=wandb"]


def test_a_grid_is_the_product_in_order():
    described = read_sweep(next(path for path in FILES if path.stem == "grid"))
    points = described.points(None, seed=0)
    assert [(point["model.lr"], point["network.width"]) for point in points] == [
        (0.0003, 256),
        (0.0003, 512),
        (0.001, 256),
        (0.001, 512),
        (0.003, 256),
        (0.003, 512),
    ]
    assert described.points(2, seed=5) == points[:2]
    assert described.swept() == ["model.lr", "network.width"]


def test_draws_are_of_their_distributions(tmp_path):
    """Kolmogorov-Smirnov for the continuous ones, each value for the others; a false alarm in a million."""
    parameters = {
        "uniform": {"min": 0.5, "max": 2.0},
        "log": {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.01},
        "steps": {"distribution": "q_uniform", "min": 0.0, "max": 0.4, "q": 0.1},
        "integer_steps": {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8},
        "integer": {"min": 1, "max": 3},
        "listed": {"values": ["a", "b"]},
        "named": {"distribution": "categorical", "values": [1]},
        "constant": {"distribution": "constant", "value": None},
    }
    described = read_sweep(written(tmp_path, method="random", parameters=parameters))
    points = described.points(2000, seed=3)
    columns = {key: [point[key] for point in points] for key in parameters}
    assert scipy.stats.kstest(columns["uniform"], scipy.stats.uniform(0.5, 1.5).cdf).pvalue > 1e-6
    logs = [math.log10(value) for value in columns["log"]]
    assert scipy.stats.kstest(logs, scipy.stats.uniform(-4, 2).cdf).pvalue > 1e-6
    assert set(columns["steps"]) == {0.0, 0.1, 0.2, 0.3, 0.4}
    assert set(columns["integer_steps"]) == {8, 16, 24, 32, 40, 48, 56, 64}
    assert set(columns["integer"]) == {1, 2, 3}
    assert (set(columns["listed"]), set(columns["named"]), set(columns["constant"])) == ({"a", "b"}, {1}, {None})
    assert described.swept() == ["uniform", "log", "steps", "integer_steps", "integer", "listed"]
    assert described.points(5, seed=3) == points[:5]
    assert described.points(5, seed=4) != points[:5]


PARAMETERS = "parameters.model.lr"
BAD = {
    "not a mapping": ([1, 2], "not a sweep file"),
    "another file": ({"lr": 1}, "lacks method and parameters"),
    "an unknown key": ({"paramters": {}}, "unknown key paramters; allowed: program"),
    "an unknown method": ({"method": "magic"}, "grid, random, bayes; got magic"),
    "no metric": ({"metric": None}, "metric must be a mapping with a name"),
    "an unknown goal": ({"metric": {"name": "val/loss", "goal": "min"}}, "minimize, maximize"),
    "another program": ({"program": "train.py"}, "program must be sde_diffusion.train"),
    "an invalid number": (
        {"method": "random", "parameters": {"model.lr": {"min": 0.1, "max": math.inf}}},
        "must be a number below 1e+300",
    ),
    "arguments with hyphens": ({"command": ["${env}", "python", "${args}"]}, "args_no_hyphens"),
    "no runs": ({"run_cap": 0}, "run_cap must be an integer from 1 to 10000 or null; got 0"),
    "no parameters": ({"parameters": {}}, "at least one key"),
    "a bare value": ({"parameters": {"model.lr": 1}}, f"{PARAMETERS} must be a mapping"),
    "no values": ({"parameters": {"model.lr": {"values": []}}}, "needs value or values"),
    "nested": ({"method": "random", "parameters": {"model": {"parameters": {}}}}, "value, or values"),
    "a range on a grid": ({"parameters": {"model.lr": {"min": 0.1, "max": 1.0}}}, "a grid needs value or values"),
    "a word": ({"method": "random", "parameters": {"model.lr": {"min": "1e-3", "max": 1.0}}}, "1.0e-3, not 1e-3"),
    "a fraction": (
        {
            "method": "random",
            "parameters": {"model.lr": {"min": 1.5, "max": 2, "distribution": "int_uniform"}},
        },
        f"{PARAMETERS}.min must be an integer",
    ),
    "upside down": ({"method": "random", "parameters": {"model.lr": {"min": 2.0, "max": 1.0}}}, "min <= max"),
    "a logarithm of 0": (
        {
            "method": "random",
            "parameters": {"model.lr": {"min": 0, "max": 1, "distribution": "log_uniform_values"}},
        },
        "0 < min <= max",
    ),
    "a distribution that is not here": (
        {"method": "random", "parameters": {"model.lr": {"distribution": "beta", "a": 1}}},
        "distribution must be one of uniform",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_sweep(case, tmp_path):
    changes, words = BAD[case]
    if isinstance(changes, list) or "lr" in changes:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(changes))
    else:
        path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        read_sweep(path)
    assert str(path) in str(raised.value)


def test_what_is_no_yaml(tmp_path):
    path = tmp_path / "sweep.yaml"
    for text in ("a: [1", "\xff\xfe"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="is not valid YAML"):
            read_sweep(path)


def test_a_grid_that_cannot_be_listed(tmp_path):
    path = written(tmp_path, parameters={f"model.{key}": {"values": list(range(10))} for key in "abcdefghijkl"})
    with pytest.raises(UserError, match="has 1000000000000 points: give n="):
        read_sweep(path).points(None, seed=0)
    assert len(read_sweep(path).points(3, seed=0)) == 3
    path = written(tmp_path, method="random")
    with pytest.raises(UserError, match="at most 10000"):
        read_sweep(path).points(10**9, seed=0)


ARGS = "${args_no_hyphens}"
COMMANDS = {
    "another interpreter": ["/tmp/python", "-m", "${program}", ARGS],
    "a program in its place": ["${env}", "rm", "-rf", "/", ARGS],
    "code": ["python", "-c", "print(1)", ARGS],
    "code before the module": ["python", "-c", "print(1)", "-m", "${program}", ARGS],
    "an option of the interpreter": ["python", "-X", "importtime", "-m", "${program}", ARGS],
    "a variable before it": ["${env}", "PYTHONPATH=/tmp", "python", "-m", "${program}", ARGS],
    "another module": ["python", "-m", "http.server", ARGS],
    "a shell": ["sh", "-c", "python -m ${program}", ARGS],
    "a line of a shell": "python -m sde_diffusion.train; rm -rf /",
    "a number": 7,
    "arguments twice": ["python", "-m", "${program}", ARGS, ARGS],
    "arguments as JSON": ["python", "-m", "${program}", "${args_json}"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_only_this_packages_program_is_run(case, tmp_path):
    with pytest.raises(UserError, match="this package's own program") as raised:
        read_sweep(written(tmp_path, command=COMMANDS[case]))
    assert '"${args_no_hyphens}"] with program: sde_diffusion.train' in str(raised.value)


def test_what_is_run_is_this_interpreter(tmp_path, monkeypatch):
    """Whatever `python` is first on the path."""
    issued = []
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda words, **_: issued.append(words) or sys.exit(7))
    described = read_sweep(written(tmp_path))
    (point,) = described.points(1, seed=0)
    with pytest.raises(SystemExit):
        sweep._execute(sweep.Run(point, described.agent_command(point), tmp_path / "runs" / "000"))
    assert issued[0][:4] == [sys.executable, "-m", "sde_diffusion.train", "model.lr=0.001"]


SETTINGS = (
    "hydra/launcher=joblib",
    "hydra.run.dir=/tmp",
    "hydra.searchpath=[file:///tmp]",
    "+hydra.callbacks.x._target_=a.b",
    "--config-dir=/tmp",
    "-cn=evil",
    "--config-path",
    "--multirun",
    "plugins=[os]",
    "+plugins=[os]",
    "ckpt=/tmp/a.ckpt",
    "callbacks.samples._target_=os.system",
    "+callbacks.x._target_=os.system",
    "callbacks.samples={_target_: os.system}",
    "logger.csv._target_=os.system",
    "logger.csv.folder=/etc",
    "callbacks.last.folder=/etc",
    "callbacks.best.dirpath=/etc",
    "callbacks.best.filename=../../x",
    "~callbacks.samples",
    "callbacks=../../../tmp/evil",
    "experiment=../evil",
    "data=/tmp/evil",
    "logger=a,b",
    "callbacks@model=default",
    "/callbacks/x=default",
    "trainer.default_root_dir=/etc",
    "+trainer.plugins=[os]",
    "trainer.logger=true",
    "model.lr=${oc.env:HOME}",
    "model.lr=${a${oc.env:HOME}}",
    "model.lr=${hydra:runtime.output_dir}",
)


@pytest.mark.parametrize("word", SETTINGS)
def test_a_file_sets_values_alone(word, tmp_path):
    """As a word of its command, and as one of its parameters."""
    command = ["python", "-m", "${program}", word, ARGS]
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        read_sweep(written(tmp_path, command=command))
    key, _, value = word.partition("=")
    if value:
        described = read_sweep(written(tmp_path, parameters={key: {"value": value}}))
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            described.agent_command(described.points(1, seed=0)[0])


ALLOWED = (
    "model.lr=0.1",
    "network=unet_small",
    "sde=ve",
    "callbacks.samples=null",
    "callbacks.ema.decay=0.9",
    "seed=3",
    "trainer.max_steps=5",
    "logger=wandb",
    "logger.wandb.project=mine",
    "experiment=edm",
    "data=folder",
    "data.root=/data/birds",
    "+sampler.grid._target_=sde_diffusion.sde.KarrasRho",
    "conditional=true",
    "model.betas=[0.9,0.99]",
    "data.range=[[0,1],[2,3]]",
)


def test_settings_that_a_file_may_make(tmp_path):
    read_sweep(written(tmp_path, command=["${env}", "${interpreter}", "-m", "${program}", *ALLOWED, ARGS]))


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(10 * ['*' + old])}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 100,000 values"),
        ("a: &a {x: 1}\n" + "b: &b\n  <<: [" + ",".join(["*a"] * 200_000) + "]", "more than 100,000 values"),
        ("a: &a [*a]", "contains the alias"),
        ("[" * 100_000, "is not valid YAML"),
        ("a: 2024-13-45", "is not valid YAML"),
        ("a: " + 5000 * "9", "is not valid YAML"),
        ("#" * 2**20 + "#", "more than 1,048,576 bytes"),
        ("", "is empty"),
        ("# nothing", "is not a sweep file"),
    ],
)
def test_yaml_that_grows(text, words, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_sweep(tmp_path / "a.yaml")
