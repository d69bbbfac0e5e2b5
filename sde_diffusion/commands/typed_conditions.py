"""Short forms on the command line: `rate=0.5` for a condition `rate`, which no file can list; `edit=FILE`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from sde_diffusion.checks.overrides import hydra_value
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.errors import UserError


def in_full(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, beginning with the program, in place of short forms."""
    return with_conditions(name, with_paths(name, with_quotes(with_checkpoint(arguments))))


def with_checkpoint(arguments: Sequence[str]) -> list[str]:
    """The arguments, with ckpt=PATH in place of pretrained=PATH, which is for other programs' checkpoints.

    Raises:
        UserError: If both are given.
    """
    both = [argument for argument in arguments if re.match("(ckpt|pretrained)=", argument)]
    if len({argument.partition("=")[0] for argument in both}) == 2:
        raise UserError(f"{' '.join(both)}: these are two names of one setting; give one of them")
    return [re.sub("^pretrained=", "ckpt=", argument) for argument in arguments]


def with_quotes(arguments: Sequence[str]) -> list[str]:
    """The arguments, with values in quotes that are texts: more than one word, as in text='a seven, leaning left'.

    Hydra would take commas for lists of values, and other marks for its own syntax. These are values of conditions,
    also of `guidance.negative`.

    Args:
        arguments: The arguments as typed, beginning with the program.
    """
    found = []
    for argument in arguments:
        key, is_setting, value = argument.partition("=")
        is_text = bool(is_setting) and re.search(r"\s|[!;]|\w'\w", value) and value.lstrip()[0] not in "[{('\""
        negative = key.lstrip("+").startswith("guidance.negative.")
        typed = re.fullmatch(r"(conditions\.)?[^\W\d]\w*", key) is not None or negative
        words = hydra_value(value) if is_text and typed else value
        found.append(f"{'++' * (negative and key[0] != '+')}{key}={words}" if is_setting and typed else argument)
    return found


def with_conditions(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, with NAME=VALUE replaced by conditions.NAME=VALUE if NAME is not a key of the command.

    Whether the model has such a condition is checked when its checkpoint is read; see
    `conditions.requested_conditions`.

    Args:
        name: Name of the command.
        arguments: The arguments as typed, beginning with the program.
    """
    own = OmegaConf.load(config_folder() / f"{name}.yaml")
    if "conditions" not in own:
        return list(arguments)
    known = set(map(str, own))
    found = list(arguments[:1])
    for argument in arguments[1:]:
        if "confidence" in own:
            argument = re.sub("^level=", "confidence=", argument)  # its name in version 0.1
        key = re.match(r"(conditions\.)?([^\W\d]\w*)=", argument)
        typed = key is not None and (key[1] or not (key[2] in known or _is_group(key[2])))
        found.append(f"++conditions.{argument.removeprefix('conditions.')}" if typed else argument)
    return found


def _is_group(name: str) -> bool:
    """Whether a name is that of a group of `train`, and not also of a condition."""
    if not (config_folder() / name).is_dir():
        return False
    from sde_diffusion.conditions import KINDS  # here, as it imports torch

    return all(name not in kind.groups.values() for kind in KINDS)


def with_paths(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, with KEY=PATH replaced by KEY.path=PATH if KEY has further settings beside its path: `edit=FILE`.

    Args:
        name: Name of the command.
        arguments: The arguments as typed, beginning with the program.
    """
    own: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{name}.yaml"))
    with_path = [key for key, node in own.items() if isinstance(node, dict) and "path" in node]
    short = [key for key in with_path if not (config_folder() / key).is_dir()]
    found = []
    for argument in arguments:
        key, is_setting, value = argument.partition("=")
        typed = is_setting and key in short and not value.startswith("{")
        found.append(f"{key}.path={value}" if typed else argument)
    return found
