"""`python -m sde_diffusion.restore ckpt=PATH operator=mask operator.path=MASK.png images=DIR`: repair data."""

from __future__ import annotations

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import is_overridden, resolved
from sde_diffusion.commands.calibration import Calibration, calibration
from sde_diffusion.commands.conditions import requested_only
from sde_diffusion.commands.config_checks import choose
from sde_diffusion.commands.described_operators import build_operator
from sde_diffusion.commands.drawing import check_seeds
from sde_diffusion.commands.loading import check_denoiser_space, load_model
from sde_diffusion.commands.measurements import Measurements, measurements
from sde_diffusion.commands.posterior_draws import PosteriorDraws
from sde_diffusion.commands.restored import against_truth, draw_grid, evidence, in_words, left_open, residuals
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import Operator
from sde_diffusion.modality import Modality, modality_of, pictures
from sde_diffusion.storage import record
from sde_diffusion.storage.files import forget, fresh, writing
from sde_diffusion.storage.memory import check_fits

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel
    from sde_diffusion.training.measured import Measured

log = logging.getLogger(__name__)

_REPORTED = ("noise", "n", "seed", "guidance", "images", "y", "split", "conditions")


def restore(cfg: DictConfig) -> dict[str, Any]:
    """Draw data given measurements of them; writes `restored.npz`, `grid.png` and `restore.json`.

    Where the truth is known (split=), `restore.json` compares the draws with it, and `calibration.png` is written.
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
    check_denoiser_space("restore", cfg.ckpt, model, on_data=True)
    dims = tuple(model.data["shape"])
    own = _own(cfg, model)
    operator = build_operator(resolved(cfg.operator), dims) if own is None else own.operator.cpu()
    exact = None if own is None else partial(own.exact, levels=model.data["levels"])
    measured = measurements(cfg, model, operator, exact)
    count = len(measured.y)
    wanted = f"n={cfg.n} draws for each of {count} measurements"
    check_fits(wanted, 20 * count * cfg.n * math.prod(dims), "draw fewer, or restore fewer at once")
    check_seeds(cfg, count)
    given = {} if own is None else own.given(measured.y, _noise(cfg, own), 1 + len(dims))
    posterior = PosteriorDraws(cfg, model, operator, measured.y, requested_only(cfg, model, count, given), device, own)
    drawn = posterior.draw(parts)
    operator.cpu()
    modality = modality_of(model.data)
    x = torch.cat(list(drawn.batches())).reshape(count, cfg.n, *dims)
    log_z = None
    if posterior.sampler.has_evidence:
        log_z = torch.cat(list(drawn.finished.each("log_evidence"))).reshape(count, cfg.n)
    found = _compared(cfg, operator, measured, x, modality)
    report = {
        **_residual_report(cfg, residuals(operator, x, measured.y)),
        **({} if log_z is None else {"evidence": evidence(log_z)}),
        **({} if found is None else {"against_truth": found[0], "calibration": found[1].as_dict()}),
        "passes": drawn.nfe,
        "gradients": max(map(int, drawn.finished.each("gradients"))),
        "seconds": drawn.seconds,
        "batch_sizes": drawn.finished.sizes,  # those that were used; smaller than at first where memory ran out
        "inputs": measured.names,
        **{key: resolved(cfg[key]) for key in _REPORTED},
        **posterior.settings,
        "sampler": repr(posterior.sampler),
        "ckpt": str(cfg.ckpt),
        "checkpoint_sha256": model.digest,
        **record.provenance(),
    }
    written = [out / "restored.npz", out / "grid.png", result]
    pictures.save(draw_grid(operator, measured, x, modality), written[1])
    if found is not None:
        written.insert(2, out / "calibration.png")
        pictures.save(found[1].picture(), written[2])
    _write_draws(written[0], cfg, modality, x, log_z)
    with writing(result) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    forget(parts)
    _log_report(cfg, report, count, posterior.remedy)
    for line in [] if found is None else [*in_words(found[0]), *found[1].in_words()]:
        log.info("%s", line)
    for path in written:
        log.info("%s", path)
    return report


def _own(cfg: DictConfig, model: GenerativeModel) -> Measured | None:
    """What the model was trained given, if no operator is asked for; None: an operator and a posterior are.

    Raises:
        UserError: If there is no operator.
    """
    if "operator" in cfg:
        return None
    if model.measured is None:
        raise UserError(f"operator is needed: {choose('operator')}; the model was not trained given a measurement")
    if is_overridden("posterior"):
        raise UserError("without operator=, the model predicts from the measurement directly: leave posterior= out")
    return model.measured


def _noise(cfg: DictConfig, own: Measured) -> float:
    """The measurements' noise.

    Raises:
        UserError: If the model was not trained for it.
    """
    try:
        return own.check_noise(cfg.noise)
    except ValueError as error:
        raise UserError(str(error)) from error


def _compared(
    cfg: DictConfig, operator: Operator, measured: Measurements, x: Tensor, modality: Modality
) -> tuple[dict[str, Any], Calibration] | None:
    """Figures of the draws against the truth, and the calibration report; None if the truth is not known."""
    if measured.truth is None or measured.others is None:
        return None
    where = left_open(operator, tuple(x.shape[2:]))
    figures = against_truth(x, measured.truth, modality, where)
    arguments = (x, measured.y, measured.truth, measured.others, modality, where, cfg.noise)
    return figures, calibration(operator, *arguments)


def _write_draws(path: Path, cfg: DictConfig, modality: Modality, x: Tensor, log_z: Tensor | None) -> None:
    """Write the draws [N, n, *dims], their seeds [N, n], and their estimates of log p(y), [N, n], if there are any."""
    stored = modality.to_file(x.flatten(0, 1))
    seeds = cfg.seed + np.arange(len(stored), dtype=np.int64)
    arrays = {modality.unit: stored.reshape(*x.shape[:2], *stored.shape[1:]), "seeds": seeds.reshape(x.shape[:2])}
    if log_z is not None:
        arrays["log_evidence"] = log_z.numpy()
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _log_report(cfg: DictConfig, report: dict[str, Any], count: int, remedy: str) -> None:
    cost = f"{report['passes']} network passes and {report['gradients']} gradients each, {report['seconds']:.1f} s"
    log.info("%d draws for each of %d measurements, %s", cfg.n, count, cost)
    unit = "times the noise (about 1 if it is right)" if cfg.noise else "on [-1, 1]"
    log.info("  residual, measurement - A(draw): %.3g %s", report["residual"]["median"], unit)
    if cfg.noise and report["residual"]["median"] < 0.8:
        log.info("    below 1: the draws are closer to the measurement than its noise; more steps help (sampler.steps)")
    if cfg.noise and report["residual"]["median"] > 2:
        log.warning("  the draws do not agree with the measurements: %s", remedy)
    if "evidence" in report:
        found, errors = (report["evidence"][key] for key in ("log_evidence", "std_errors"))
        rough = (
            "" if errors is None or max(errors) < 0.3 else "; rough: its standard error is large, take more particles"
        )
        log.info("  log p(y): %.4g nats in the mean over the measurements%s", sum(found) / count, rough)


def _residual_report(cfg: DictConfig, found: Tensor) -> dict[str, Any]:
    """||y - A x|| / (noise sqrt(M)) for each input, over its draws; without noise, on the scale of [-1, 1]."""
    values = found / (cfg.noise or 1.0)
    unit = "noise" if cfg.noise else "[-1, 1]"
    return {"residual": {"median": float(values.median()), "unit": unit, "each": values.tolist()}}
