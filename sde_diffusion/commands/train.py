"""`python -m sde_diffusion.train sde=vp`: train a score model.

Composes the configuration, measures the data, builds the model, lets Lightning train it, and leaves a folder with the
configuration, record, log, metrics, checkpoints, sample grids and a loss plot.
"""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion import plugins
from sde_diffusion.checks.overrides import command_line, setting
from sde_diffusion.commands.app import override_hint, resolved
from sde_diffusion.commands.loading import build_data
from sde_diffusion.commands.processes import LostProcessError, is_follower, processes
from sde_diffusion.commands.resumed_changes import warn_of_changes
from sde_diffusion.commands.resuming import (
    STORED_GROUPS,
    callback_settings,
    expect_same_data,
    limit_reached,
    read_run,
    resumed,
)
from sde_diffusion.commands.run_report import announce, conclude, finish, record_run
from sde_diffusion.errors import UserError
from sde_diffusion.storage import record, signals
from sde_diffusion.storage.files import writing
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.storage.ranks import is_first_process

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sde_diffusion.denoiser import Denoiser
    from sde_diffusion.training.module import ScoreModel

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
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from sde_diffusion.training.checkpoint import check_fit
    from sde_diffusion.training.weights import no_larger_than

    _silence()
    checkpoint = read_run(cfg.ckpt) if cfg.ckpt else {}
    if checkpoint:
        cfg = resumed(cfg, checkpoint)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    with no_larger_than(checkpoint["state_dict"], str(cfg.ckpt)) if checkpoint else nullcontext():
        data, model = build_model(cfg)
    if checkpoint:
        check_fit(model, checkpoint, cfg.ckpt, resuming=True)
        expect_same_data(checkpoint, data)
    trainer = _trainer(cfg, model, folder)
    data.check_processes(trainer.world_size)
    if trainer.strategy.root_device.type == "cpu":
        n = sum(p.numel() for p in model.parameters())
        wanted = f"training {n:,} parameters, with their gradients, moments and averages,"
        check_fits(wanted, 16 * n, "make network.width or network.depth (for a U-Net network.channels) smaller")
    if reached := limit_reached(checkpoint, trainer):
        if trainer.is_global_zero:
            finish(folder, checkpoint["sde_diffusion"].get("metrics", {}))
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
    last = folder / "checkpoints" / "last.ckpt"
    last = next((callback.path for callback in trainer.checkpoint_callbacks if hasattr(callback, "path")), last)
    begun = _written(last)
    try:
        with processes(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt, weights_only=True)
        model.trainer = trainer  # detached if other processes trained the model (ddp_spawn)
        metrics = model.last_metrics()
        if trainer.is_global_zero:
            finish(folder, metrics)
            conclude(folder, last)
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
    return metrics


def _written(path: Path) -> int | None:
    """Time of a file's last change, in ns; None if it does not exist."""
    return path.stat().st_mtime_ns if path.is_file() else None


