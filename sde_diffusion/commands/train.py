"""`python -m sde_diffusion.train sde=vp`: train a model.

Composes the configuration, measures the data, builds the model, lets Lightning train it, and leaves a folder with the
configuration, record, log, metrics, checkpoints, sample grids and a loss plot.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sde_diffusion import plugins
from sde_diffusion.checks.overrides import command_line, setting
from sde_diffusion.commands.app import override_hint
from sde_diffusion.commands.building import build_model, build_trainer
from sde_diffusion.commands.processes import LostProcessError, is_follower, processes
from sde_diffusion.commands.resumed_changes import warn_of_changes
from sde_diffusion.commands.resuming import expect_same_data, limit_reached, read_run, resumed
from sde_diffusion.commands.run_report import announce, conclude, finish, record_run
from sde_diffusion.commands.trained_for import with_other_model
from sde_diffusion.errors import UserError
from sde_diffusion.storage import record, signals
from sde_diffusion.storage.files import writing
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.storage.ranks import is_first_process

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sde_diffusion.data import DataModule
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

NOTHING_KEPT = "There is no checkpoint to resume from yet: start the run again."


def train(cfg: DictConfig) -> dict[str, float]:
    """Train a model, or resume its training.

    Args:
        cfg: The composed configuration of conf/train.yaml.

    Returns:
        The last values of the logged metrics.

    Raises:
        UserError: If the configuration, the data or the checkpoint does not allow it.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    _check_start(cfg, folder)

    import lightning.pytorch as pl

    from sde_diffusion.data.checks import check_processes
    from sde_diffusion.training.checkpoint import check_fit
    from sde_diffusion.training.weights import no_larger_than

    _silence()
    checkpoint = read_run(cfg.ckpt) if cfg.ckpt else {}
    cfg = resumed(cfg, checkpoint) if checkpoint else with_other_model(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    with no_larger_than(checkpoint["state_dict"], str(cfg.ckpt)) if checkpoint else nullcontext():
        data, model = build_model(cfg)
    if checkpoint:
        check_fit(model, checkpoint, cfg.ckpt, resuming=True)
        expect_same_data(checkpoint, data)
    trainer = build_trainer(cfg, folder)
    model.check_trainer(trainer)
    check_processes(data.name, len(data.split("val")), trainer.world_size)
    _check_memory(model, trainer)
    if reached := limit_reached(checkpoint, trainer):
        if trainer.is_global_zero:
            finish(model, folder, checkpoint["sde_diffusion"].get("metrics", {}))
        log.info("Nothing to do: %s to train %s further", reached, cfg.ckpt)
        return record.read(folder).get("metrics") or {}
    before = checkpoint["sde_diffusion"]["run"] if checkpoint else {}
    checkpoint.clear()
    if trainer.is_global_zero:
        with writing(folder / "config.yaml") as temporary:
            OmegaConf.save(cfg, temporary)
        record_run(cfg, model, trainer, folder)
        announce(cfg, model, data, folder)
        if before:
            warn_of_changes(before, cfg, model.run["record"])
    return _fit(cfg, model, data, trainer, folder)


def _check_memory(model: GenerativeModel, trainer: Trainer) -> None:
    if trainer.strategy.root_device.type == "cpu":
        n = sum(p.numel() for p in model.parameters() if p.requires_grad)
        wanted = f"training {n:,} parameters, with their gradients, moments and averages,"
        check_fits(wanted, 16 * n, "make network.width or network.depth (for a U-Net network.channels) smaller")


def _fit(cfg: DictConfig, model: GenerativeModel, data: DataModule, trainer: Trainer, folder: Path) -> dict[str, float]:
    """Train, and report the end of the run; if it is stopped, say how to resume it."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    last = folder / "checkpoints" / "last.ckpt"
    last = next((callback.path for callback in trainer.checkpoint_callbacks if hasattr(callback, "path")), last)
    begun = _written(last)
    try:
        with processes(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt, weights_only=True)
    except (signals.Stopped, LostProcessError) as end:
        if is_follower():  # with status 0: at another one, Lightning would kill the first process
            raise SystemExit(0) from None
        kept = last if _written(last) != begun else cfg.ckpt  # an older file there may be from other steps
        resume = command_line("sde_diffusion.train", **plugins.settings(), ckpt=kept)
        advice = f"Resume with: {resume}" if kept else NOTHING_KEPT
        if isinstance(end, LostProcessError):
            raise UserError(f"{end}\n{advice}") from end
        if trainer.is_global_zero:
            log.info("Stopped by %s. %s", end.signal_name, advice)
        raise
    except MisconfigurationException as error:  # such as a callback that monitors a metric which is not logged
        raise UserError(f"{error}{override_hint('callbacks')}") from error
    model.trainer = trainer  # detached if other processes trained the model (ddp_spawn)
    metrics = model.last_metrics()
    if trainer.is_global_zero:
        finish(model, folder, metrics)
        conclude(cfg, model, folder, last)
    return metrics


def _written(path: Path) -> int | None:
    """Time of a file's last change, in ns; None if it does not exist."""
    return path.stat().st_mtime_ns if path.is_file() else None


def _check_start(cfg: DictConfig, folder: Path) -> None:
    """Check that training can start here.

    Raises:
        UserError: If a multirun would start itself again in every process, or the folder already contains a run.
    """
    hydra = HydraConfig.get()
    if (
        hydra.mode == RunMode.MULTIRUN
        and "ddp" in str(cfg.trainer.get("strategy"))
        and "spawn" not in str(cfg.trainer.get("strategy"))
    ):
        raise UserError(
            "a multirun with trainer.strategy=ddp would start the entire sweep again in every process: use "
            "trainer.strategy=ddp_spawn, or one process per run with a wandb sweep"
        )
    # A run that was killed after its first validation may have only best.ckpt.
    there = sorted(
        (folder / "checkpoints").glob("*.ckpt"), key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime)
    )
    if not cfg.ckpt and there:
        try:
            read_run(str(there[-1]))
            advice = f"resume it with {setting('ckpt', there[-1])}, or"
        except UserError as error:
            advice = f"it cannot be resumed ({error});"
        raise UserError(f"{folder} already contains a run: {advice} choose another folder with hydra.run.dir=DIR")


def _silence() -> None:
    """Turn off the log in all processes except the first, and Lightning's own messages."""
    if not is_first_process():
        logging.getLogger().handlers.clear()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # of a resumed run
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")  # by design
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # caused by Lightning
    warnings.filterwarnings("ignore", message=r"Found .* module\(s\) in eval mode at the start")  # frozen, by design
