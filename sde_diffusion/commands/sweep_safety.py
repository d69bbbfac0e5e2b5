"""What a sweep file may ask for: it may have come from anyone, so it sets values, and neither runs nor places anything.

`wandb agent` runs whatever words a file lists. Here only this package's own program is run, by this interpreter, and a
file's settings are those that say what is trained and how.
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

_BUILT = ("sde", "network", "denoiser", "objective", "data", "sampler", "model")
"""Groups that `config.build` makes, of this package's own classes only: a file may set anything there."""

_SET = ("callbacks", "trainer", "logger")
"""Groups that Lightning and Hydra make, of any class: a file may set values that are there already."""

_VALUES = ("seed", "conditional")
"""Keys of one value each."""

_NAMED = ("experiment",)
"""Groups of which a file may choose a configuration by its name, and set nothing in it."""

_ALLOWED = (*_BUILT, *_SET, *_VALUES, *_NAMED)
_PLACES = ("folder", "dirpath", "filename", "default_root_dir", "logger", "callbacks", "plugins", "profiler")
"""Last parts of keys that say where files go, or with whose code."""

_MOST_NODES = 100_000


def parse_yaml(text: str) -> Any:
    """Plain containers of a YAML file, whose size is limited with every alias counted as often as it is used.

    Raises:
        ValueError: If it is no YAML, or too large with its aliases written out.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, set()) > _MOST_NODES:
            raise ValueError(f"it has more than {_MOST_NODES:,} values, aliases written out")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Nodes of a tree with its aliases written out."""
    if id(node) in above:
        raise ValueError("an alias in it stands for a list or mapping that holds the alias")
    if id(node) not in known:
        above.add(id(node))
        pairs = isinstance(node, yaml.MappingNode)
        children = [one for pair in node.value for one in pair] if pairs else node.value
        below = 0 if isinstance(node, yaml.ScalarNode) else sum(_count(one, known, above) for one in children)
        known[id(node)] = 1 + below
        above.remove(id(node))
    return known[id(node)]


def check_command(where: str, command: Any) -> list[str]:
    """A file's command, which must be this package's own program with settings.

    Args:
        where: The file, for messages.
        command: Its words, with wandb's macros in them.

    Returns:
        The words.

    Raises:
        UserError: If it is anything else.
    """
    words = [str(word) for word in command] if isinstance(command, list) else []
    head = words[1:] if words[:1] and words[0] in _ENV else words
    own = head[:1] and head[0] in _INTERPRETERS and head[1:2] == ["-m"] and head[2:3] and head[2] in _PROGRAMS
    if not own or head.count(_ARGUMENTS) != 1:
        raise UserError(
            f"{where}: command must be this package's own program, for a file's words are never run otherwise: "
            f"{ALLOWED} with program: {MODULE}; got {command}"
        )
    check_settings(where, [word for word in head[3:] if word != _ARGUMENTS])
    return words


def check_settings(where: str, words: Sequence[str]) -> None:
    """See that words are settings that a file may make.

    Args:
        where: The file, for messages.
        words: KEY=VALUE each.

    Raises:
        UserError: If one is no setting, or says where files go, or which code is run.
    """
    for word in words:
        override = parse(word)
        if override is None:
            raise UserError(f"{where}: {word!r} is not KEY=VALUE")
        if reason := _refused(override, word):
            raise UserError(
                f"{where}: {word!r} {reason}: a sweep file sets values of {', '.join(_ALLOWED)}; give "
                "other settings yourself, behind --"
            )


def _refused(override: Override, word: str) -> str:
    """Why a setting is none that a file may make; "" for one that it may."""
    key = str(override.key_or_group)
    if override.package is not None or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
        return "does not name a key with its dots"
    group, *below = key.split(".")
    if re.search(r"\$\{[^}]*:", word):
        return "looks something up outside the configuration"
    if group not in _ALLOWED:
        return "sets what a file may not"
    if not below and group not in _VALUES and not override.is_delete():
        # A name of conf/; a path would lead to a configuration of anybody's.
        named = re.fullmatch(r"[\w-]+", override.get_value_string())
        return "" if named and not override.is_add() else "does not choose by name"
    if group in _SET and (override.is_add() or override.is_force_add() or override.is_delete()):
        return "adds or removes what a file may not"
    if group in _SET and (below[-1].startswith("_") or below[-1] in _PLACES or "{" in override.get_value_string()):
        return "says which code is run or where files go"
    return ""