def build_model(cfg: DictConfig) -> tuple[Any, ScoreModel]:
    """Build the data module and the model of a configuration.

    Args:
        cfg: The composed configuration. The values that depend on the data are filled in: `network.shape`,
            `network.conditions`, and `denoiser.sigma_data` if it is null.

    Returns:
        (data module, model).

    Raises:
        UserError: If the configuration or the data do not allow it.
    """
    from sde_diffusion.checks.hints import arguments_of
    from sde_diffusion.config import call, takes
    from sde_diffusion.training.guided_denoiser import guided_denoiser
    from sde_diffusion.training.models import MODELS, model_class

    data = build_data(resolved(cfg.data))
    conditions = data.conditions.describe() if cfg.conditional else {}
    if not cfg.conditional and (unused := OmegaConf.select(cfg, "data.conditions")):
        log.warning("the model will not depend on %s: add conditional=true", " and ".join(map(str, unused)))
    if cfg.conditional and not conditions:
        raise UserError(f"conditional=true needs labels, and {data.name} has none{data.why_no_labels}")
    if (shape := OmegaConf.select(cfg, "network.shape")) is not None:  # of a resumed run
        built, has = (
            f"items of shape {list(size)} and {_summary(kinds)}"
            for size, kinds in ((shape, resolved(cfg.network.get("conditions"))), (data.shape, conditions))
        )
        if built != has:
            raise UserError(
                f"the network was built for {built}, and {data.name} has {has}: use data like those that the model "
                "was trained on, or leave out ckpt= (or network.shape=) to train a new model on these"
            )
        conditions = resolved(cfg.network.get("conditions")) or {}  # their means and ranges are part of the network
    if conditions and not takes(cfg.network, "conditions"):
        raise UserError(
            f"conditional=true needs a network with an argument conditions; {cfg.network._target_} has none"
        )
    with open_dict(cfg):
        for name, value in (("shape", list(data.shape)), ("conditions", conditions)):
            if takes(cfg.network, name):  # user-defined networks may have a fixed shape
                cfg.network[name] = value
        if cfg.denoiser.get("sigma_data") is None and takes(cfg.denoiser, "sigma_data"):
            cfg.denoiser.sigma_data = float(f"{data.std:.4g}")
    settings = resolved(cfg.model)
    cls = model_class(settings.pop("_target_", MODELS[0]))
    offered = {"denoiser": resolved(cfg.denoiser), "objective": resolved(cfg.objective), "data": data.describe()}
    offered |= {"conditions": conditions, "seed": cfg.seed}
    taken = {name: value for name, value in offered.items() if name in arguments_of(cls)[0]}
    try:
        model = call(cls, {**taken, **settings}, "model")
    except UserError as error:  # `denoiser` contains copies of network and sde: use the names of these groups
        raise UserError(re.sub(r"^denoiser\.(network|sde)\b", r"\1", str(error))) from error
    guided_denoiser(model, resolved(cfg.guidance))  # raises its errors now
    model.run = {key: resolved(cfg[key]) for key in STORED_GROUPS}
    model.run["callbacks"] = {name: callback_settings(node) for name, node in cfg.callbacks.items()}
    return data, model


def _summary(kinds: Mapping[str, Any] | None) -> str:
    """The conditions of a network, for messages: the number of classes, and names and shapes of the others."""
    kinds = kinds or {}
    others = [f"{name} {kind.get('shape') or ''}".strip() for name, kind in kinds.items() if name != "label"]
    return " and ".join([f"{kinds.get('label', {}).get('n_classes', 0)} classes", *others])


def _trainer(cfg: DictConfig, model: ScoreModel, folder: Path) -> Trainer:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    from sde_diffusion.config import build, build_around
    from sde_diffusion.training.checkpoint_io import SealedCheckpointIO
    from sde_diffusion.training.precision import check_precision
    from sde_diffusion.training.stopping import StopBetweenSteps

    named = plugins.settings().get("+plugins", [])
    offered = {
        "sampler": build(resolved(cfg.sampler), "sampler"),
        "denoiser_of": functools.partial(_guided, guidance=resolved(cfg.guidance), modules=named),
    }
    callbacks, loggers = (
        [
            build_around(node, f"{key}.{name}", any_library=True, **offered)
            for name, node in resolved(cfg[key]).items()
            if node is not None
        ]
        for key in ("callbacks", "logger")
    )
    options = {"max_epochs": -1, **resolved(cfg.trainer)}  # Lightning's default, without max_steps, is 1000 epochs
    if not any(isinstance(callback, StopBetweenSteps) for callback in callbacks):  # without LastCheckpoint
        callbacks.append(StopBetweenSteps())
    if 0 < options["max_steps"] < (options.get("min_steps") or 0):
        raise UserError(
            f"trainer.min_steps={options['min_steps']} is more than trainer.max_steps={options['max_steps']}"
        )
    try:
        trainer = Trainer(
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
            plugins=[*(options.pop("plugins", None) or []), SealedCheckpointIO()],
            **options,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException, ImportError) as error:
        raise UserError(f"trainer: {error}{override_hint('trainer')}") from error
    check_precision(str(trainer.precision))
    return trainer


def _guided(model: ScoreModel, guidance: Any, modules: Sequence[str]) -> Denoiser:
    """See `guided_denoiser`; loads the user's modules first, for processes that ddp_spawn has started."""
    from sde_diffusion.training.guided_denoiser import guided_denoiser

    for module in modules:
        plugins.load(module)
    return guided_denoiser(model, guidance)


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
