"""The names and layouts of weights in other programs' files, as tables from our names to theirs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import few
from sde_diffusion.errors import UserError

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Location:
    """Where the weights of one of our modules are in a file.

    Args:
        names: The modules there; of several, the weights are joined along the first dimension.
        linear: Whether a 1x1 convolution of ours is a linear layer there, [out, in].
        transposed: Whether its weight is [in, out] there.
        weight: The name of its weight.
        bias: The name of its bias.
    """

    names: tuple[str, ...]
    linear: bool = False
    transposed: bool = False
    weight: str = "weight"
    bias: str = "bias"

    def at(self, *groups: str) -> Location:
        """The location with {0}, {1}, ... filled in."""
        return replace(self, names=tuple(name.format(*groups) for name in self.names))

    def keys(self, parameter: str) -> list[str]:
        """The keys of "weight", "bias" or another parameter in the file."""
        own = {"weight": self.weight, "bias": self.bias}.get(parameter, parameter)
        return [f"{name}.{own}" if name else own for name in self.names]


Table = dict[str, Location]
"""Where the modules are whose names match a regular expression; {0}, {1}, ... in a location are its groups."""


def module(*names: str, linear: bool = False) -> Location:
    """The location of a module under these names."""
    return Location(names, linear)


def inside(ours: str, theirs: str, table: Mapping[str, Location]) -> Table:
    """The table of the modules inside one."""
    return {
        rf"{ours}\.{name}": replace(found, names=tuple(f"{theirs}.{one}" for one in found.names))
        for name, found in table.items()
    }


def located(keys: Iterable[str], table: Mapping[str, Location]) -> dict[str, tuple[Location, str]]:
    """For each key of our weights that the file has, the module there, and the name of the parameter."""
    found = {}
    for key in keys:
        name, _, parameter = key.rpartition(".")
        for pattern, theirs in table.items():
            if match := re.fullmatch(pattern, name):
                found[key] = theirs.at(*match.groups()), parameter
                break
    return found


def renamed(weights: Mapping[str, Tensor], changes: Sequence[tuple[str, str]]) -> Weights:
    """Weights with names of earlier versions replaced, by regular expressions."""
    found = {}
    for key, value in weights.items():
        for old, new in changes:
            key = re.sub(old, new, key)
        found[key] = value
    return found


def imported(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], table: Mapping[str, Location], path: object
) -> Weights:
    """The weights of our network from those in a file.

    Args:
        weights: The file's.
        wanted: Our network's, of which only names and shapes are used.
        table: See `Table`.
        path: The file, for messages.

    Raises:
        UserError: If weights are missing, left over, or of another shape; the message has their names.
    """
    locations = located(wanted, table)
    needed = {key: module.keys(parameter) for key, (module, parameter) in locations.items()}
    used = {name for names in needed.values() for name in names}
    _check(
        {"missing": [n for n in sorted(used) if n not in weights], "extra": [n for n in weights if n not in used]}, path
    )
    found, wrong = {}, []
    for key, names in needed.items():
        module, parameter = locations[key]
        parts = [weights[name] for name in names]
        if module.transposed and parameter == "weight":
            parts = [part.T for part in parts]
        shape = wanted[key].shape
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        if _bare(value.shape) != _bare(shape):
            wrong.append(f"{names[0]} {list(value.shape)} for {list(shape)}")
            continue
        found[key] = value.reshape(shape).to(wanted[key].dtype).contiguous()
        if not bool(torch.isfinite(found[key]).all()):
            raise UserError(f"{path}: {names[0]} has NaN or infinite values")
    _check({"of another shape": wrong}, path)
    return found


def exported(weights: Mapping[str, Tensor], table: Mapping[str, Location]) -> Weights:
    """Weights of our network under the file's names; the inverse of `imported`."""
    found: Weights = {}
    for key, (module, parameter) in located(weights, table).items():
        names = module.keys(parameter)
        for name, part in zip(names, weights[key].chunk(len(names)), strict=True):
            value = part.flatten(1) if module.linear and parameter == "weight" else part
            found[name] = (value.T if module.transposed and parameter == "weight" else value).contiguous().clone()
    return found


def _bare(shape: Sequence[int]) -> list[int]:
    """A shape without the ones at its end: a 1x1 convolution is a linear layer."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return sizes


def _check(problems: Mapping[str, Collection[str]], path: object) -> None:
    if any(problems.values()):
        said = [f"{len(names)} {what} ({few(list(names), 3)})" for what, names in problems.items() if names]
        raise UserError(f"{path}: the weights do not fit the network that is described: {'; '.join(said)}")
