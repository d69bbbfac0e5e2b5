"""`python -m sde_diffusion.sample ckpt=PATH sampler=ode n=64 seed=0 out=DIR`: draw samples from a checkpoint."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sde_diffusion.commands.cascade import Stage, disagreement, draw_beside, enlarge, load_upsampler
from sde_diffusion.commands.conditions import for_samples, in_words, requested_conditions, requested_only
from sde_diffusion.commands.drawing import check_draws, check_seeds, draw, first
from sde_diffusion.commands.editing import Edit, edit_of
from sde_diffusion.commands.loading import check_denoiser_space, denoiser_of, load_model
from sde_diffusion.commands.sampling_run import passes_in_words
from sde_diffusion.commands.tuned_grids import sampler_settings
from sde_diffusion.conditions import numbered
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.modality import modality_of, pictures, write_latents, write_samples
from sde_diffusion.storage.files import forget, fresh
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.training.measured import PICTURE

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

COLUMNS = 12
"""Number of columns of a film strip."""

FRAMES = 48
"""Number of frames of an animation, if the sampler takes as many steps."""


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Draw samples; writes `samples.npz` and `grid.png`, and with `film` also `film.png` and `film.gif`.

    With `latents`, `latents.npz` has the latent variables that they are made of.
    With `upsampler.ckpt`, these are samples enlarged by that model, and `small.npz` has those of `ckpt`.

    If the command is interrupted or killed, it resumes after its last finished batch when it is started again.

    Args:
        cfg: The composed configuration of conf/sample.yaml.

    Returns:
        n, nfe and seconds.

    Raises:
        UserError: If the configuration, the checkpoint or what is to be edited does not allow it, or the results exist
            already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    parts = [out / name for name in (".samples", ".enlarged")]
    result = fresh(out / "samples.npz", cfg.overwrite, *parts)
    grid, *film = (out / name for name in ("grid.png", "film.png", "film.gif"))
    check_seeds(cfg)
    model, device = load_model(cfg)
    check_draws(cfg, model, cfg.latents)
    if cfg.film and cfg.upsampler.ckpt is None:
        check_denoiser_space("film=", cfg.ckpt, model)
    edit = edit_of(cfg, model)
    upsampler = load_upsampler(cfg, model, device)
    seeds = check_seeds(cfg, 1 if edit is None else len(edit.given))
    if cfg.film > len(seeds):
        raise UserError(f"film must be a number of samples from 0 to {len(seeds)}; got {cfg.film}")
    _check_given(cfg, model)
    if edit is None:
        conditions = for_samples(model, requested_conditions(cfg, model), len(seeds))
    else:  # classes in turn would turn an item into others
        conditions = requested_only(cfg, model, len(seeds))
    values = len(seeds) * math.prod(model.data["shape"])
    wanted = f"{len(seeds)} samples of shape {model.data['shape']}"
    size = (2 * (4 if model.data["levels"] is None else 1)) + (0 if edit is None else 4)
    check_fits(wanted, values * size, "draw fewer; the next with seed=NUMBER")
    if model.conditions:
        log.info("given %s", in_words(model.conditions, conditions))
    stored = {name: model.conditions[name].to_file(values) for name, values in conditions.items()}
    names = {name: kind.names for name, kind in model.conditions.items() if kind.names}
    stage = Stage(model, conditions, seeds, draw(cfg, model, conditions, device, parts[0], edit, cfg.latents))
    modality, drawn = modality_of(model.data), stage.drawn
    decoded = {} if model.decode_as is None else {"decode": model.decode_as}
    latents = _write_latents(out / "latents.npz", stage) if cfg.latents else None
    if upsampler is None:
        shown = first(drawn.batches(), modality.most_drawn)
        pictures.save(modality.draw(shown) if edit is None else edit.picture(modality, shown, cfg.n), grid)
    else:
        write_samples(out / "small.npz", modality, drawn.batches(), seeds, stored, names, **decoded)
        small, stage, edit, decoded = stage, enlarge(cfg, stage, upsampler, device, parts[1]), None, {}
        log.info("%d %s, %s; then enlarged:", drawn.n, modality.kind, passes_in_words(drawn.nfe))
        modality, drawn = modality_of(upsampler.data), stage.drawn
        pictures.save(draw_beside(small, stage), grid)
        far = disagreement(small, stage)
        log.info("made smaller again, their disagreement with the small ones is %.3g on [-1, 1] (RMS)", far)
    if cfg.film:
        _film(cfg, stage, edit, device, *film)
    found = write_samples(result, modality, drawn.batches(), seeds, stored, names, **decoded)
    for folder in parts:
        forget(folder)
    compiling = ", compiling included" if cfg.compile else ""
    speed = f"{drawn.seconds:.1f} s ({drawn.n / drawn.seconds:.0f} {modality.unit}/s{compiling})"
    log.info("%d %s, %s, %s", drawn.n, modality.unit, passes_in_words(drawn.nfe), speed)
    if drawn.finished.sizes != [cfg.batch_size]:
        sizes = ", then ".join(map(str, drawn.finished.sizes))
        log.info("batches of %s: samples of an adaptive solver depend on them, within its tolerance", sizes)
    scale = "on 0 ... 255" if found.dtype == np.uint8 else "in the data's own units"
    log.info("%s: %s %s, %s", modality.unit, found.dtype, list(found.shape), scale)
    for name in names:
        log.info("%s: %s", name, numbered(names[name]))
    if latents is not None:
        log.info("latents: %s", ", ".join(f"{name} {shape}" for name, shape in latents.items()))
    made = {"small.npz": upsampler is not None, "latents.npz": latents is not None}
    more = [out / name for name, written in made.items() if written]
    for path in (result, *more, grid, *(film if cfg.film else ())):
        log.info("%s", path)
    return {"n": drawn.n, "nfe": drawn.nfe, "seconds": drawn.seconds}


def _write_latents(path: Path, stage: Stage) -> dict[str, list[int]]:
    """Write the latent variables of samples; returns their shapes by name."""
    finished = stage.drawn.finished
    names = [f"z_{level}" for level in range(1, int(finished.each("levels")[0]) + 1)]
    return write_latents(
        path, {name: finished.stored(name) for name in names}, range(stage.seeds[0], stage.seeds[-1] + 1)
    )


def _check_given(cfg: DictConfig, model: GenerativeModel) -> None:
    """Check that a model that was trained given a measurement has one.

    Raises:
        UserError: If it has none.
    """
    if model.measured is not None and PICTURE not in requested_conditions(cfg, model):
        raise UserError(
            f"{cfg.ckpt} was trained given measurements ({model.measured.operator}), and draws from one: use restore "
            f"ckpt={cfg.ckpt} images=PATH, or sample ckpt=SMALL upsampler.ckpt={cfg.ckpt}"
        )


def _film(cfg: DictConfig, stage: Stage, edit: Edit | None, device: torch.device, strip: Path, animation: Path) -> None:
    """Draw the first samples on their way from noise to data.

    `strip` shows the predicted x0 at some times of the walk. `animation` shows it beside the state x_t, divided by
    sqrt(alpha^2 + sigma^2), the standard deviation of x_t for data of standard deviation 1.
    """
    model, seeds = stage.model, stage.seeds[: cfg.film]
    own: dict[str, Any] = {name: values[: cfg.film].to(device) for name, values in stage.conditions.items()}
    shape = (cfg.film, *model.state_shape)
    sampler, denoiser = build(sampler_settings(cfg, model, stage.enlarged)), denoiser_of(model)
    if edit is not None:
        sampler, own["latent"] = edit.on(sampler), edit.each(cfg.n)[: cfg.film].to(device)
    walk = sampler(denoiser, shape, seeds=seeds, device=device, trajectory=FRAMES, **own)
    assert walk.trajectory is not None
    assert walk.states is not None
    assert walk.times is not None
    sde, times = denoiser.sde, torch.tensor(walk.times, dtype=torch.float64)
    scale = (sde.alpha(times).square() + sde.sigma(times).square()).sqrt()
    states = walk.states / scale.to(walk.states).reshape(-1, *(1,) * (walk.states.ndim - 1))
    with torch.no_grad():
        x0, states = (torch.stack([model.to_data(x, seeds).cpu() for x in some]) for some in (walk.trajectory, states))
    columns = torch.linspace(0, len(x0) - 1, min(COLUMNS, len(x0))).round().long()
    modality = modality_of(model.data)
    pictures.save(modality.film_strip(x0[columns], [walk.times[i] for i in columns.tolist()]), strip)
    pictures.save_film(modality.film_frames(states, x0, walk.times), animation)
