"""The grids that were found for a checkpoint, in a file beside it: `grid=tuned` in a sampler's settings.

`python -m benchmarks.nfe_fid tune=true ckpt=PATH` writes the file. It belongs to one state of the checkpoint, and has
a grid for each sampler and guidance that was tuned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from omegaconf import DictConfig

from sde_diffusion.checks.hints import arguments_of, fits
from sde_diffusion.checks.overrides import command_line
from sde_diffusion.commands.app import resolved
from sde_diffusion.config import build, find_class, is_description, settings_of
from sde_diffusion.errors import UserError
from sde_diffusion.storage import record
from sde_diffusion.storage.files import read_json, writing

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

TUNED = "tuned"
"""What stands for the grid, in a sampler's settings, until the checkpoint is known."""

_CLASS = "sde_diffusion.sde.TunedGrid"


class TunedWalk(TypedDict):
    """The grid for a number of network passes.

    The errors, on this grid and on the sampler's own, are root mean square distances to the same sampler's samples in
    `target_passes`, from the first to the last of `seeds`; conditions are those of items of `split`.
    """

    passes: int
    log_snr: list[float]
    error: float
    untuned_error: float
    target_passes: int
    seeds: list[int]
    split: str


class TunedEntry(TypedDict):
    """The grids for a sampler and a guidance."""

    sampler: Mapping[str, Any]
    guidance: Mapping[str, Any] | None
    walks: list[TunedWalk]


def with_placeholder(settings: Any) -> Any:
    """A sampler's settings with some tuned grid in place of the word, for checks before the checkpoint is known."""
    asked = is_description(settings) and settings.get("grid") == TUNED
    return {**settings, "grid": {"_target_": _CLASS, "log_snr": [[0.0, 1.0]]}} if asked else settings


def with_grid(
    settings: Mapping[str, Any], ckpt: str, digest: str, guidance: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A sampler's settings with the grid of a checkpoint in place of the word `tuned`; others as they are.

    Args:
        settings: The settings, {_target_: CLASS, ...}.
        ckpt: Path of the checkpoint.
        digest: SHA-256 of the checkpoint.
        guidance: Settings of the guidance, or None.

    Raises:
        UserError: If there is no such grid, or the file is damaged or of another state of the checkpoint.
    """
    if settings.get("grid") != TUNED:
        return dict(settings)
    path, make = beside(ckpt), _command(ckpt)
    if not path.exists():
        raise UserError(
            f"grid=tuned takes the grid that was found for a checkpoint, and {path} does not exist; find it: {make}"
        )
    known, wanted = read(ckpt, digest), identity(settings)
    for entry in known:
        if (entry["sampler"], entry["guidance"]) == (wanted, guidance):
            return {**settings, "grid": {"_target_": _CLASS, "log_snr": lists_of(entry["walks"])}}
    those = "; ".join(_in_words(entry["sampler"], entry["guidance"]) for entry in known)
    raise UserError(
        f"{path} has no grid for {_in_words(wanted, guidance)}, but for {those}: take one of these, or tune this one "
        f"too, {make} 'tuning.samplers=[NAME]'"
    )


def sampler_settings(cfg: DictConfig, model: GenerativeModel, upsampler: bool = False) -> dict[str, Any]:
    """The settings of a command's sampler, with the grid of the model's checkpoint if it is asked for.

    Args:
        cfg: A configuration with sampler; for a tuned grid also with ckpt and guidance, or upsampler.ckpt.
        model: The model.
        upsampler: Whether the model is the upsampler, which is not guided.

    Raises:
        UserError: See `with_grid`.
    """
    settings: dict[str, Any] = resolved(cfg.sampler)
    if settings.get("grid") != TUNED:
        return settings
    ckpt, guidance = (cfg.upsampler.ckpt, None) if upsampler else (cfg.ckpt, resolved(cfg.guidance))
    return with_grid(settings, str(ckpt), model.digest, guidance)


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a sampler but the number of its steps and its grid, in the form that JSON gives back."""
    from sde_diffusion.sampling import Sampler

    bare = build({name: value for name, value in settings.items() if name != "grid"}, "sampler")
    found = {name: value for name, value in settings_of(bare, Sampler).items() if name not in ("steps", "grid")}
    read_back: dict[str, Any] = json.loads(json.dumps(found, default=repr))
    return read_back


def lists_of(walks: Sequence[TunedWalk]) -> list[list[float]]:
    """The log-SNRs of walks, one list for each length: with two passes a step, six and seven passes have the same."""
    return list({len(walk["log_snr"]): walk["log_snr"] for walk in walks}.values())


def beside(ckpt: str) -> Path:
    """The file of a checkpoint's grids: last.grids.json for last.ckpt."""
    path = Path(ckpt)
    return path.with_name(f"{path.name.removesuffix('.ckpt')}.grids.json")


def read(ckpt: str, digest: str) -> list[TunedEntry]:
    """What was found for a checkpoint so far; nothing if there is no file.

    Raises:
        UserError: If the file is damaged, or of another state of the checkpoint.
    """
    path = beside(ckpt)
    if not path.exists():
        return []
    remedy = f"remove it, and tune again: {_command(ckpt)}"
    content = read_json(path, remedy)
    entries: list[TunedEntry] = content.get("grids", [])
    if not fits(entries, list[TunedEntry]) or not all(entry["walks"] for entry in entries):
        raise UserError(f"{path} is damaged: it has no lists of log-SNRs as the command writes them; {remedy}")
    if content.get("checkpoint_sha256") != digest:
        raise UserError(f"{path} was found for another checkpoint, or an earlier state of {ckpt}; {remedy}")
    return entries


def write(ckpt: str, digest: str, entries: Sequence[TunedEntry]) -> Path:
    """Write what was found for a checkpoint beside it; returns the file.

    Raises:
        UserError: If it cannot be written.
    """
    content = {"checkpoint_sha256": digest, "grids": list(entries), **record.provenance()}
    with writing(path := beside(ckpt)) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _command(ckpt: str) -> str:
    return command_line("benchmarks.nfe_fid", ckpt=ckpt, tune=True)


def _in_words(sampler: Mapping[str, Any], guidance: Mapping[str, Any] | None) -> str:
    usual = {**arguments_of(find_class(str(sampler["_target_"]), "sampler"))[1], "_target_": sampler["_target_"]}
    settings = ", ".join(f"{name}={value!r}" for name, value in sampler.items() if value != usual.get(name))
    made = f"{sampler['_target_'].rpartition('.')[2]}({settings})"  # not its repr, which has the default steps
    return made if guidance is None else f"{made} with guidance {guidance['_target_'].rpartition('.')[2]} {guidance}"
