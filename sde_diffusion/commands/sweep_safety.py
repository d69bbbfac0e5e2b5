"""What a sweep file may do. It may come from anyone, so it can set values, but not choose code to run or folders.

`wandb agent` runs any command that a file contains. Here only this package's own program is run, by this interpreter,
with settings that say what is trained and how.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from sde_diffusion.commands.configurations import parse
from sde_diffusion.errors import UserError

MODULE = "sde_diffusion.train"
ALLOWED = '["${env}", "${interpreter}", -m, "${program}", KEY=VALUE ..., "${args_no_hyphens}"]'

_ENV, _INTERPRETERS = ("${env}", "/usr/bin/env"), ("${interpreter}", "python", "python3")
_PROGRAMS, _ARGUMENTS = ("${program}", MODULE), "${args_no_hyphens}"

_BUILT = ("sde", "network", "denoiser", "objective", "data", "sampler", "model", "guidance")
"""Groups built by `config.build`, of this package's own classes only: a file may set any key in them."""

_SET = ("callbacks", "trainer", "logger")
"""Groups built by Lightning and Hydra, of any class: a file may change existing values in them."""

_VALUES = ("seed", "conditional")
"""Keys that are not groups."""

_NAMED = ("experiment",)
"""Groups in which a file may choose a configuration by its name, but set nothing."""

_ALLOWED = (*_BUILT, *_SET, *_VALUES, *_NAMED)
_PLACES = ("folder", "dirpath", "filename", "default_root_dir", "logger", "callbacks", "plugins", "profiler")
"""Last parts of keys that choose where files go or which code runs."""

_MOST_NODES = 100_000


def parse_yaml(text: str) -> Any:
    """Parse YAML, with a limit on its size in which every alias counts as often as it is used.

    Raises:
        ValueError: If it is not YAML, or too large with its aliases expanded.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, set()) > _MOST_NODES:
            raise ValueError(f"it has more than {_MOST_NODES:,} values with its aliases expanded")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """The number of nodes of a tree with its aliases expanded."""
    if id(node) in above:
        raise ValueError("an alias refers to a list or mapping that contains the alias")
    if id(node) not in known:
        above.add(id(node))
        pairs = isinstance(node, yaml.MappingNode)
        children = [one for pair in node.value for one in pair] if pairs else node.value
        below = 0 if isinstance(node, yaml.ScalarNode) else sum(_count(one, known, above) for one in children)
        known[id(node)] = 1 + below
        above.remove(id(node))
    return known[id(node)]


def check_command(where: str, command: Any) -> list[str]:
    """Check that a file's command is this package's own program with settings.

    Args:
        where: The file, for messages.
        command: The command as a list, with wandb's macros.

    Returns:
        The command.

    Raises:
        UserError: If it is anything else.
    """
    words = [str(word) for word in command] if isinstance(command, list) else []
    head = words[1:] if words[:1] and words[0] in _ENV else words
    own = head[:1] and head[0] in _INTERPRETERS and head[1:2] == ["-m"] and head[2:3] and head[2] in _PROGRAMS
    if not own or head.count(_ARGUMENTS) != 1:
        raise UserError(
            f"{where}: command must be this package's own program, since no other command of a file is run: {ALLOWED} "
            f"with program: {MODULE}; got {command}"
        )
    check_settings(where, [word for word in head[3:] if word != _ARGUMENTS])
    return words


def check_settings(where: str, words: Sequence[str]) -> None:
    """Check that the arguments of a command are settings that a file may make.

    Args:
        where: The file, for messages.
        words: The arguments, KEY=VALUE each.

    Raises:
        UserError: If one is not a setting, or chooses where files go or which code runs.
    """
    for word in words:
        override = parse(word)
        if override is None:
            raise UserError(f"{where}: {word!r} is not KEY=VALUE")
        if reason := _refused(override, word):
            raise UserError(
                f"{where}: {word!r} {reason}: a sweep file may set values of {', '.join(_ALLOWED)}; give other "
                "settings on the command line, after --"
            )


def _refused(override: Override, word: str) -> str:
    """Why a file may not make a setting; "" if it may."""
    key = str(override.key_or_group)
    if override.package is not None or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
        return "does not name a dotted key"
    group, *below = key.split(".")
    if re.search(r"\$\{[^}]*:", word):
        return "reads something outside the configuration"
    if group not in _ALLOWED:
        return "sets a key that a file may not set"
    if not below and group not in _VALUES and not override.is_delete():
        # A name in conf/; a path could lead to any configuration.
        named = re.fullmatch(r"[\w-]+", override.get_value_string())
        return "" if named and not override.is_add() else "does not choose by name"
    if group in _SET and (override.is_add() or override.is_force_add() or override.is_delete()):
        return "adds or removes a key that a file may only change"
    if group in _SET and (below[-1].startswith("_") or below[-1] in _PLACES or "{" in override.get_value_string()):
        return "chooses which code runs or where files go"
    return ""
