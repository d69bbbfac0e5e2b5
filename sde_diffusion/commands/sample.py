"""`python -m sde_diffusion.sample ckpt=PATH sampler=ode n=64 seed=0 out=DIR`: draw samples from a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion import pictures
from sde_diffusion.commands.app import plain
from sde_diffusion.commands.drawing import check_seeds, class_labels, draw, first, stored
from sde_diffusion.commands.loading import denoiser_of, load_model
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Sampler
from sde_diffusion.storage.files import forget, fresh, writing
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.units import Units, own_units, vectors_in_own_units

if TYPE_CHECKING:
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)

COLUMNS = 12
"""Pictures in a row of a film strip."""

FRAMES = 48
"""Pictures of an animated film, if the sampler takes so many steps."""


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample as configured; writes `samples.npz` and `grid.png`, and with `film` also `film.png` and `film.gif`.

    An interrupted or killed run resumes after its last finished batch when the command is started again.

    Args:
        cfg: The composed configuration of conf/sample.yaml.

    Returns:
        n, nfe and seconds.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    parts = out / ".samples"
    result = fresh(out / "samples.npz", cfg.overwrite, parts)
    grid, *film = (out / name for name in ("grid.png", "film.png", "film.gif"))
    seeds = check_seeds(cfg)
    if cfg.film > cfg.n:
        raise UserError(f"film must be a number of samples from 0 to n={cfg.n}; got {cfg.film}")
    model, device = load_model(cfg)
    values = cfg.n * math.prod(model.data["shape"])
    wanted = f"n={cfg.n} samples of shape {model.data['shape']}"
    check_fits(wanted, 2 * values * (4 if model.data["levels"] is None else 1), "draw fewer; the next with seed=NUMBER")
    drawn = draw(cfg, model, device, parts)
    arrays: dict[str, Any] = {"seeds": np.arange(seeds.start, seeds.stop, dtype=np.int64)}
    labels = class_labels(cfg, model.hparams["n_classes"])
    if labels is not None:
        arrays["labels"] = labels.numpy()
    names = model.data.get("class_names") or []
    if labels is not None and names:
        arrays["class_names"] = np.asarray(names, dtype=str)
    own = own_units(model.data["levels"], Units.of(model.data.get("units")))
    key = "images" if len(model.data["shape"]) == 3 else "points"
    arrays[key] = np.concatenate([_in_own_units(x, model.data, own).numpy() for x in drawn.batches()])
    pictures.save(pictures.draw(vectors_in_own_units(first(drawn.batches(), 256), own)), grid)
    if cfg.film:
        _film(cfg, model, device, *film)
    with writing(result) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    forget(parts)
    rate = drawn.n / drawn.seconds
    log.info("%d samples, %d network passes each, %.1f s (%.0f samples/s)", drawn.n, drawn.nfe, drawn.seconds, rate)
    values = arrays[key]
    scale = "on 0 ... 255" if values.dtype == np.uint8 else "in the data's own units"
    log.info("%s: %s %s, %s", key, values.dtype, list(values.shape), scale)
    if "class_names" in arrays:
        log.info("labels: %s", ", ".join(f"{number} {name}" for number, name in enumerate(names)))
    for path in (result, grid, *(film if cfg.film else ())):
        log.info("%s", path)
    return {"n": drawn.n, "nfe": drawn.nfe, "seconds": drawn.seconds}


def _in_own_units(x: Tensor, data: Mapping[str, Any], own: Units | None) -> Tensor:
    """Samples as the file holds them: images uint8 [B, H, W, C] of levels on 0 ... 255; else floats in own units."""
    levels, images = data["levels"], x.ndim == 4
    # A mask has no greys. Other levels keep the file's finer ones: where rounding tips one, it is by 1 of 255.
    x = stored(x.float(), levels if levels == 2 else None)
    if images and (levels is not None or "units" not in data):  # an older checkpoint's, whose units are not known
        return pictures.to_uint8(x)
    x = x if own is None else own.decode(x)
    return x.movedim(1, -1).contiguous() if images else x


def _film(cfg: DictConfig, model: ScoreModel, device: torch.device, strip: Path, animation: Path) -> None:
    """Show the first samples on their way from noise to data.

    A strip of what the denoiser believes along the walk, and an animation of that beside the state x_t itself, over
    sqrt(alpha^2 + sigma^2): its scale, were the data's 1.
    """
    labels = class_labels(cfg, model.hparams["n_classes"])
    conditions: dict[str, Any] = {} if labels is None else {"label": labels[: cfg.film].to(device)}
    shape = (cfg.film, *model.data["shape"])
    seeds = range(cfg.seed, cfg.seed + cfg.film)
    sampler: Sampler = build(plain(cfg.sampler))
    denoiser = denoiser_of(cfg, model)
    walk = sampler(denoiser, shape, seeds=seeds, device=device, trajectory=FRAMES, **conditions)
    assert walk.trajectory is not None
    assert walk.states is not None
    assert walk.times is not None
    sde, times = denoiser.sde, torch.tensor(walk.times, dtype=torch.float64)
    scale = (sde.alpha(times).square() + sde.sigma(times).square()).sqrt()
    beliefs, states = walk.trajectory.cpu(), walk.states.cpu()
    states = states / scale.to(states.dtype).reshape(-1, *(1,) * (states.ndim - 1))
    columns = torch.linspace(0, len(beliefs) - 1, min(COLUMNS, len(beliefs))).round().long()
    pictures.save(pictures.film_strip(beliefs[columns], [walk.times[i] for i in columns.tolist()]), strip)
    pictures.save_film(pictures.film_frames(states, beliefs, walk.times), animation)
