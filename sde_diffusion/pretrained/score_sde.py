"""Checkpoints of score_sde_pytorch: DDPM, DDPM++ and NCSN++ networks whose modules are counted, and averaged weights.

A file has no configuration. The network follows from the kinds of its modules, in their order, and their shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.pretrained.description import Settings
from sde_diffusion.pretrained.names import Location, Table, Weights, inside, module
from sde_diffusion.pretrained.schedulers import Diffusion, diffusion_of, exploding

ATTENTION_SIZE = 16
"""The resolution with attention in all published configurations, from which the size of the images follows."""


def nin(*names: str) -> Location:
    """Linear layers over the channels, with weights [in, out]."""
    return Location(names, transposed=True, weight="W", bias="b")


BLOCK: Table = {
    "norm_in": module("GroupNorm_0"),
    "conv_in": module("Conv_0"),
    "modulation": module("Dense_0"),
    "norm_out": module("GroupNorm_1"),
    "conv_out": module("Conv_1"),
}
SKIPS: dict[bool, Table] = {False: {"skip": nin("NIN_0")}, True: {"skip": module("Conv_2")}}
"""The convolution on the skip connection, of DDPM's blocks and of BigGAN's."""

ATTENTION: Table = {
    "norm": module("GroupNorm_0"),
    "qkv": nin("NIN_0", "NIN_1", "NIN_2"),
    "output": nin("NIN_3"),
}

KINDS: dict[str, frozenset[str]] = {
    "fourier": frozenset({"W"}),
    "attention": frozenset({"GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3"}),
    "pyramid": frozenset({"Conv2d_0"}),
    "conv": frozenset({"Conv_0"}),
}
"""The kinds of modules by what is in them; blocks have a Dense_0, plain layers only weight and bias."""


def average(checkpoint: Any, path: object) -> Weights:
    """The averaged weights by name: an unnamed list in the order of the trained parameters, without W and `sigmas`.

    Raises:
        UserError: If the file is not such a checkpoint, or the list does not fit the names.
    """
    try:
        own, listed = checkpoint["model"], checkpoint["ema"]["shadow_params"]
        own = {key.removeprefix("module."): value for key, value in own.items()}
        trained = [key for key in own if key != "sigmas" and not re.fullmatch(r"all_modules\.\d+\.W", key)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a checkpoint of score_sde_pytorch: it lacks {error}") from None
    shapes = [key for key, value in zip(trained, listed, strict=False) if own[key].shape != value.shape]
    if len(trained) != len(listed) or shapes:
        raise UserError(
            f"{path}: its {len(listed)} averaged weights do not fit the {len(trained)} trained parameters of its "
            "network" + (f", first at {shapes[0]}" if shapes else "")
        )
    return {**own, **dict(zip(trained, listed, strict=True))}


def kinds_of(weights: Mapping[str, Tensor]) -> list[tuple[str, Weights]]:
    """The modules in their order: the kind, and the weights by name within the module."""
    parts: dict[int, Weights] = {}
    for key, value in weights.items():
        if found := re.fullmatch(r"all_modules\.(\d+)\.(.+)", key):
            parts.setdefault(int(found[1]), {})[found[2]] = value
    return [(_kind(parts[number]), parts[number]) for number in sorted(parts)]


def _kind(part: Weights) -> str:
    names = frozenset(name.split(".")[0] for name in part)
    if "Dense_0" in names:
        same = "Conv_2.weight" in part and part["Conv_0.weight"].shape[0] == part["Conv_0.weight"].shape[1]
        return "resampling" if same else "block"
    for kind, those in KINDS.items():
        if names == those:
            return kind
    dims = part["weight"].ndim if "weight" in part else 0
    return {4: "layer", 2: "linear", 1: "norm"}.get(dims, "unknown")


def settings_of(weights: Mapping[str, Tensor], path: object) -> Settings:
    """The settings of a `UNet` from the modules.

    Raises:
        UserError: If they are not those of a DDPM, DDPM++ or NCSN++ network.
    """
    parts = kinds_of(weights)
    kinds = [kind for kind, _ in parts]
    fourier = kinds[:1] == ["fourier"]
    start = 1 if fourier else 0
    if kinds[start : start + 4] != ["linear", "linear", "layer", "block"] or "attention" not in kinds:
        shown = ", ".join(kinds[:6]) or "nothing"
        raise UserError(
            f"{path} is not a network of score_sde_pytorch that is known (ddpm, ddpmpp or ncsnpp); its modules begin "
            f"with {shown}"
        )
    stem = parts[start + 2][1]["weight"]
    levels: list[list[int]] = [[]]  # the channels of the blocks of each resolution
    attends: list[bool] = [False]
    biggan = "resampling" in kinds
    pyramid = "standard"
    for kind, part in parts[start + 3 :]:
        if kind == "block":
            if len(levels) > 1 and len(levels[-1]) == len(levels[0]):
                break  # the middle
            levels[-1].append(part["Conv_0.weight"].shape[0])
        elif kind == "attention":
            attends[-1] = True
        elif (kind == "pyramid") or (kind == "conv" and biggan):
            pyramid = "residual" if kind == "pyramid" else "skip"
        elif kind in ("resampling", "conv"):
            levels.append([])
            attends.append(False)
        else:
            break
    summed = kinds.count("norm") > 1
    attending = [resolution for resolution, one in enumerate(attends) if one]
    width = stem.shape[0]
    side = ATTENTION_SIZE * 2 ** (attending[0] if attending else 1)
    return {
        "_target_": "sde_diffusion.nn.UNet",
        "shape": [stem.shape[1], side, side],
        "channels": width,
        "channel_mult": [level[0] // width for level in levels if level],
        "blocks": len(levels[0]),
        "attention": attending,
        "head_channels": None,
        "embedding": "gaussian_fourier" if fourier else "timestep",
        "feature_dim": 2 * width if fourier else width,
        "embedding_dim": parts[start][1]["weight"].shape[0],
        "condition_place": "output",
        "modulation": "shift",
        "norm_groups": None if biggan else 32,
        "rescale": biggan,
        "resampling": "block" if biggan else "convolution",
        "resample_skip": biggan,
        "resample_filter": [1, 1] if pyramid == "standard" else [1, 3, 3, 1],
        "encoder_type": pyramid,
        "decoder_type": "skip" if summed else "standard",
    }


def is_fourier(settings: Mapping[str, Any]) -> bool:
    """Whether a network's features of the noise level are those of NCSN++."""
    return settings.get("embedding") == "gaussian_fourier"


