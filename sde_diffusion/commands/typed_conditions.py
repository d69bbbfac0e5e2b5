"""Conditions on the command line, which no configuration file can know: `rate=0.5` for a model that is told a rate."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omegaconf import OmegaConf

from sde_diffusion.commands.configurations import config_folder


def with_conditions(name: str, arguments: Sequence[str]) -> list[str]:
    """Arguments in which NAME=VALUE, where NAME is no key of the command, stands below `conditions`.

    Whether the model has such a condition is known when its checkpoint is read; see `conditions.given`.

    Args:
        name: The command's.
        arguments: As typed, the program first.
    """
    own = OmegaConf.load(config_folder() / f"{name}.yaml")
    if "conditions" not in own:
        return list(arguments)
    known = {*map(str, own), *(path.name for path in config_folder().iterdir() if path.is_dir())}
    found = list(arguments[:1])
    for argument in arguments[1:]:
        key = re.match(r"(conditions\.)?([^\W\d]\w*)=", argument)
        typed = key is not None and (key[1] or key[2] not in known)
        found.append(f"++conditions.{argument.removeprefix('conditions.')}" if typed else argument)
    return found
