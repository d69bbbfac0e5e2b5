"""`python -m sde_diffusion.sweep file=grid n=6 out=DIR`: run a wandb sweep file on this machine, without a server.

Runs the command lines that `wandb agent` would run, one after another, with wandb offline. Then reads the runs' records
and prints a table, sorted by the metric, and the command of the best run. Settings after `--` are added to every run:
`python -m sde_diffusion.sweep file=grid -- data=moons`.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sde_diffusion.checks.overrides import command_line, hydra_value, setting
from sde_diffusion.commands import schema, user_classes
from sde_diffusion.commands.app import as_typed, overrides
from sde_diffusion.commands.configurations import check_groups, config_folder, nulls, parse
from sde_diffusion.commands.messages import explain
from sde_diffusion.commands.sweep_file import Point, Sweep, read_sweep
from sde_diffusion.commands.sweep_safety import MODULE
from sde_diffusion.errors import UserError
from sde_diffusion.storage import progress, record, signals
from sde_diffusion.storage.files import read_json, writing
from sde_diffusion.storage.lock import lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its values, its command line and its folder."""

    point: Point
    words: list[str]
    folder: Path

    @property
    def overrides(self) -> list[str]:
        """The overrides of its command line."""
        return self.words[self.words.index(MODULE) + 1 :]

    @property
    def settings(self) -> dict[str, Override]:
        """The overrides of its command line by key; the last one wins."""
        return {str(read.key_or_group): read for read in map(parse, nulls(self.overrides)) if read}

    @property
    def output(self) -> Path:
        """The file with its output."""
        return self.folder.with_suffix(".log")


@dataclass(frozen=True)
class Result:
    """A finished run, with the best value of the metric, its step, and the last value."""

    run: Run
    best: float
    step: int
    last: float


