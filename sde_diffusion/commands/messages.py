"""Messages for errors of Hydra and OmegaConf: what is allowed, and what the user may have meant."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from sde_diffusion.checks.overrides import setting
from sde_diffusion.commands.configurations import config_folder, settings_of_choices
from sde_diffusion.errors import did_you_mean

_ALIASES = {
    "checkpoint": ["ckpt"],
    "fid": ["frechet", "metrics"],
    "kid": ["kernel", "metrics"],
    "labels": ["conditional", "conditions"],
    "patch_size": ["patch"],
    "resume": ["ckpt"],
}
"""What words of other programs are called here: the first of these that exists is meant."""


def explain(error: BaseException) -> str:
    """The message for an error of Hydra; for an unknown key or choice, it lists those that are allowed."""
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/launcher/submitit"):
        return "this launcher needs Hydra's submitit plugin, which is not installed: pip install 'sde_diffusion[slurm]'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        hint = did_you_mean(_named_here(name, error.options), error.options)
        return f"{group}={name} is not a choice{hint}; choose {group}= from {', '.join(error.options)}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return f"{str(error).rpartition('full_key: ')[2]}: {error.__cause__}"
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key or 'the command line'}: {str(error).splitlines()[0]}"
    absent = re.match(r"Could not override '(\w+)'", str(error))
    if absent and absent[1] == "sweeps":
        return "sweeps= is not a group: the files of conf/sweeps are for wandb sweep and python -m sde_diffusion.sweep"
    if absent and (config_folder() / absent[1]).is_dir() and "={" not in str(error):
        return _stored(absent[1])
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        if choices := sorted(path.stem for path in (config_folder() / error.override).glob("*.yaml")):
            return f"{error.override!r} is not KEY=VALUE: choose {error.override}= from {', '.join(choices)}"
        groups = sorted(path.parent.name for path in config_folder().glob(f"*/{glob.escape(error.override)}.yaml"))
        suffix = Path(error.override).suffix
        path = "file" if groups or suffix == ".yaml" else "ckpt" if suffix else ""
        key = next((group for group in groups if group != "sweeps"), path)
        hint = f"; did you mean {setting(key, error.override)}?" if key else "; --help lists the keys"
        return f"{error.override!r} is not KEY=VALUE{hint}"
    if isinstance(error, OverrideParseException):
        typed = str(error.override).removeprefix("++").removeprefix("conditions.")  # short for conditions.NAME=VALUE
        return (
            f"{typed!r} is not KEY=VALUE in Hydra's grammar: put quotes around the whole, such as "
            "'text=[a seven,a two]', and if the value has = or commas of its own, further ones inside, "
            "\"ckpt='epoch=3.ckpt'\""
        )
    unknown = re.search(r"Could not load '(\w+)/(\w+)'", str(error))
    if unknown:
        known = sorted(path.stem for path in (config_folder() / unknown[1]).glob("*.yaml"))
        hint = did_you_mean(_named_here(unknown[2], known), known)
        return f"{unknown[1]}={unknown[2]} is not a choice{hint}; choose {unknown[1]}= from {', '.join(known)}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GrammarParseError):
            full_key = getattr(cause, "full_key", None)
            where = f"{full_key}: " if full_key else ""
            return f"{where}{str(cause).splitlines()[0]}: ${{ begins the name of another key, as in ${{seed}}"
        if isinstance(cause, ConfigKeyError | OmegaConfBaseException) and isinstance(
            getattr(cause, "parent_node", None), DictConfig
        ):
            parent: DictConfig = cause.parent_node
            if getattr(cause, "key", None) is not None and cause.key not in parent:
                return unknown_key(str(cause.full_key or cause.key), parent)
        cause = cause.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def unknown_key(key: str, parent: DictConfig) -> str:
    """The message for an unknown key: which keys are allowed there, and which key may have been meant."""
    where = parent._get_full_key(None)
    choices = sorted(path.stem for path in (config_folder() / str(where)).glob("*.yaml")) if where else []
    if not parent and choices:
        return f"unknown key {key!r}: {where} is null or empty; choose {where}= from {', '.join(choices)} first"
    if not parent:
        return f"unknown key {key!r}: {where} is null or empty; add to it with +{key}=VALUE"
    if not where and (config_folder() / key).is_dir():
        return _stored(key)
    known = [name for name in _dotted(parent._get_root()) if not name.startswith("hydra.")]
    beside = {name: f"{where}.{name}" if where else name for name in map(str, parent)}
    others = {name.rpartition(".")[2]: name for name in reversed(known)}  # the first of several
    name, hint = key.rpartition(".")[2], ""
    if name in _ALIASES and (config_folder() / "metrics" / f"{_ALIASES[name][0]}.yaml").is_file():
        hint = f" (evaluate computes it: metrics=[{_ALIASES[name][0]}])"
    name = _named_here(name, others)
    for names, cutoff in ((others, 0.85), (beside, 0.7)):
        if close := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            hint = f" (did you mean {names[close[0]]}?)"
    if where and name not in parent and (elsewhere := _elsewhere(key, str(where), str(parent.get("_target_")))):
        hint = f": {elsewhere}"
    place = f" in {where}" if where else ""
    return f"unknown key {key!r}{hint}; allowed{place}: {', '.join(sorted(str(name) for name in parent))}"


def _named_here(word: str, names: Iterable[str]) -> str:
    """What a word of other programs is called here, if that is among some names; other words as they are."""
    return next((name for name in _ALIASES.get(word, []) if name in names), word)


def _stored(group: str) -> str:
    """The message for a group that the command has not."""
    having = [name for name in ("train", "sample", "restore", "evaluate") if group in _groups(name)]
    if "train" not in having:
        where = f", but of {' and '.join(f'sde_diffusion.{name}' for name in having)}" if having else ""
        return f"{group}= is not a setting of this command{where}; --help lists those it has"
    return (
        f"no {group}= here: the settings of training are stored in the checkpoint; those that can change, such as "
        "denoiser.compute_dtype, are changed by resuming: python -m sde_diffusion.train ckpt=PATH KEY=VALUE"
    )


def _groups(command: str) -> set[str]:
    """The groups of a command's configuration."""
    config: Any = OmegaConf.load(config_folder() / f"{command}.yaml")
    return {str(name) for entry in config.defaults if isinstance(entry, DictConfig) for name in entry}


def _elsewhere(key: str, group: str, target: str) -> str:
    """Which other choices of a group have a key that the present one, of a class, has not; "" if there are none."""
    choices = settings_of_choices(group)
    name = _named_here(key.rpartition(".")[2], [name for settings in choices.values() for name in settings])
    having = ", ".join(choice for choice, settings in choices.items() if name in settings)
    present = [choice for choice, settings in choices.items() if settings.get("_target_") == target]
    which = f"{group}={present[0]}" if len(present) == 1 else target.rpartition(".")[2]
    return f"{which} has no {name}, unlike {having}" if having else ""


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys below a node."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{prefix}{key}"
            child = None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]
            yield from _dotted(child, f"{prefix}{key}.")
