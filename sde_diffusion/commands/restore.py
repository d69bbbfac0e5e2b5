"""`python -m sde_diffusion.restore ckpt=PATH operator=mask operator.path=MASK.png images=DIR`: repair pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import is_overridden, override_hint, resolved
from sde_diffusion.commands.conditions import digests, requested_only
from sde_diffusion.commands.config_checks import choose
from sde_diffusion.commands.loading import denoiser_of, load_model
from sde_diffusion.commands.measurements import Measurements, build_operator, measurements
from sde_diffusion.commands.restored import against_truth, draw_grid, exactly, in_words, left_open, residuals
from sde_diffusion.commands.sampling_run import Sampled, sample_in_batches
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser, in_eval_mode
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import Operator, PosteriorDenoiser
from sde_diffusion.modality import Modality, modality_of, pictures
from sde_diffusion.sampling import Samples
from sde_diffusion.storage import record
from sde_diffusion.storage.files import forget, fresh, writing
from sde_diffusion.storage.memory import check_fits

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_REPORTED = ("noise", "n", "seed", "sampler", "guidance", "images", "split", "conditions")

_REMEDY = "try more steps (sampler.steps), posterior=mmps, or a larger noise"


def restore(cfg: DictConfig) -> dict[str, Any]:
    """Draw pictures given measurements of them; writes `restored.npz`, `grid.png` and `restore.json`.

    If the command is interrupted or killed, it resumes after its last finished batch when it is started again.

    Args:
        cfg: The composed configuration of conf/restore.yaml.

    Returns:
        The contents of `restore.json`.

    Raises:
        UserError: If the configuration, the checkpoint or the measurements do not allow it, or the results exist.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    parts = out / ".restored"
    result = fresh(out / "restore.json", cfg.overwrite, parts)
    model, device = load_model(cfg)
    dims = tuple(model.data["shape"])
    if len(dims) != 3:
        raise UserError(f"restore is for pictures [C, H, W], and {cfg.ckpt} generates {modality_of(model.data).kind}")
    settings = _settings(cfg, model)
    own = settings["posterior"] is None
    operator = model.measured.operator.cpu() if own and model.measured else build_operator(settings["operator"], dims)
    measured = measurements(cfg, model, operator)
    count = len(measured.y)
    wanted = f"n={cfg.n} draws for each of {count} measurements"
    check_fits(wanted, 20 * count * cfg.n * math.prod(dims), "draw fewer, or restore fewer at once")
    if cfg.seed + count * cfg.n > 2**63:
        raise UserError(f"seeds must lie below 2^63; got seed={cfg.seed} for {wanted}")
    if own:
        conditions = requested_only(cfg, model, count, _given(model, cfg.noise, measured.y))
        denoiser = denoiser_of(model)
    else:
        conditions = requested_only(cfg, model, count)
        denoiser = _posterior(cfg, model, operator, measured, conditions, device)
    drawn = _draw(cfg, model, denoiser, operator.to(device), measured, conditions, settings, device, parts)
    operator.cpu()
    modality = modality_of(model.data)
    x = torch.cat(list(drawn.batches())).reshape(count, cfg.n, *dims)
    where = left_open(operator, dims)
    report = {
        **_residual_report(cfg, residuals(operator, x, measured.y)),
        **({} if measured.truth is None else {"against_truth": against_truth(x, measured.truth, modality, where)}),
        "passes": drawn.nfe,
        "gradients": drawn.nfe * denoiser.gradients,
        "seconds": drawn.seconds,
        "batch_sizes": drawn.finished.sizes,  # those that were used; smaller than batch_size where memory ran out
        "inputs": measured.names,
        **{key: resolved(cfg[key]) for key in _REPORTED},
        **settings,
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": model.digest,
        **record.provenance(),
    }
    pictures.save(draw_grid(operator, measured, x, where), out / "grid.png")
    _write_draws(out / "restored.npz", cfg, modality, x)
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    forget(parts)
    _log_report(cfg, report, count)
    for path in (out / "restored.npz", out / "grid.png", result):
        log.info("%s", path)
    return report


def _settings(cfg: DictConfig, model: GenerativeModel) -> dict[str, Any]:
    """The operator and the posterior; without operator=, the model's own, and no posterior, as it was trained for it.

    Raises:
        UserError: If there is no operator.
    """
    if "operator" in cfg:
        return {key: resolved(cfg[key]) for key in ("operator", "posterior")}
    if "measured" in model.hparams:
        if is_overridden("posterior"):
            raise UserError("without operator=, the model's own belief is used: leave posterior= out")
        return {"operator": model.hparams["measured"]["operator"], "posterior": None}
    raise UserError(f"operator is needed: {choose('operator')}; the model was not trained given a measurement")