def sweep(cfg: DictConfig, added: Sequence[str] = ()) -> list[Result]:
    """Run all runs that are not finished yet, and compare them.

    Args:
        cfg: The composed configuration of conf/sweep.yaml.
        added: Settings for every run.

    Returns:
        The finished runs, the best first.

    Raises:
        UserError: If the file, the settings or the folder do not allow it, or if runs failed; the others are still run.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    added = [*(as_typed(one) for one in overrides() if one.key_or_group == user_classes.KEY), *added]
    path = _find(str(cfg.file))
    spec = read_sweep(path)
    fixed = [word for word in added if (read := parse(word)) and read.key_or_group in spec.swept()]
    if fixed:
        raise UserError(f"{', '.join(fixed)}: {path} varies this setting; leave it out after --")
    runs = [
        Run(point, [*spec.agent_command(point), *added], out / "runs" / f"{number:03d}")
        for number, point in enumerate(spec.points(cfg.n, cfg.seed))
    ]
    for run in runs:
        _check_run(run, path)
    if spec.method == "bayes":
        log.info("method  bayes needs the wandb server; drawing %d runs at random, seed %d", len(runs), cfg.seed)
    if spec.early_terminate:
        log.info("stops   early_terminate needs the wandb server; here no run is stopped early")
    log.info("folder  %s  (the same command with %s resumes a sweep that was stopped)", out, setting("out", out))
    _store_plan(out, spec, cfg, added)
    failed = _run_all(runs, spec)
    results = [_result(run, spec) for run in runs if run not in failed]
    results.sort(key=lambda result: result.best if spec.goal == "minimize" else -result.best)
    if results:
        _log_results(out / "runs.csv", spec, results)
    if failed:
        names = ", ".join(str(run.output) for run in failed)
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, see {names}; the same command with {setting('out', out)} runs "
            "them again"
        )
    return results


def _find(file: str) -> Path:
    """The path of a sweep file, given by its path or by its name in conf/sweeps."""
    folder = config_folder() / "sweeps"
    for path in (Path(file), folder / f"{file}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(f"file={path.stem}" for path in folder.glob("*.yaml")))
    raise UserError(f"no sweep file {file}: give file=PATH, or one of conf/sweeps: {names}")


def _check_run(run: Run, path: Path) -> None:
    """Check the settings of a run, before any run begins."""
    words = user_classes.allow_new_keys(nulls(run.overrides))
    try:
        check_groups(words)
        cfg = hydra.compose("train", overrides=words)
        user_classes.apply(cfg, run.settings.values())
        schema.check("train", cfg)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, UserError) else explain(error)
        raise UserError(f"{path}: {' '.join(run.overrides)}: {message}") from error
    if not any(cfg.logger.values()):
        raise UserError("logger=none writes no metrics, but a sweep compares its runs by them: leave it out")


def _store_plan(out: Path, spec: Sweep, cfg: DictConfig, added: Sequence[str]) -> None:
    """Store what the runs in the folder depend on. n may change: the first runs are then the same."""
    path = out / "plan.json"
    plan = {"file": spec.path.name, "sha256": spec.digest, "seed": cfg.seed, "added": list(added)}
    if path.is_file() and read_json(path) != plan:
        raise UserError(f"{out} has runs of another sweep (see {path}): choose another folder with out=DIR")
    with writing(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n")


def _run_all(runs: Sequence[Run], spec: Sweep) -> list[Run]:
    """Run all runs that are not finished; returns those that failed."""
    waiting, failed = [run for run in runs if not _finished(run)], []
    with progress.bar("", len(runs), len(runs) - len(waiting)) as bar:
        for run in waiting:
            name = f"run {runs.index(run) + 1} of {len(runs)}"
            bar.update(name=name)
            if _execute(run):
                best = _result(run, spec).best
                log.info("%s  %s %.5g  %s", name, spec.metric, best, _values(run.point, spec.swept()))
            else:
                failed.append(run)
                last = run.output.read_text(errors="replace").strip().splitlines()[-5:]
                log.warning("%s failed: %s\n  %s", name, shlex.join(run.words), "\n  ".join(last))
            bar.update(advance=1)
    return failed


def _execute(run: Run) -> bool:
    """Run one command line from the beginning; True if it succeeded."""
    run.output.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "WANDB_MODE": "offline"}  # nothing goes over the network
    # The interpreter and program of the file are ignored: always this interpreter and this package's program.
    words = [sys.executable, "-m", MODULE, *run.overrides, f"hydra.run.dir={hydra_value(run.folder)}"]
    with run.output.open("a") as output:
        # The run inherits the lock on its output: if a sweep is killed, its current run may continue.
        if lock(output.fileno()) is False:
            log.info("waiting for run %s, which is still running after its sweep was killed", run.folder.name)
            lock(output.fileno(), wait=True)
            if _finished(run):
                return True
        shutil.rmtree(run.folder, ignore_errors=True)  # remains of an earlier attempt
        run.folder.mkdir(exist_ok=True)  # it exists if not everything could be removed
        output.truncate(0)
        signals.hold()  # a signal that arrives now is handled after the run has started, and ends the run too
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            signals.release()
            process.wait()
        except signals.Stopped:  # the run starts again when the sweep is resumed
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return process.returncode == 0 and _finished(run)


def _finished(run: Run) -> bool:
    return record.read(run.folder).get("finished") is not None


def _result(run: Run, spec: Sweep) -> Result:
    """The metric over a finished run, from its metrics.csv.

    Raises:
        UserError: If the run did not log the metric, or the file is damaged.
    """
    path = run.folder / "metrics.csv"
    rows: list[dict[str, Any]] = []
    try:
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        values = [(float(row[spec.metric]), int(row["step"])) for row in rows if row.get(spec.metric)]
    except (ValueError, TypeError, KeyError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path} is damaged: {error}; remove {run.folder} to run it again") from error
    values = [(value, step) for value, step in values if math.isfinite(value)]
    if not values:
        there = ", ".join(sorted({key for row in rows for key in row if "/" in key})) or "nothing"
        raise UserError(f"{spec.path}: no run logs a metric {spec.metric}; {path} has {there}")
    best, step = (min if spec.goal == "minimize" else max)(values)
    return Result(run, best, step + 1, values[-1][0])  # Lightning counts steps from 0


def _values(point: Point, keys: Sequence[str]) -> str:
    return "  ".join(f"{key}={point[key]}" for key in keys)


def _row(spec: Sweep, result: Result) -> dict[str, Any]:
    """A run's row of the table."""
    last = result.run.settings
    figures = {"run": result.run.folder.name, spec.metric: result.best, "step": result.step, "last": result.last}
    return {
        **figures,
        **{key: last[key].get_value_string() for key in spec.parameters},
        "command": shlex.join(result.run.words),
    }


def _log_results(path: Path, spec: Sweep, results: Sequence[Result]) -> None:
    """Write and print the table of runs, and print the command of the best one."""
    rows = [_row(spec, result) for result in results]
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    columns = ["run", spec.metric, "step", "last", *spec.swept()]
    cells = [
        [f"{row[name]:.5f}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    log.info("")
    for line in (columns, *cells):
        log.info("%s", "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    best = results[0].run
    log.info("")
    log.info("Best: %s (%s)", best.folder, "its lowest" if spec.goal == "minimize" else "its highest")
    log.info("  %s %s", command_line(MODULE), shlex.join(str(read.input_line) for read in best.settings.values()))
