"""Sweeps: files that wandb takes, its agent's command lines, their runs without a server, and many runs at once."""

import csv
import fcntl
import importlib.util
import json
import math
import re
import shlex
import signal
import time
from pathlib import Path

import hydra
import pytest
import scipy.stats
import yaml
from conftest import TINY
from omegaconf import OmegaConf
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from sde_diffusion import cli
from sde_diffusion.errors import UserError
from sde_diffusion.sweep_file import read_sweep

FILES = sorted((cli.config_folder() / "sweeps").glob("*.yaml"))
SHORT = (
    *(word for word in TINY if "width" not in word),
    "trainer.max_steps=10",
    "trainer.val_check_interval=5",
    "callbacks.samples=null",
)
COMMAND = ["${env}", "python", "-m", "${program}", "${args_no_hyphens}"]
PLAIN = {
    "program": "sde_diffusion.train",
    "command": COMMAND,
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"model.lr": {"values": [0.001, 0.01]}},
}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def written(folder: Path, **changes) -> Path:
    """PLAIN with changes, as a file; None leaves a key out."""
    path = folder / "sweep.yaml"
    kept = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def finished(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in out + err, out + err
    return process.returncode, out, err


# -- the files ------------------------------------------------------------------------------------------------------


def test_a_grid_and_a_bayesian_search_are_there():
    methods = {yaml.safe_load(path.read_text())["method"] for path in FILES}
    assert methods >= {"grid", "bayes"}
    assert "sweeps" not in cli.choices("train")  # which are no group of the configuration


@every_file
def test_the_files_are_wandbs(path, trained):
    """Read by wandb, swept keys are the configuration's, the metric is one that a run logs."""
    raw = load_sweep_config(str(path))
    described = read_sweep(path)
    assert described.parameters.keys() == raw["parameters"].keys()
    OmegaConf.register_new_resolver("run_folder", cli.run_folder, replace=True)
    with hydra.initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        for point in described.points(3, seed=0):
            words = described.agent_command(point)
            cfg = hydra.compose("train", overrides=words[words.index("sde_diffusion.train") + 1 :])
            assert {key: OmegaConf.select(cfg, key) for key in point if point[key] is not None} == {
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
        *((0.0003, 256), (0.0003, 512), (0.001, 256), (0.001, 512), (0.003, 256), (0.003, 512)),
    ]
    assert described.points(2, seed=5) == points[:2]
    assert described.swept() == ["model.lr", "network.width"]


def test_draws_are_of_their_distributions(tmp_path):
    """Kolmogorov-Smirnov for the continuous ones, each value for the others; a false alarm in a million."""
    parameters = {
        "uniform": {"min": 0.5, "max": 2.0},
        "log": {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.01},
        "steps": {"distribution": "q_uniform", "min": 0.0, "max": 0.4, "q": 0.1},
        "whole_steps": {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8},
        "whole": {"min": 1, "max": 3},
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
    assert set(columns["whole_steps"]) == {8, 16, 24, 32, 40, 48, 56, 64}
    assert set(columns["whole"]) == {1, 2, 3}
    assert (set(columns["listed"]), set(columns["named"]), set(columns["constant"])) == ({"a", "b"}, {1}, {None})
    assert described.swept() == ["uniform", "log", "steps", "whole_steps", "whole", "listed"]
    assert described.points(5, seed=3) == points[:5]
    assert described.points(5, seed=4) != points[:5]


PARAMETERS = "parameters.model.lr"
BAD = {
    "not a mapping": ([1, 2], "no sweep file"),
    "another file": ({"lr": 1}, "lacks method and parameters"),
    "an unknown key": ({"paramters": {}}, "unknown key paramters; allowed: program"),
    "a method that is none": ({"method": "magic"}, "grid, random, bayes; got magic"),
    "no metric": ({"metric": None}, "metric must have a name"),
    "a goal that is none": ({"metric": {"name": "val/loss", "goal": "min"}}, "minimize, maximize"),
    "another program": ({"program": "train.py"}, "program must be sde_diffusion.train"),
    "arguments with hyphens": ({"command": ["${env}", "python", "${args}"]}, "args_no_hyphens"),
    "no runs": ({"run_cap": 0}, "run_cap must be a whole number of at least 1; got 0"),
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
        f"{PARAMETERS}.min must be a whole number",
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
    with pytest.raises(UserError, match=re.escape(words)) as told:
        read_sweep(path)
    assert str(path) in str(told.value)


def test_what_is_no_yaml(tmp_path):
    path = tmp_path / "sweep.yaml"
    for text in ("a: [1", "\xff\xfe"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="is no YAML"):
            read_sweep(path)


# -- running them ---------------------------------------------------------------------------------------------------


def test_a_killed_sweep_goes_on(start, command, tmp_path):
    """Two runs of the grid as an agent would start them, the sweep killed on the way; records, table, best command."""
    out = tmp_path / "it's, out"
    arguments = ("file=grid", "n=2", f"out={cli_value(out)}", "--", *SHORT)
    process = start("sweep", *arguments, cwd=tmp_path)
    first, until = out / "runs" / "000", time.monotonic() + 120
    while not (out / "runs" / "001.log").is_file():  # the second has just begun, and outlives the sweep
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = run_json(first)["started"]
    status, printed, err = finished(start("sweep", *arguments, cwd=tmp_path))
    assert status == 0, err
    assert run_json(first)["started"] == begun
    assert "waiting for a sweep or a run" in printed

    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/loss"]) for row in rows] == sorted(float(row["val/loss"]) for row in rows)
    assert {row["run"] for row in rows} == {"000", "001"}
    for row in rows:
        folder = out / "runs" / row["run"]
        record = run_json(folder)
        assert row["command"].startswith("/usr/bin/env python -m sde_diffusion.train logger=wandb model.lr=0.0003 ")
        assert float(row["last"]) == record["metrics"]["val/loss"] >= float(row["val/loss"])
        assert record["config"]["model"]["lr"] == float(row["model.lr"]) == 0.0003
        assert record["config"]["trainer"]["max_steps"] == 10
        assert shlex.split(record["command"]) == shlex.split(row["command"])[1:]
        assert (record["seeds"]["seed"], record["seeds"]["data.seed"]) == (0, 0)
        (logged,) = folder.glob("wandb/offline-run-*/run-*.wandb")  # nothing went to a server
        assert b"seeds" in logged.read_bytes()
        assert record["versions"]["torch"].encode() in logged.read_bytes()
    (typed,) = re.findall(r"^  \S*python\S* -m (sde_diffusion\.train .*)$", printed, re.MULTILINE)
    assert typed in rows[0]["command"]
    assert re.search(rf"^{rows[0]['run']} .*\n{rows[1]['run']} ", printed, re.MULTILINE)
    # The best run's command, typed: the same figures.
    again = tmp_path / "again"
    done = command("train", *shlex.split(typed)[1:], f"hydra.run.dir={again}", "logger=csv", cwd=tmp_path)
    assert done.status == 0, done.err
    assert run_json(again)["metrics"] == run_json(out / "runs" / rows[0]["run"])["metrics"]


def cli_value(path: Path) -> str:
    """As a shell and Hydra would have it typed."""
    return "'" + str(path).replace("'", "\\'") + "'"


def test_a_bayesian_search_is_random_here_and_says_so(command, tmp_path):
    """With None among the values, and a folder in which a run had been broken off."""
    broken = tmp_path / "out" / "runs" / "000" / "checkpoints" / "last.ckpt"
    broken.parent.mkdir(parents=True)
    broken.write_text("half")
    short = [word for word in SHORT if not word.startswith("callbacks.samples")]
    arguments = ("file=bayes", "n=1", "seed=5", f"out={tmp_path / 'out'}", "--", *short)
    done = command("sweep", *arguments, cwd=tmp_path)
    assert done.status == 0, done.err
    assert "1 runs are drawn at random, seed 5" in done.out
    assert "every run goes to its end" in done.out
    record = run_json(tmp_path / "out" / "runs" / "000")
    (point,) = read_sweep(cli.config_folder() / "sweeps" / "bayes.yaml").points(1, seed=5)
    assert record["config"]["model"]["lr"] == point["model.lr"]
    assert record["config"]["network"]["dropout"] == point["network.dropout"]
    assert record["config"]["callbacks"]["samples"] is None
    assert not (tmp_path / "out" / "runs" / "000" / "samples").exists()
    changed = ("file=bayes", "n=1", "seed=6", f"out={tmp_path / 'out'}")
    done = command("sweep", *changed, cwd=tmp_path)
    assert (done.status, "another sweep" in done.err) == (1, True)


def test_a_failing_run_does_not_stop_the_others(start, tmp_path):
    """Nor does a sweep begin while another is at work in its folder."""
    path = written(
        tmp_path, parameters={"model.lr": {"values": [-1, 0.001]}}, metric={"name": "val/loss", "goal": "maximize"}
    )
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start("sweep", f"file={path}", f"out={tmp_path / 'out'}", "--", *SHORT, cwd=tmp_path)
        log, until = tmp_path / "out" / "sweep.log", time.monotonic() + 60
        while not log.is_file() or "waiting" not in log.read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not (tmp_path / "out" / "runs").exists()
    status, out, err = finished(process)
    assert status == 1
    assert err.startswith("error: 1 of 2 runs failed, see ")
    assert "run 1 of 2 failed: /usr/bin/env python" in out
    assert "lr must be positive; got -1" in out
    assert "its highest" in out
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["001"]


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, ["n=0"], ["n must be a whole number"]),
        ({}, ["n=3"], ["the grid has 2 points; got n=3"]),
        ({"method": "random"}, [], ["give n=NUMBER"]),
        ({"parameters": {"model.lrr": {"value": 1}}}, [], ["unknown key 'model.lrr'", "warmup_steps"]),
        ({"parameters": {"sde": {"values": ["vp", "vpp"]}}}, [], ["sde=vpp", "choose", "subvp"]),
        ({}, ["--", "foo=1"], ["'foo'"]),
        ({}, ["--", "model.lr=1"], ["model.lr=1", "a value of its own"]),
        ({}, ["file=nope"], ["no sweep file nope", "file=bayes, file=grid"]),
        ({}, ["foo=1"], ["'foo'", "n, out, seed"]),
    ],
)
def test_refused_before_anything_is_run(changes, arguments, words, command, tmp_path):
    path = written(tmp_path, **changes)
    own = [] if any(argument.startswith("file=") for argument in arguments) else [f"file={path}"]
    done = command("sweep", *own, f"out={tmp_path / 'out'}", *arguments, cwd=tmp_path)
    assert (done.status, done.out) == (1, ""), done.err
    assert done.err.startswith("error: ")
    for part in words:
        assert part in done.err
    assert not (tmp_path / "out" / "runs").exists()


