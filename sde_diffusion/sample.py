"""`python -m sde_diffusion.sample ckpt=PATH sampler=ode n=64 seed=0 out=DIR`: draw samples from a checkpoint."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sde_diffusion import pictures
from sde_diffusion.cli import check_seeds, command, load_model, plain
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.files import fresh, writing
from sde_diffusion.sampling.batches import sample_in_batches

log = logging.getLogger(__name__)


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample as configured; writes `samples.npz` and `grid.png`.

    Args:
        cfg: The composed configuration of conf/sample.yaml.

    Returns:
        n, nfe and seconds.

    Raises:
        UserError: If the configuration or the checkpoint does not allow it, or the results stand there already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    result, grid = (fresh(out / name, cfg.overwrite) for name in ("samples.npz", "grid.png"))
    seeds = check_seeds(cfg)
    model, device = load_model(cfg)
    sampler = build(plain(cfg.sampler))
    labels = _labels(cfg, model.hparams["n_classes"], device)
    begin = time.perf_counter()
    batches = list(
        sample_in_batches(sampler, model.denoiser, model.data["shape"], seeds, cfg.batch_size, labels, device=device)
    )
    seconds = time.perf_counter() - begin
    x = torch.cat([batch.x for batch in batches])
    nfe = max(batch.nfe for batch in batches)
    arrays: dict[str, Any] = {"seeds": np.asarray(seeds, dtype=np.int64)}
    if labels is not None:
        arrays["labels"] = labels.cpu().numpy()
    if x.ndim == 4:
        arrays["images"] = pictures.to_uint8(x).numpy()
    else:
        arrays["points"] = x.float().cpu().numpy()
    with writing(result) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    pictures.save(pictures.draw(x[:256]), grid)
    log.info("%d samples, %d network passes each, %.1f s (%.0f samples/s)", len(x), nfe, seconds, len(x) / seconds)
    log.info("%s\n%s", result, grid)
    return {"n": len(x), "nfe": nfe, "seconds": seconds}


def _labels(cfg: DictConfig, n_classes: int, device: torch.device) -> torch.Tensor | None:
    """The classes to sample: label=N for one, label=null for all in turn; none for a model without classes."""
    if not n_classes:
        if cfg.label is not None:
            raise UserError("this model knows no classes: leave label out (train one with conditional=true)")
        return None
    if cfg.label is None:
        return torch.arange(cfg.n, device=device) % n_classes
    if not 0 <= int(cfg.label) < n_classes:
        raise UserError(f"label must be one of 0 ... {n_classes - 1}; got {cfg.label}")
    return torch.full((cfg.n,), int(cfg.label), device=device)


def main() -> None:
    """Entry point of the command."""
    command("sample", sample)


if __name__ == "__main__":
    main()
