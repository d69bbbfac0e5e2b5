"""wandb's sweep files: their contents, and the command lines that `wandb agent` would make of them.

The method bayes needs the server, which chooses the next run by the results of earlier ones. Here it is replaced by
random search over the same ranges. (wandb's package for local suggestions, `sweeps`, needs NumPy 1.)
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from sde_diffusion.checks.hints import Rule, at_least, expect
from sde_diffusion.commands.sweep_safety import MODULE, check_command, check_settings, parse_yaml
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import opened

Point = dict[str, Any]
"""One run's values, by dotted key."""

KEYS = (
    "program",
    "command",
    "method",
    "metric",
    "parameters",
    "early_terminate",
    "run_cap",
    "name",
    "description",
    "project",
    "entity",
)
MOST_RUNS = 10_000
_MOST_BYTES = 2**20
_GOALS = ("minimize", "maximize")


def _steps(value: float, q: float) -> float:
    return round(value / q) * q


def _log_uniform(random: Random, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "uniform": (("min", "max"), lambda random, p: random.uniform(p["min"], p["max"])),
    "int_uniform": (("min", "max"), lambda random, p: random.randint(int(p["min"]), int(p["max"]))),
    "q_uniform": (("min", "max", "q"), lambda random, p: _steps(random.uniform(p["min"], p["max"]), p["q"])),
    "log_uniform_values": (("min", "max"), lambda random, p: _log_uniform(random, p["min"], p["max"])),
    "q_log_uniform_values": (
        ("min", "max", "q"),
        lambda random, p: _steps(_log_uniform(random, p["min"], p["max"]), p["q"]),
    ),
}
"""Supported distributions by wandb's names: their required settings, and a function that draws a value."""

_METRIC = "a mapping with a name, such as val/loss, and a goal, one of minimize, maximize"
_RULES: dict[str, Any] = {
    "method": Literal["grid", "random", "bayes"],
    "metric": Annotated[dict[str, Any], Rule(_METRIC, lambda one: "name" in one and one.get("goal") in _GOALS)],
    "program": Literal[MODULE],
    "run_cap": Annotated[int, at_least(1, MOST_RUNS)] | None,
    "parameters": Annotated[dict[Any, Any], Rule("at least one key with its values", bool)],
}
"""Type hints of a file's entries."""

_LARGEST = 1e300
_NUMBER = Annotated[
    float, Rule(f"a number below {_LARGEST} (with a decimal point: 1.0e-3, not 1e-3)", lambda x: abs(x) < _LARGEST)
]