def run_already(out: Path, number: int, *losses: float) -> None:
    """A run that is finished, with a validation each ten steps."""
    folder = out / "runs" / f"{number:03d}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"finished": "2026-01-01T00:00:00+00:00"}')
    rows = "".join(f"{10 * step + 9},,{loss}\n{10 * step + 10},1.0,\n" for step, loss in enumerate(losses))
    (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n{rows}")


@pytest.mark.parametrize(
    ("goal", "order"),
    [
        ("minimize", [("001", 1.0, 20, 4.0), ("002", 2.0, 10, 2.5), ("000", 3.0, 10, 3.0)]),
        ("maximize", [("001", 5.0, 10, 4.0), ("000", 3.0, 10, 3.0), ("002", 2.5, 20, 2.5)]),
    ],
)
def test_runs_are_in_the_metrics_order(goal, order, command, tmp_path):
    """By the best value of each, not the last, nor one that is no number."""
    metric = {"name": "val/loss", "goal": goal}
    path = written(tmp_path, metric=metric, parameters={"model.lr": {"values": [0.1, 0.2, 0.3]}})
    out = tmp_path / "out"
    for number, losses in enumerate(((3.0, math.nan), (5.0, 1.0, 4.0), (2.0, 2.5))):
        run_already(out, number, *losses)
    done = command("sweep", f"file={path}", f"out={out}", cwd=tmp_path)
    assert done.status == 0, done.err
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], float(row["val/loss"]), int(row["step"]), float(row["last"])) for row in rows] == order
    printed = [line.split()[:2] for line in done.out.splitlines() if re.match(r"\s*00\d ", line)]
    assert printed == [[name, f"{best:.5f}"] for name, best, *_ in order]
    assert "-m sde_diffusion.train model.lr=0.2\n" in done.out


