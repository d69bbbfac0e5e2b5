"""`python -m sde_diffusion.sweep file=grid n=6 out=DIR`: the runs of a wandb sweep file, here and without a server.

Issues the command lines that `wandb agent` would issue, one after another, with wandb offline, and reads the runs'
records back: a table in the metric's order, and the best run's command. Settings after `--` are added to every run's
command line: `python -m sde_diffusion.sweep file=grid -- data=moons`.
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
from sde_diffusion.commands import own_classes, schema
from sde_diffusion.commands.app import overrides, typed
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
        """What its command line sets."""
        return self.words[self.words.index(MODULE) + 1 :]

    @property
    def settings(self) -> dict[str, Override]:
        """What its command line sets, by key; of two for one key the last counts."""
        return {str(read.key_or_group): read for read in map(parse, nulls(self.overrides)) if read}

    @property
    def output(self) -> Path:
        """Where what it prints goes."""
        return self.folder.with_suffix(".log")


@dataclass(frozen=True)
class Result:
    """A finished run with the metric's best value, the step of it, and the last value."""

    run: Run
    best: float
    step: int
    last: float


def sweep(cfg: DictConfig, added: Sequence[str] = ()) -> list[Result]:
    """Run what is not finished yet, and compare.

    Args:
        cfg: The composed configuration of conf/sweep.yaml.
        added: Settings for every run.

    Returns:
        The finished runs, the best first.

    Raises:
        UserError: If file, settings or folder do not allow it, or runs failed (the others have been run then).
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    added = [*(typed(one) for one in overrides() if one.key_or_group == own_classes.KEY), *added]
    path = _find(str(cfg.file))
    described = read_sweep(path)
    fixed = [word for word in added if (read := parse(word)) and read.key_or_group in described.swept()]
    if fixed:
        raise UserError(f"{', '.join(fixed)}: {path} gives each run a value of its own there; leave it out behind --")
    runs = [
        Run(point, [*described.agent_command(point), *added], out / "runs" / f"{number:03d}")
        for number, point in enumerate(described.points(cfg.n, cfg.seed))
    ]
    for run in runs:
        _compose(run, path)
    if described.method == "bayes":
        log.info("method  bayes needs the wandb server; here %d runs are drawn at random, seed %d", len(runs), cfg.seed)
    if described.early_terminate:
        log.info("stops   early_terminate is the wandb server's; here every run goes to its end")
    log.info("folder  %s  (the same command with %s resumes a sweep that was stopped)", out, setting("out", out))
    _keep_plan(out, described, cfg, added)
    failed = _run_all(runs, described)
    results = [_result(run, described) for run in runs if run not in failed]
    results.sort(key=lambda result: result.best if described.goal == "minimize" else -result.best)
    if results:
        _tell(out / "runs.csv", described, results)
    if failed:
        names = ", ".join(str(run.output) for run in failed)
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, see {names}; the same command with {setting('out', out)} tries "
            "them again"
        )
    return results


def _find(file: str) -> Path:
    """A sweep file by its path, or by its name in conf/sweeps."""
    folder = config_folder() / "sweeps"
    for path in (Path(file), folder / f"{file}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(f"file={path.stem}" for path in folder.glob("*.yaml")))
    raise UserError(f"no sweep file {file}: give file=PATH, or one of conf/sweeps: {names}")


def _compose(run: Run, path: Path) -> None:
    """See that a run can work with its settings before any is run."""
    words = own_classes.adding(nulls(run.overrides))
    try:
        check_groups(words)
        cfg = hydra.compose("train", overrides=words)
        own_classes.take(cfg, run.settings.values())
        schema.check("train", cfg)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, UserError) else explain(error)
        raise UserError(f"{path}: {' '.join(run.overrides)}: {message}") from error
    if not any(cfg.logger.values()):
        raise UserError("logger=none writes no metrics, by which a sweep compares its runs: leave it out")


def _keep_plan(out: Path, described: Sweep, cfg: DictConfig, added: Sequence[str]) -> None:
    """Note what the folder's runs are of; n may change, for the first runs of more are the same."""
    note = out / "plan.json"
    plan = {"file": described.path.name, "sha256": described.digest, "seed": cfg.seed, "added": list(added)}
    if note.is_file() and read_json(note) != plan:
        raise UserError(f"{out} holds the runs of another sweep (see {note}): choose another folder with out=DIR")
    with writing(note) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n")