@dataclass(frozen=True)
class Sweep:
    """A sweep file's contents.

    Args:
        path: The file.
        digest: SHA-256 of the file.
        method: grid, random or bayes.
        metric: The metric's name, as runs log it.
        goal: minimize or maximize.
        command: The command, with wandb's macros.
        parameters: wandb's description of the values of each key.
        run_cap: Maximum number of runs; None: no limit.
        early_terminate: Whether the server would stop unpromising runs.
    """

    path: Path
    digest: str
    method: str
    metric: str
    goal: str
    command: list[str]
    parameters: dict[str, dict[str, Any]]
    run_cap: int | None
    early_terminate: bool

    def points(self, n: int | None, seed: int) -> list[Point]:
        """The values of the runs: the points of the grid in order, the last key fastest, or independent draws.

        Args:
            n: Number of runs; None: `run_cap`, or the full grid.
            seed: Seed of the draws. The first draws are the same for every n.

        Raises:
            UserError: If the number of runs is unlimited or too large, or the grid has fewer points.
        """
        wanted = self.run_cap if n is None else n
        if self.method == "grid":
            values = [_listed(parameter) for parameter in self.parameters.values()]
            size = math.prod(map(len, values))
            if n is not None and n > size:
                raise UserError(f"{self.path}: the grid has {size} points; got n={n}")
            if min(size, size if wanted is None else wanted) > MOST_RUNS:
                raise UserError(f"{self.path}: the grid has {size} points: give n=NUMBER of at most {MOST_RUNS}")
            grid = itertools.islice(itertools.product(*values), wanted)
            return [dict(zip(self.parameters, point, strict=True)) for point in grid]
        if wanted is None:
            raise UserError(
                f"{self.path}: a search with method {self.method} has no end: give n=NUMBER, the number of runs"
            )
        if wanted > MOST_RUNS:
            raise UserError(f"{self.path}: n={wanted} runs are too many: give n=NUMBER of at most {MOST_RUNS}")
        random = Random(seed)
        return [{key: _draw(random, parameter) for key, parameter in self.parameters.items()} for _ in range(wanted)]

    def agent_command(self, point: Point) -> list[str]:
        """The command line that `wandb agent` would run for these values.

        Raises:
            UserError: If a value is not a setting that a sweep file may make; see `sweep_safety`.
        """
        values = [f"{key}={value}" for key, value in point.items()]
        check_settings(str(self.path), values)
        filled = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": [MODULE]}
        filled["${args_no_hyphens}"] = values
        return [word for each in self.command for word in filled.get(each, [each])]

    def swept(self) -> list[str]:
        """The keys that differ between runs."""
        return [key for key, parameter in self.parameters.items() if len(_listed(parameter)) != 1]


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Args:
        path: The file.

    Raises:
        UserError: If it is not a sweep file, or needs the server.
    """
    with opened(path) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path} is not a sweep file: it has more than {_MOST_BYTES:,} bytes")
    try:
        raw = parse_yaml(data.decode())
    except ValueError as error:  # of which UnicodeDecodeError is one
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping) or not {"method", "parameters"} <= set(raw):
        raise UserError(f"{path} is not a sweep file: it lacks method and parameters; see conf/sweeps/grid.yaml")
    unknown = [str(key) for key in raw if key not in KEYS]
    if unknown:
        raise UserError(f"{path}: unknown key {', '.join(unknown)}; allowed: {', '.join(KEYS)}")
    for key, hint in _RULES.items():
        expect(f"{path}: {key}", raw.get(key), hint)
    command = check_command(str(path), raw.get("command"))
    metric, parameters = raw["metric"], raw["parameters"]
    checked = {str(key): _checked(f"{path}: parameters.{key}", one, raw["method"]) for key, one in parameters.items()}
    return Sweep(
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        method=raw["method"],
        metric=str(metric["name"]),
        goal=metric["goal"],
        command=command,
        parameters=checked,
        run_cap=raw.get("run_cap"),
        early_terminate=bool(raw.get("early_terminate")),
    )


def _checked(where: str, parameter: Any, method: str) -> dict[str, Any]:
    """A parameter with its distribution, inferred as wandb does."""
    if not isinstance(parameter, Mapping):
        raise UserError(f"{where} must be a mapping with value, values, or a distribution; got {parameter}")
    if parameter.get("distribution") in ("constant", "categorical"):  # implied by value and values
        parameter = {key: value for key, value in parameter.items() if key != "distribution"}
    if set(parameter) == {"value"}:
        return dict(parameter)
    if set(parameter) == {"values"} and isinstance(parameter["values"], list) and parameter["values"]:
        return dict(parameter)
    integers = all(isinstance(parameter.get(key), int) for key in ("min", "max"))
    name = parameter.get("distribution", "int_uniform" if integers else "uniform")
    if name not in DISTRIBUTIONS:
        raise UserError(f"{where}: distribution must be one of {', '.join(DISTRIBUTIONS)} here; got {name}")
    if method == "grid":
        raise UserError(f"{where}: a grid needs value or values; got {', '.join(map(str, parameter))}")
    needed, _ = DISTRIBUTIONS[name]
    if set(parameter) - {"distribution"} != set(needed):
        raise UserError(f"{where} must have value, or values, or {', '.join(needed)} for {name}; got {dict(parameter)}")
    for key in needed:
        expect(f"{where}.{key}", parameter[key], int if name == "int_uniform" else _NUMBER)
    low, high, q = parameter["min"], parameter["max"], parameter.get("q", 1)
    if not (0 if "log" in name else -math.inf) < low <= high or not q > 0 or max(abs(low), abs(high)) / q > _LARGEST:
        rule = f"{'0 < ' if 'log' in name else ''}min <= max{' and q > 0' if 'q' in needed else ''}"
        raise UserError(f"{where} must have {rule}; got {dict(parameter)}")
    return {**parameter, "distribution": name}


def _listed(parameter: Mapping[str, Any]) -> list[Any]:
    """A parameter's values if they are listed; empty if they are drawn from a range."""
    return [parameter["value"]] if "value" in parameter else list(parameter.get("values", []))


def _draw(random: Random, parameter: Mapping[str, Any]) -> Any:
    if "distribution" not in parameter:
        return random.choice(_listed(parameter))
    _, draw = DISTRIBUTIONS[parameter["distribution"]]
    value = draw(random, parameter)
    return float(f"{value:.6g}") if isinstance(value, float) else value  # 0.3 for 3 * 0.1, and short to copy