def _given(model: GenerativeModel, noise: float, y: Tensor) -> dict[str, Tensor]:
    """The conditions that stand for measurements of a model that was trained given them.

    Raises:
        UserError: If the model was not trained for this noise.
    """
    assert model.measured is not None
    try:
        model.measured.check_noise(noise)
    except ValueError as error:
        raise UserError(str(error)) from error
    return model.measured.cpu().given(y, noise, 1 + len(model.data["shape"]))


def _write_draws(path: Path, cfg: DictConfig, modality: Modality, x: Tensor) -> None:
    """Write the draws [N, n, *dims] and their seeds [N, n]."""
    stored = modality.to_file(x.flatten(0, 1))
    seeds = cfg.seed + np.arange(len(stored), dtype=np.int64)
    arrays = {modality.unit: stored.reshape(*x.shape[:2], *stored.shape[1:]), "seeds": seeds.reshape(x.shape[:2])}
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _log_report(cfg: DictConfig, report: dict[str, Any], count: int) -> None:
    cost = f"{report['passes']} network passes and {report['gradients']} gradients each, {report['seconds']:.1f} s"
    log.info("%d draws for each of %d measurements, %s", cfg.n, count, cost)
    unit = "times the noise (about 1 if it is right)" if cfg.noise else "on [-1, 1]"
    log.info("  measurement minus that of a draw: %.3g %s", report["residual"]["median"], unit)
    if cfg.noise and report["residual"]["median"] > 2:
        log.warning("  the draws do not agree with the measurements: %s", _REMEDY)
    for line in in_words(report["against_truth"]) if "against_truth" in report else []:
        log.info("%s", line)


def _residual_report(cfg: DictConfig, found: Tensor) -> dict[str, Any]:
    """||y - A x|| / (noise sqrt(M)) for each input, over its draws; without noise, on the scale of [-1, 1]."""
    values = found / (cfg.noise or 1.0)
    unit = "noise" if cfg.noise else "[-1, 1]"
    return {"residual": {"median": float(values.median()), "unit": unit, "each": values.tolist()}}


def _posterior(
    cfg: DictConfig,
    model: GenerativeModel,
    operator: Operator,
    measured: Measurements,
    conditions: dict[str, Tensor],
    device: torch.device,
) -> PosteriorDenoiser:
    """The denoiser that is given the measurements; it is called once, so that what it refuses is known before the work.

    Raises:
        UserError: If the likelihood does not support the operator or the noise.
    """
    likelihood = build(resolved(cfg.posterior), "posterior")
    denoiser = PosteriorDenoiser(denoiser_of(model), operator, cfg.noise, likelihood).to(device)
    sde = denoiser.sde
    own: dict[str, Any] = {name: values[:1].to(device) for name, values in conditions.items()}
    x_t = torch.zeros(1, *model.data["shape"], device=device)
    try:
        with torch.no_grad(), in_eval_mode(denoiser):
            denoiser(x_t, (sde.t_min + sde.t_max) / 2, y=measured.y[:1].to(device), **own)
    except ValueError as error:
        names = "posterior=mmps, the default, takes any operator and noise=0"
        raise UserError(f"{error}{override_hint('posterior')}{override_hint('operator')}; {names}") from error
    return denoiser


def _draw(
    cfg: DictConfig,
    model: GenerativeModel,
    denoiser: Denoiser,
    operator: Operator,
    measured: Measurements,
    conditions: dict[str, Tensor],
    settings: dict[str, Any],
    device: torch.device,
    parts: Path,
) -> Sampled:
    """The draws, n for each measurement, in batches that are stored as they are finished.

    Raises:
        UserError: If the folder has unfinished batches of other draws, or the sampler does not support the model.
    """
    sampler = build(resolved(cfg.sampler), "sampler")
    known = {**conditions, "y": measured.y}
    given = {name: values.repeat_interleave(cfg.n, 0).to(device) for name, values in known.items()}
    plan = {
        "checkpoint": model.digest,
        **{key: resolved(cfg[key]) for key in ("sampler", "guidance", "noise", "n", "seed")},
        **settings,
        "conditions": digests(given),
        "buffers": digests(dict(operator.named_buffers())),  # such as the mask, which a file describes
    }

    def with_y(denoiser: Denoiser, shape: tuple[int, ...], y: Tensor, **options: Any) -> Samples:
        try:
            given_y = {} if settings["posterior"] is None else {"y": y}
            found: Samples = sampler(denoiser, shape, **given_y, **options)
        except UserError as error:  # NaN or infinite numbers
            raise UserError(f"{error}; {_REMEDY}") from error
        return found if cfg.noise else dataclasses.replace(found, x=exactly(operator, found.x, y))

    try:
        return sample_in_batches(
            with_y,
            denoiser,
            model.data["shape"],
            range(cfg.seed, cfg.seed + len(given["y"])),
            cfg.batch_size,
            given,
            folder=parts,
            plan=plan,
            overwrite=cfg.overwrite,
            device=device,
        )
    except ValueError as error:  # from checks that a sampler can only make with the model's path
        raise UserError(f"{error}{override_hint('sampler')}") from error
