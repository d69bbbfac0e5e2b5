"""`python -m sde_diffusion.evaluate ckpt=PATH sampler=ode n=2000 out=DIR`: how good are a checkpoint's samples?"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sde_diffusion import __version__, pictures
from sde_diffusion.cli import check_seeds, command, draw, load_model, plain
from sde_diffusion.config import build
from sde_diffusion.files import fresh, writing
from sde_diffusion.levels import from_levels, to_levels
from sde_diffusion.parts import forget

if TYPE_CHECKING:
    from sde_diffusion.metrics import FrechetDistance

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Sample from a checkpoint and compare with a split of its data; writes `metrics.json` and `metrics.png`.

    The Fréchet distance of the training split to the same split is printed beside the samples': the floor that the
    data themselves reach at these sizes.

    Args:
        cfg: The composed configuration of conf/evaluate.yaml.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results stand there already.
    """
    from sde_diffusion.metrics import FrechetDistance, extractor_names, load_extractor

    out = Path(HydraConfig.get().runtime.output_dir)
    result, grid = (fresh(out / name, cfg.overwrite) for name in ("metrics.json", "metrics.png"))
    seeds = check_seeds(cfg)
    model, device = load_model(cfg)
    given = {key: value for key, value in plain(cfg.data).items() if value is not None}
    data = build({**model.data["config"], **given}).prepare()
    name = cfg.extractor or (data.name if data.name in extractor_names() else "pixels")
    metric = FrechetDistance(load_extractor(name, data.shape), reset_real_features=False).to(device)
    _add(metric, data.tensor(cfg.split), device, real=True)

    drawn, sampling = draw(cfg, model, device, out / ".samples")
    x, nfe = drawn.x, drawn.nfe

    begin = time.perf_counter()
    # As data would be stored: on the levels, if the data have levels.
    rounded = x if data.levels is None else from_levels(to_levels(x, data.levels), data.levels)
    _add(metric, rounded, device, real=False)
    distance = float(metric.compute())
    metric.reset()
    _add(metric, data.tensor("train"), device, real=False)
    floor = float(metric.compute())
    scoring = time.perf_counter() - begin

    metrics = {
        "frechet_distance": distance,
        "frechet_distance_train": floor,
        "ratio": distance / floor,
        "extractor": name,
        "data": data.name,
        "split": cfg.split,
        "n": len(x),
        "n_reference": len(data.split(cfg.split)),
        "nfe": nfe,
        "sampler": plain(cfg.sampler),
        "seeds": [seeds[0], seeds[-1]],
        "seconds_sampling": sampling,
        "seconds_scoring": scoring,
        "ckpt": str(cfg.ckpt),
        "version": __version__,
    }
    pictures.save(pictures.draw(x[:256]), grid)
    with writing(result) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    forget(out / ".samples")
    log.info("Fréchet distance to the %s split (%s features, %d samples): %.3f", cfg.split, name, len(x), distance)
    log.info("  of the training split, the floor: %.3f; ratio %.2f", floor, distance / floor)
    log.info("  %d network passes a sample, %.1f s sampling, %.1f s scoring", nfe, sampling, scoring)
    log.info("%s\n%s", result, grid)
    return metrics


def _add(metric: FrechetDistance, x: torch.Tensor, device: torch.device, real: bool, batch_size: int = 1000) -> None:
    for start in range(0, len(x), batch_size):
        metric.update(x[start : start + batch_size].to(device), real=real)


def main() -> None:
    """Entry point of the command."""
    command("evaluate", evaluate)


if __name__ == "__main__":
    main()
