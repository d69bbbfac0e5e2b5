"""A cascade: a first model draws small pictures, and a second one, trained given small pictures, enlarges them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.commands.conditions import check_trained_for, digests
from sde_diffusion.commands.drawing import draw_in_batches, first
from sde_diffusion.commands.loading import check_denoiser_space, load_unguided, speed_up
from sde_diffusion.commands.sampling_run import Sampled
from sde_diffusion.commands.tuned_grids import sampler_settings
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import Operator
from sde_diffusion.modality import modality_of, pictures
from sde_diffusion.resizing import shrink
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.storage.memory import check_fits

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """What a model of a cascade has drawn.

    Attributes:
        model: The model.
        conditions: Conditions of the samples, [n, *] each.
        seeds: Their seeds.
        drawn: The samples.
        enlarged: Whether the model is the upsampler.
    """

    model: GenerativeModel
    conditions: Mapping[str, Tensor]
    seeds: Sequence[int]
    drawn: Sampled
    enlarged: bool = False


def load_upsampler(cfg: DictConfig, small: GenerativeModel, device: torch.device) -> GenerativeModel | None:
    """The model of `cfg.upsampler.ckpt`; None if there is none.

    Args:
        cfg: The configuration of `sample`.
        small: The model of `cfg.ckpt`.
        device: Where to load it.

    Raises:
        UserError: If it cannot be loaded, was not trained to enlarge the small model's samples, or not with this noise.
    """
    path = cfg.upsampler.ckpt
    if path is None:
        return None
    model = load_unguided(path, device)
    speed_up(model, device, cfg)
    check_denoiser_space("upsampler.ckpt=", path, model, on_data=True)
    measured = model.measured
    if measured is None:
        raise UserError(
            f"upsampler.ckpt={path} was not trained given small pictures: train one with model.measured, as "
            "experiment=mnist_upsampler does"
        )
    dims = tuple(model.data["shape"])
    out, own = measured.operator.output_shape(dims), tuple(small.data["shape"])
    if out != own:
        found = f"upsampler.ckpt={path} enlarges {pictures.size_in_words(out)} to {pictures.size_in_words(dims)}"
        raise UserError(f"{cfg.ckpt} draws {pictures.size_in_words(own)}, and {found}: they must fit")
    levels, units = ([one.data.get(key) for one in (small, model)] for key in ("levels", "units"))
    if (levels[0] is None) != (levels[1] is None) or units[0] != units[1]:
        ranges = [f"{one.data['name']} with {_range(one)}" for one in (small, model)]
        raise UserError(f"{cfg.ckpt} was trained on {ranges[0]}, upsampler.ckpt={path} on {ranges[1]}: they must fit")
    try:
        measured.check_noise(cfg.upsampler.noise)
    except ValueError as error:
        raise UserError(f"upsampler.{error}") from error
    _warn_of_kernel(small, model, measured.operator)
    check_fits(f"n={cfg.n} samples of shape {list(dims)}", 8 * cfg.n * torch.Size(dims).numel(), "draw fewer")
    return model


def _range(model: GenerativeModel) -> str:
    data = model.data
    return f"{data['levels']} levels" if data["levels"] is not None else f"values in {data.get('units') or '[-1, 1]'}"


def _warn_of_kernel(small: GenerativeModel, model: GenerativeModel, operator: Operator) -> None:
    """Warn if the small model's data were made smaller by another kernel than the upsampler's."""
    before, after = ((one.data.get("config") or {}).get("shrink", 1) for one in (model, small))
    factor = after // before
    u = torch.rand(1, *model.data["shape"], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    device = next(model.parameters()).device
    fits = factor > 1 and [size // factor for size in model.data["shape"][1:]] == list(small.data["shape"][1:])
    if fits and not torch.allclose(operator(u.float().to(device)).cpu(), shrink(u, factor).float(), atol=1e-5):
        log.warning(
            "the first model's data were made smaller by data.shrink=%d, means of blocks, and the upsampler was "
            "trained with %s: enlarged pictures may be wrong",
            factor,
            operator,
        )


def enlarge(cfg: DictConfig, small: Stage, model: GenerativeModel, device: torch.device, folder: Path) -> Stage:
    """Enlarge the samples of a first model: draw from the second, given the samples plus noise, and the noise's std.

    The noise and the second model's seeds are functions of each sample's seed, independent of the first model's noise.

    Args:
        cfg: The configuration of `sample`.
        small: The small samples.
        model: The second model.
        device: Where to sample.
        folder: Where the batches are stored until `files.forget` removes them.

    Raises:
        UserError: See `draw`; or if the model needs other conditions too.
    """
    assert model.measured is not None  # checked by `load_upsampler`
    noise = cfg.upsampler.noise
    kind = modality_of(small.model.data)
    exact = torch.cat([kind.as_data(x) for x in small.drawn.batches()])
    y = exact + noise * Noise(small.seeds, kind.shape).stream("measurement").normal(0)
    own = {name: values for name, values in small.conditions.items() if name in model.conditions}
    with torch.no_grad():
        given = model.measured.given(y.to(device), noise, 1 + len(model.data["shape"]))
    conditions = {**own, **{name: values.cpu() for name, values in given.items()}}
    check_trained_for(model, conditions)
    seeds = [_other(seed) for seed in small.seeds]
    plan = {
        "checkpoint": model.digest,
        "sampler": sampler_settings(cfg, model, upsampler=True),
        **{key: cfg[key] for key in ("n", "seed")},
        "upsampler": noise,
        "conditions": digests(conditions),
    }
    drawn = draw_in_batches(cfg, model, build(plan["sampler"], "sampler"), seeds, conditions, device, folder, plan)
    return Stage(model, conditions, seeds, drawn, enlarged=True)


def _other(seed: int) -> int:
    """The seed of the second model's sample: with the same one, it would start from the first model's numbers."""
    return int.from_bytes(hashlib.blake2b(f"upsampler {seed}".encode(), digest_size=8).digest(), "little") >> 1


def disagreement(small: Stage, large: Stage) -> float:
    """Root mean square of A(large) - small, over all samples, on the scale of [-1, 1]."""
    assert large.model.measured is not None
    operator, kinds = large.model.measured.operator.cpu(), [modality_of(one.model.data) for one in (small, large)]
    wanted = torch.cat([kinds[0].as_data(x) for x in small.drawn.batches()])
    found = torch.cat([operator(kinds[1].as_data(x)) for x in large.drawn.batches()])
    return float((found - wanted).double().square().mean().sqrt())


def draw_beside(small: Stage, large: Stage) -> Image:
    """The small samples, enlarged without interpolation, beside the large ones."""
    kinds = [modality_of(stage.model.data) for stage in (small, large)]
    few, many = (first(stage.drawn.batches(), kinds[1].most_drawn) for stage in (small, large))
    blocks = torch.nn.functional.interpolate(kinds[0].as_data(few), tuple(kinds[1].shape[1:]), mode="nearest-exact")
    drawn = {
        f"drawn, {pictures.size_in_words(kinds[0].shape)}": blocks,
        f"enlarged, {pictures.size_in_words(kinds[1].shape)}": many,
    }
    return pictures.side_by_side({title: kinds[1].draw(x) for title, x in drawn.items()}, 22, 8, 13)
