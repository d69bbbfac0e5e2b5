"""The runs of sweeps, without a server."""

import csv
import fcntl
import math
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from sweep_cases import SHORT, run_json, written

from sde_diffusion.commands import configurations
from sde_diffusion.commands.sweep import Run, _result
from sde_diffusion.commands.sweep_file import read_sweep
from sde_diffusion.errors import UserError


def finished(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in out + err, out + err
    return process.returncode, out, err


@pytest.mark.slow
def test_a_killed_sweep_goes_on(start, command, tmp_path):
    """Two runs of the grid as an agent would start them, the sweep killed meanwhile; records, table, best command."""
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
    assert "waiting for run 001, which is still running after its sweep was killed" in printed

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
    (typed,) = re.findall(r"^  .*python\S* -m (sde_diffusion\.train .*)$", printed, re.MULTILINE)
    typed_words = shlex.split(typed)
    assert set(typed_words) <= set(shlex.split(rows[0]["command"]))
    keys = [word.partition("=")[0] for word in typed_words]
    assert len(keys) == len(set(keys))  # added settings stand in place of the file's
    assert re.search(rf"^{rows[0]['run']} .*\n{rows[1]['run']} ", printed, re.MULTILINE)
    # The best run's command, typed: the same figures.
    again = tmp_path / "again"
    done = command("train", *typed_words[1:], f"hydra.run.dir={again}", "logger=csv", cwd=tmp_path)
    assert done.status == 0, done.err
    assert run_json(again)["metrics"] == run_json(out / "runs" / rows[0]["run"])["metrics"]


def cli_value(path: Path) -> str:
    """As it is typed for a shell and Hydra."""
    return "'" + str(path).replace("'", "\\'") + "'"


@pytest.mark.slow
def test_a_bayesian_search_is_random_here_and_says_so(command, tmp_path):
    """With None among the values, and a folder in which a run had been interrupted."""
    broken = tmp_path / "out" / "runs" / "000" / "checkpoints" / "last.ckpt"
    broken.parent.mkdir(parents=True)
    broken.write_text("half")
    short = [word for word in SHORT if not word.startswith("callbacks.samples")]
    arguments = ("file=bayes", "n=1", "seed=5", f"out={tmp_path / 'out'}", "--", *short)
    done = command("sweep", *arguments, cwd=tmp_path)
    assert done.status == 0, done.err
    assert "drawing 1 runs at random, seed 5" in done.out
    assert "no run is stopped early" in done.out
    record = run_json(tmp_path / "out" / "runs" / "000")
    (point,) = read_sweep(configurations.config_folder() / "sweeps" / "bayes.yaml").points(1, seed=5)
    assert record["config"]["model"]["lr"] == point["model.lr"]
    assert record["config"]["network"]["dropout"] == point["network.dropout"]
    assert record["config"]["callbacks"]["samples"] is None
    assert not (tmp_path / "out" / "runs" / "000" / "samples").exists()
    changed = ("file=bayes", "n=1", "seed=6", f"out={tmp_path / 'out'}")
    done = command("sweep", *changed, cwd=tmp_path)
    assert (done.status, "another sweep" in done.err) == (1, True)


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"file": ', b"[]"])
def test_a_damaged_plan_is_told(command, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_bytes(content)
    done = command("sweep", f"file={written(tmp_path)}", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "Traceback" in done.err) == (1, False)
    assert "plan.json is damaged" in done.err


@pytest.mark.parametrize(
    "content", [b"step,val/loss\n3,wor\xff\n", b"step,val/loss\n3,word\n", b"val/loss\n0.5\n", b"val/loss,step\n0.5\n"]
)
def test_damaged_metrics_are_told(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    described = read_sweep(written(tmp_path))
    with pytest.raises(UserError, match=r"metrics\.csv is damaged: .*to run it again"):
        _result(Run({}, [], tmp_path), described)


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others(start, tmp_path):
    path = written(
        tmp_path,
        parameters={"trainer.accelerator": {"values": ["tpu", "cpu"]}},
        metric={"name": "val/loss", "goal": "maximize"},
    )
    process = start("sweep", f"file={path}", f"out={tmp_path / 'out'}", "--", *SHORT, cwd=tmp_path)
    status, out, err = finished(process)
    assert status == 1
    assert err.startswith("error: 1 of 2 runs failed, see ")
    assert "run 1 of 2 failed: /usr/bin/env python" in out
    assert "tpu" in out
    assert "its highest" in out
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["001"]


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, ["n=0"], ["n must be an integer"]),
        ({}, ["n=3"], ["the grid has 2 points; got n=3"]),
        ({"method": "random"}, [], ["give n=NUMBER"]),
        ({"parameters": {"model.lrr": {"value": 1}}}, [], ["unknown key 'model.lrr'", "warmup_steps"]),
        ({"parameters": {"sde": {"values": ["vp", "vpp"]}}}, [], ["sde=vpp", "choose", "subvp"]),
        ({"parameters": {"model.lr": {"values": [0.001, -1]}}}, [], ["model.lr=-1", "model.lr must be positive"]),
        ({}, ["--", "sde=null"], ["sde=null: choose sde= from cosine"]),
        ({}, ["--", "foo=1"], ["'foo'"]),
        ({}, ["--", "model.lr=1"], ["model.lr=1", "varies this setting"]),
        ({}, ["file=nope"], ["no sweep file nope", "file=bayes, file=grid"]),
        ({}, ["file=/nope.yaml"], ["no sweep file /nope.yaml", "file=bayes, file=grid"]),
        ({}, ["--", "logger=none"], ["logger=none writes no metrics"]),
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
    """A finished run, with a validation every ten steps."""
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
    """By the best value of each run, not the last one, and ignoring NaN."""
    metric = {"name": "val/loss", "goal": goal}
    path = written(tmp_path, metric=metric, parameters={"model.lr": {"values": [0.1, 0.2, 0.3]}})
    out = tmp_path / "out"
    for number, losses in enumerate(((3.0, math.nan), (5.0, 1.0, 4.0), (2.0, 2.5))):
        run_already(out, number, *losses)
    done = command("sweep", f"file={path}", f"out={out}", "--", "seed=1", "seed=2", cwd=tmp_path)
    assert done.status == 0, done.err
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], float(row["val/loss"]), int(row["step"]), float(row["last"])) for row in rows] == order
    printed = [line.split()[:2] for line in done.out.splitlines() if re.match(r"\s*00\d ", line)]
    assert printed == [[name, f"{best:.5f}"] for name, best, *_ in order]
    assert "-m sde_diffusion.train model.lr=0.2 seed=2\n" in done.out  # of a key that is set twice the last


def test_a_metric_that_is_not_logged(command, tmp_path):
    path = written(tmp_path, metric={"name": "val/los", "goal": "minimize"})
    run_already(tmp_path / "out", 0, 1.0)
    done = command("sweep", f"file={path}", "n=1", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "no run logs a metric val/los" in done.err) == (1, True), done.err
    assert "train/loss, val/loss" in done.err


@pytest.mark.slow
def test_a_signal_ends_the_sweep_and_its_run(start, tmp_path):
    """Status 143, one line that says how to resume, and no run still running."""
    out = tmp_path / "out"
    process = start("sweep", "file=grid", "n=1", f"out={out}", "--", *SHORT, "trainer.max_steps=1000000", cwd=tmp_path)
    until = time.monotonic() + 120
    while not (out / "runs" / "000" / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, printed, err = finished(process)
    assert status == 143, err
    assert f"the same command with out={out} resumes there" in printed
    with (out / "runs" / "000.log").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which a run that is at work would hold
    assert not (out / ".lock").exists()