def _run_all(runs: Sequence[Run], described: Sweep) -> list[Run]:
    """Run what is not finished; returns the runs that failed."""
    waiting, failed = [run for run in runs if not _finished(run)], []
    with progress.bar("", len(runs), len(runs) - len(waiting)) as bar:
        for run in waiting:
            name = f"run {runs.index(run) + 1} of {len(runs)}"
            bar.update(name=name)
            if _execute(run):
                best = _result(run, described).best
                log.info("%s  %s %.5g  %s", name, described.metric, best, _values(run.point, described.swept()))
            else:
                failed.append(run)
                last = run.output.read_text(errors="replace").strip().splitlines()[-5:]
                log.warning("%s failed: %s\n  %s", name, shlex.join(run.words), "\n  ".join(last))
            bar.update(advance=1)
    return failed


def _execute(run: Run) -> bool:
    """Run one command line to its end, from the beginning; True if it ended well."""
    run.output.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "WANDB_MODE": "offline"}  # nothing goes over the network
    # Not the file's words for the program, but the program that they stand for: this package's, by this interpreter.
    words = [sys.executable, "-m", MODULE, *run.overrides, f"hydra.run.dir={hydra_value(run.folder)}"]
    with run.output.open("a") as output:
        # The run inherits the lock on its output: where a sweep was killed, its run may live on.
        if lock(output.fileno()) is False:
            log.info("waiting for run %s, which a killed sweep has left at work", run.folder.name)
            lock(output.fileno(), wait=True)
            if _finished(run):
                return True
        shutil.rmtree(run.folder, ignore_errors=True)  # what a killed sweep left of it
        run.folder.mkdir(exist_ok=True)  # where not all of it could be removed
        output.truncate(0)
        signals.hold()  # so that there is no moment at which a run has begun that a signal would not end too
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            signals.release()
            process.wait()
        except signals.Stopped:  # the run begins anew when the sweep is resumed
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


def _result(run: Run, described: Sweep) -> Result:
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
        values = [(float(row[described.metric]), int(row["step"])) for row in rows if row.get(described.metric)]
    except (ValueError, TypeError, KeyError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path} is damaged: {error}; remove {run.folder}, and the sweep runs it again") from error
    values = [(value, step) for value, step in values if math.isfinite(value)]
    if not values:
        there = ", ".join(sorted({key for row in rows for key in row if "/" in key})) or "nothing"
        raise UserError(f"{described.path}: no run logs a metric {described.metric}; {path} has {there}")
    best, step = (min if described.goal == "minimize" else max)(values)
    return Result(run, best, step + 1, values[-1][0])  # Lightning counts from 0


def _values(point: Point, keys: Sequence[str]) -> str:
    return "  ".join(f"{key}={point[key]}" for key in keys)


def _row(described: Sweep, result: Result) -> dict[str, Any]:
    """What the table says of a run."""
    last = result.run.settings
    figures = {"run": result.run.folder.name, described.metric: result.best, "step": result.step, "last": result.last}
    return {
        **figures,
        **{key: last[key].get_value_string() for key in described.parameters},
        "command": shlex.join(result.run.words),
    }


def _tell(path: Path, described: Sweep, results: Sequence[Result]) -> None:
    """Write and print the runs in order, and print the best one's command."""
    rows = [_row(described, result) for result in results]
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    columns = ["run", described.metric, "step", "last", *described.swept()]
    cells = [
        [f"{row[name]:.5f}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    log.info("")
    for line in (columns, *cells):
        log.info("%s", "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    best = results[0].run
    log.info("")
    log.info("Best: %s (%s)", best.folder, "its lowest" if described.goal == "minimize" else "its highest")
    log.info("  %s %s", command_line(MODULE), shlex.join(str(read.input_line) for read in best.settings.values()))
