"""Which program wrote a file or folder, and what is in it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion.errors import UserError
from sde_diffusion.pretrained import diffusers_unet, dit, own, score_sde
from sde_diffusion.pretrained.description import Description, Settings, data_of, labels, network_denoiser
from sde_diffusion.pretrained.files import SUFFIXES, config_of, tensors, torch_file, weights_in
from sde_diffusion.pretrained.names import Table, Weights, renamed
from sde_diffusion.pretrained.schedulers import Diffusion, diffusion_of, exploding

KNOWN = (
    "a folder of diffusers with a UNet2DModel or a DiTTransformer2DModel and its scheduler; a DiT of its authors "
    "(.pt); a checkpoint of score_sde_pytorch (.pth); a folder written by Pretrained.save"
)


_OUR_ENTRY = b"X" + len("sde_diffusion").to_bytes(4, "little") + b"sde_diffusion"
"""The name of an entry of our checkpoints, as torch.save writes text; names of classes are written otherwise."""


@dataclass(frozen=True)
class Found:
    """A checkpoint: its description, its weights, and the names that they have.

    Attributes:
        description: See `Description`.
        weights: The weights as they are in the file.
        table: Our names and theirs; None: they are ours.
        files: The files that were read.
    """

    description: Description
    weights: Weights
    table: Table | None
    files: list[Path]


@dataclass(frozen=True)
class _Kind:
    """A class of network of diffusers: its settings, its names, and changes of its weights."""

    settings: Callable[[Settings, object], Settings]
    table: Callable[[Settings], Table]
    weights: Callable[[Weights, object], Weights]
    drops_conditions: bool = False


_DIT = _Kind(dit.settings_of, lambda settings: dit.DIFFUSERS, dit.without_copies, True)
DIFFUSERS: dict[str, _Kind] = {
    "UNet2DModel": _Kind(
        diffusers_unet.settings_of,
        diffusers_unet.table_for,
        lambda weights, path: renamed(weights, diffusers_unet.OLD_NAMES),
    ),
    "DiTTransformer2DModel": _DIT,
    "Transformer2DModel": _DIT,  # the class of DiTs in earlier versions
}
"""The networks of diffusers that are known, by class."""


def read(path: Path, sde: str | None) -> Found:
    """Read a checkpoint of another program.

    Args:
        path: The file or folder.
        sde: See `Pretrained.load`.

    Raises:
        UserError: If it does not exist, is damaged, is of no kind that is known, or is not one that `sde` is for.
    """
    if path.is_dir():
        check_no_sde(sde, path)
        return own.read(path) if own.is_own(path) else _diffusers(path)
    found = torch_file(path)
    if score_sde.is_checkpoint(found):
        return _score_sde(path, found, sde)
    check_no_sde(sde, path)
    return _authors_dit(path, found)


def check_no_sde(sde: str | None, path: Path) -> None:
    """Check that no path is named for a checkpoint that says its own.

    Raises:
        UserError: If one is.
    """
    if sde is not None:
        raise UserError(f"sde={sde} is for checkpoints of score_sde_pytorch, and {path} is none: leave it out")


def recognises(path: str | Path) -> bool:
    """Whether a path is of another program: a folder that is no run's, or a file of weights that is none of ours."""
    file = Path(path)
    if file.is_dir():
        return not ((file / "checkpoints").is_dir() or any(file.glob("*.ckpt")))
    return file.suffix in (*SUFFIXES, ".pkl") and not _has_our_entry(file)


def _has_our_entry(file: Path) -> bool:
    """Whether a file of torch.save has this library's entry `sde_diffusion`; no code in it is run."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(_OUR_ENTRY in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    except (OSError, zipfile.BadZipFile):
        return False


def _diffusers(folder: Path) -> Found:
    part, config = _network_in(folder)
    name = str(config.get("_class_name"))
    kind = DIFFUSERS.get(name)
    if kind is None:
        raise UserError(f"{folder} is of {name}, which is not a network that is known; those that are: {KNOWN}")
    settings = kind.settings(config, part / "config.json")
    diffusion = _scheduled(folder, settings)
    weights, files = weights_in(part)
    weights = kind.weights(weights, files[0])
    drops = kind.drops_conditions and settings["n_classes"] > 0
    description = _described(f"diffusers {name}", folder, settings, diffusion, drops)
    return Found(description, weights, kind.table(settings), files)


def _network_in(folder: Path) -> tuple[Path, Settings]:
    """The folder of the network, and its configuration."""
    for part in (folder / "unet", folder / "transformer", folder):
        if (part / "config.json").is_file():
            return part, config_of(part)
    raise UserError(f"{folder} has no config.json, also not in unet or transformer; what is known: {KNOWN}")


def _scheduled(folder: Path, settings: Settings) -> Diffusion:
    homes = [folder / "scheduler", folder, folder.parent / "scheduler"]
    file = next((one / "scheduler_config.json" for one in homes if (one / "scheduler_config.json").is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no scheduler_config.json, which says what noise its network was trained with")
    config = config_of(file.parent, file.name)
    sigmas, fourier = (config.get("sigma_min"), config.get("sigma_max")), score_sde.is_fourier(settings)
    if fourier != (config.get("_class_name") == "ScoreSdeVeScheduler"):
        raise UserError(f"{file} is of {config.get('_class_name')}, which does not fit the network's time embedding")
    return exploding(sigmas[0] or 0.01, sigmas[1] or 1348.0) if fourier else diffusion_of(config, file)


def _described(source: str, path: Path, settings: Settings, diffusion: Diffusion, drops: bool) -> Description:
    denoiser = network_denoiser(diffusion.sde, settings, diffusion.prediction, diffusion.noise_conditioning)
    conditions = labels(settings.get("n_classes", 0))
    return Description(source, denoiser, data_of(path, settings["shape"]), conditions, drops, diffusion.grid)


def _score_sde(path: Path, found: Any, sde: str | None) -> Found:
    weights = score_sde.average(found, path)
    settings = score_sde.settings_of(weights, path)
    diffusion = score_sde.path_of(sde, path, settings, weights.pop("sigmas", None))
    return Found(
        _described("score_sde_pytorch", path, settings, diffusion, False),
        weights,
        score_sde.table_for(settings),
        [path],
    )


def _authors_dit(path: Path, found: Any) -> Found:
    whole = found.get("ema", found) if isinstance(found, dict) else found  # training checkpoints have model, ema, opt
    weights = tensors(whole, path)
    if "x_embedder.proj.weight" not in weights:
        raise UserError(f"{path} is of no kind that is known, which are: {KNOWN}")
    settings = dit.authors_settings(weights, path)
    weights = dit.without_positions(weights, "pos_embed", "x_embedder.proj.weight", path)
    description = _described("DiT", path, settings, diffusion_of({}, path), True)
    return Found(description, weights, dit.AUTHORS, [path])
