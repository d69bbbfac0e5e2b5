"""The configuration files: where they are, their groups and choices, and how command-line arguments are parsed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sde_diffusion.errors import UserError


def config_folder() -> Path:
    """The folder of configurations: `conf/` of the source tree, or `sde_diffusion/conf` of an installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configurations found for {package}: reinstall sde_diffusion")


def run_folder(ckpt: Any, default: str) -> str:
    """Folder of a training run; when resuming from RUN/checkpoints/NAME.ckpt, RUN."""
    if isinstance(ckpt, str) and Path(ckpt).absolute().parent.name == "checkpoints":
        inside = Path(ckpt).parent.name != "checkpoints"  # a relative path, typed in that folder
        return str(Path(ckpt).absolute().parents[1] if inside else Path(ckpt).parent.parent)
    return default


def network_for(data: str) -> str:
    """The default network of a data set: conf/network/NAME.yaml if it exists for the data set's name, else `mlp`."""
    return data if (config_folder() / "network" / f"{data}.yaml").is_file() else "mlp"


def share(part: float, of: int, otherwise: int) -> int:
    """A part of a number of steps; `otherwise` if there is no limit, -1."""
    return round(part * of) if isinstance(of, int) and of >= 0 else otherwise


def choices(name: str) -> str:
    """The section of a command's help page that lists its configuration groups and their choices, if any."""
    known = {group: sorted(path.stem for path in (config_folder() / group).glob("*.yaml")) for group in _groups(name)}
    lines = [f"{group}: {', '.join(names)}" for group, names in known.items() if names]
    return "\n".join(["== Groups and their choices (GROUP=NAME)", *lines, "", ""]) if lines else ""


def command_keys(name: str) -> set[str]:
    """The top-level keys and groups of a command's configuration."""
    return {*_groups(name), *map(str, OmegaConf.load(config_folder() / f"{name}.yaml"))}


def _groups(name: str) -> list[str]:
    """The groups that a command's configuration is composed from, in order."""
    defaults = OmegaConf.load(config_folder() / f"{name}.yaml").defaults
    return [str(group).split()[-1] for entry in defaults if isinstance(entry, DictConfig) for group in entry]


def keys(name: str) -> str:
    """A command's own keys with their comments, from its configuration file, for its help page."""
    text = (config_folder() / f"{name}.yaml").read_text()
    own = text.partition("\n\n")[2].partition("\n\nhydra:")[0]
    return own.replace("$", "$$")  # Hydra passes the page through string.Template


def module(name: str) -> str:
    """The module to run a command with, for its help page: one of this package, or else a benchmark."""
    return f"{'sde_diffusion' if (Path(__file__).parents[1] / f'{name}.py').is_file() else 'benchmarks'}.{name}"


def check_groups(arguments: Sequence[str]) -> None:
    """Check that the value of each group is a name, which Hydra assumes without checking.

    Raises:
        UserError: If it is null, a number or the like, or several names where the group describes one object.
    """
    for argument in arguments:
        override = parse(argument)
        if override is None or override.is_delete() or not (config_folder() / override.key_or_group).is_dir():
            continue
        group, value = override.key_or_group, override.value()
        folder = config_folder() / group
        names = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
        wrong = [name for name in names if not isinstance(name, str | QuotedString | dict)]
        one = isinstance(value, list) and len(value) > 1 and _describes_one(folder / f"{value[0]}.yaml")
        if wrong or one:
            choices = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            raise UserError(f"{argument}: choose {group}= from {choices}{', one of them' if one else ''}")


def settings_of_choices(group: str) -> dict[str, dict[str, Any]]:
    """What each choice of a group sets, by its name, with the settings of the choice that it begins with, if any."""
    folder = config_folder() / group

    def of(name: str) -> dict[str, Any]:
        own = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
        assert isinstance(own, dict)
        begun = [one for one in own.pop("defaults", []) if isinstance(one, str) and one != "_self_"]
        return {str(key): value for node in (*map(of, begun), own) for key, value in node.items()}

    return {path.stem: of(path.stem) for path in sorted(folder.glob("*.yaml"))}


def described(group: str, choice: str | None, name: str) -> str:
    """The comment on a key that must be given, from the file of a group's choice: " (folder with ...)"; "" if none."""
    path = config_folder() / group / f"{choice}.yaml"
    found = re.search(rf"^{re.escape(name)}: \?\?\? +# (.+)$", path.read_text(), re.M) if path.is_file() else None
    return f" ({found[1]})" if found else ""


def register_resolvers() -> None:
    """Register the functions above as OmegaConf resolvers, such as `${run_folder:...}`."""
    for resolver in (run_folder, network_for, share, choices, keys, module):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def _describes_one(path: Path) -> bool:
    """Whether a group's file describes one object, so that a second file would overwrite the first."""
    return path.is_file() and "_target_" in OmegaConf.load(path)


def parse(argument: str) -> Override | None:
    """A KEY=VALUE argument, parsed by Hydra; None for an option and for anything that Hydra cannot parse."""
    if argument.startswith("-"):
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:  # Hydra reports it later
        return None


def nulls(arguments: Sequence[str]) -> list[str]:
    """The arguments with KEY=None, as Python programs such as wandb's agent write it, replaced by KEY=null.

    Hydra would read None as text.
    """
    read = [parse(argument) for argument in arguments]
    words = [override is not None and not override.is_delete() and override.get_value_string() for override in read]
    return [
        f"{argument.removesuffix('None')}null" if word == "None" else argument
        for argument, word in zip(arguments, words, strict=True)
    ]