def test_a_metric_that_is_not_logged(command, tmp_path):
    path = written(tmp_path, metric={"name": "val/los", "goal": "minimize"})
    run_already(tmp_path / "out", 0, 1.0)
    done = command("sweep", f"file={path}", "n=1", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "no run logs a metric val/los" in done.err) == (1, True), done.err
    assert "train/loss, val/loss" in done.err


# -- many runs at once ----------------------------------------------------------------------------------------------


def test_multirun(command, tmp_path):
    """Each of the runs with its own settings, record and command."""
    done = command("train", "--multirun", "sde=vp,ve", *SHORT, f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert done.status == 0, done.err
    for number, name in enumerate(("vp", "ve")):
        record = run_json(tmp_path / str(number))
        assert record["config"]["sde"]["_target_"] == f"sde_diffusion.sde.{name.upper()}SDE"
        assert record["command"].split()[:4] == ["python", "-m", "sde_diffusion.train", f"sde={name}"]
        assert record["finished"] is not None


def test_multirun_with_ddp(command, tmp_path):
    done = command("train", "--multirun", "sde=vp,ve", "trainer.strategy=ddp", cwd=tmp_path)
    assert (done.status, "ddp_spawn" in done.err, "Traceback" in done.err) == (1, True, False)


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    if importlib.util.find_spec("hydra_plugins")
    else False,
    reason="asks for the slurm extra as something that is not there",
)
@pytest.mark.parametrize("launcher", ["slurm", "submitit_local"])
def test_slurm_without_its_extra(launcher, command, tmp_path):
    done = command("train", "--multirun", f"hydra/launcher={launcher}", "sde=vp,ve", cwd=tmp_path)
    assert (done.status, done.err.count("\n")) == (1, 1), done.err
    assert "pip install 'sde_diffusion[slurm]'" in done.err


def test_slurm_preset():
    """Its settings are ones that the launcher has."""
    config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    preset = yaml.safe_load((cli.config_folder() / "hydra" / "launcher" / "slurm.yaml").read_text())
    assert preset.pop("defaults") == ["submitit_slurm"]
    assert preset.keys() <= config.SlurmQueueConf.__dataclass_fields__.keys()


def test_sweeps_as_a_group(command, tmp_path):
    done = command("train", "sweeps=grid", cwd=tmp_path)
    assert (done.status, "python -m sde_diffusion.sweep" in done.err) == (1, True)
    assert not list(tmp_path.iterdir())