def order(settings: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """Our modules in the order in which theirs are counted, each with the table of what is inside."""
    depth, blocks, biggan = len(settings["channel_mult"]), settings["blocks"], settings["resampling"] == "block"
    attends, summed = settings["attention"], settings["decoder_type"] == "skip"
    block = {**BLOCK, **SKIPS[biggan]}
    resampler: Table = block if biggan else {"conv": module("Conv_0")}
    plain: Table = {}
    if is_fourier(settings):
        yield r"conditioning\.features", {"": Location(("",), weight="W")}
    yield from ((name, plain) for name in (r"conditioning\.input", r"conditioning\.output", "input"))
    for level in range(depth):
        if level:
            yield rf"down\.{level - 1}", resampler
            if settings["encoder_type"] != "standard":
                inner = "Conv_0" if settings["encoder_type"] == "skip" else "Conv2d_0"
                yield rf"pyramid\.{level - 1}", {"conv": module(inner)}
        for number in range(blocks):
            yield rf"encoder\.{level}\.{number}", block
            if level in attends:
                yield rf"encoder\.{level}\.{number}\.attention", ATTENTION
    yield from ((r"middle\.0", block), (r"middle\.0\.attention", ATTENTION), (r"middle\.1", block))
    for stage in range(depth):
        if stage:
            yield rf"up\.{stage - 1}", resampler
        for number in range(blocks + 1):
            yield rf"decoder\.{stage}\.{number}", block
        if depth - 1 - stage in attends:
            yield rf"decoder\.{stage}\.{blocks}\.attention", ATTENTION
        if summed and stage < depth - 1:
            yield from ((rf"skip_outputs\.{stage}\.{name}", plain) for name in ("norm", "output"))
    yield from (("norm", plain), ("output", plain))


def table_for(settings: Mapping[str, Any]) -> Table:
    """The names for a network of these settings."""
    found: Table = {}
    for number, (ours, inner) in enumerate(order(settings)):
        theirs = f"all_modules.{number}"
        if "" in inner:
            found[ours] = Location((theirs,), weight=inner[""].weight)
        elif inner:
            found |= inside(ours, theirs, inner)
        else:
            found[ours] = module(theirs)
    return found


def path_of(sde: str | None, file: Path, settings: Mapping[str, Any], sigmas: Tensor | None) -> Diffusion:
    """Path, prediction and time index; of VP and sub-VP, which no weight tells apart, by name.

    Args:
        sde: "vp", "subvp" or "ve", or for networks of discrete steps "vp_discrete" or "ve_discrete"; None: by the
            folders and the file's name, as its authors publish them: `vp/cifar10_ddpmpp_continuous/checkpoint_8.pth`.
        file: The file.
        settings: The network's.
        sigmas: The noise levels in the file.

    Raises:
        UserError: If the path is not known.
    """
    fourier = is_fourier(settings)
    words = file.absolute().parts
    if sde is None and fourier:
        sde = "ve"
    if sde is None:
        sde = next((word for word in reversed(words) if word in ("vp", "subvp", "ve")), None)
        if sde in ("vp", "ve") and not any("continuous" in word for word in words):
            sde = f"{sde}_discrete"
    known = {"vp", "subvp", "vp_discrete", "ve", "ve_discrete"}
    if sde not in known or (sde == "ve") != fourier:
        raise UserError(
            f"{file} does not say on which path its network was trained (VP, sub-VP or VE, in discrete steps or not): "
            f"Pretrained.load(path, sde=...) with {', '.join(sorted(known))}, or put it where its authors do, as in "
            "subvp/cifar10_ddpmpp_continuous/checkpoint_26.pth"
        )
    if sde.startswith("ve"):
        levels = torch.tensor([0.01, 50.0]) if sigmas is None else sigmas
        found = exploding(float(levels.min()), float(levels.max()))
        if sde == "ve":
            return found
        steps = {"_target_": "sde_diffusion.denoiser.ReversedStepNumber", "n": len(levels)}
        return Diffusion(found.sde, found.prediction, steps)
    if sde == "vp_discrete":
        return diffusion_of({}, file)
    paths = {"vp": "VPSDE", "subvp": "SubVPSDE"}
    numbers = {"_target_": "sde_diffusion.denoiser.StepNumber"}
    return Diffusion({"_target_": f"sde_diffusion.sde.{paths[sde]}"}, "eps", numbers)


def is_checkpoint(found: Any) -> bool:
    """Whether the contents of a file are such a checkpoint."""
    return isinstance(found, Mapping) and {"model", "ema"} <= set(found) and not _is_by_name(found["ema"])


def _is_by_name(ema: Any) -> bool:
    """Whether averaged weights are by name, as in DiT's files."""
    values: Sequence[Any] = list(ema.values()) if isinstance(ema, Mapping) else []
    return bool(values) and all(isinstance(value, Tensor) for value in values)
