"""What a training run reports on the screen, and records in its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from sde_diffusion import plugins
from sde_diffusion.checks.overrides import command_line
from sde_diffusion.commands.app import as_typed, overrides, resolved
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.conditions import numbered
from sde_diffusion.storage import record

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_COMMANDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("sample", "draws_samples", {"n": 64}),
    ("evaluate", "draws_samples", {}),
    ("evaluate", "reconstructs", {"of": "reconstructions"}),
    ("likelihood", "has_bound", {}),
)
"""The commands to try next, the property that a model needs for each, and further settings."""


def record_run(cfg: DictConfig, model: GenerativeModel, trainer: Trainer, folder: Path) -> None:
    """Record what is run: in the folder, in the checkpoints, and with the loggers that store configurations."""
    # In a multirun, these are the overrides of this run; those of hydra.* are not included.
    words = [as_typed(override) for override in overrides()]
    device = trainer.strategy.root_device.type
    config = _relative(OmegaConf.to_container(cfg, resolve=True), folder)
    description = record.describe(config, words, device, trainer.num_devices, trainer.num_nodes)
    record.begin(folder, description, resumed=bool(cfg.ckpt))
    model.run["record"] = {key: value for key, value in description.items() if key != "config"}  # already in `run`
    for logger in trainer.loggers:
        logger.log_hyperparams({"run": description})  # under one key: a wandb sweep locks the keys that it sets


def _relative(node: Any, folder: Path) -> Any:
    """A configuration with paths relative to the run's folder, so that it does not depend on where that is."""
    if isinstance(node, dict):
        return {key: _relative(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [_relative(value, folder) for value in node]
    inside = isinstance(node, str) and Path(node).is_relative_to(folder)
    return str(Path(node).relative_to(folder)) if inside else node


def announce(cfg: DictConfig, model: GenerativeModel, data: Any, folder: Path) -> None:
    """Log what is trained, on which data, and in which folder."""
    log.info("data     %s: %d training %s", data.name, len(data.split("train")), data.modality.kind)
    for name, kind in data.conditions.items():
        names = f" ({numbered(kind.names)})" if kind.names else ""
        heading = "given" if name in model.conditions else "unused"
        log.info("%-8s %s: %s%s", heading, name, kind.what, names)
    if data.units:
        log.info("units    %s in the data is scaled to [-1, 1]", data.units)
    for heading, text in model.summary().items():
        log.info("%-8s %s", heading, text)
    log.info("folder   %s%s", folder, f"  (resuming {cfg.ckpt})" if cfg.ckpt else "")


def finish(model: GenerativeModel, folder: Path, metrics: dict[str, float]) -> None:
    """Draw the curves of the metrics and mark the run as finished in its record, unless that has been done."""
    from sde_diffusion.modality import pictures

    if record.read(folder).get("finished", "no record"):
        return
    if (folder / "metrics.csv").is_file():
        pictures.save(pictures.loss_plot(folder / "metrics.csv", model.loss_axis), folder / "loss.png")
        for name, curves in model.curves().items():
            if (drawn := curves.plot(folder / "metrics.csv")) is not None:
                pictures.save(drawn, folder / name)
    record.finish(folder, metrics)


def conclude(cfg: DictConfig, model: GenerativeModel, folder: Path, last: Path) -> None:
    """Log which files the run has written, and which commands to try next, with the guidance of the run's pictures."""
    log.info("")
    log.info("Done. In %s:", folder)
    for name, what in (
        ("checkpoints", "last.ckpt and best.ckpt (lowest validation loss)"),
        ("samples", f"pictures during training: {', '.join(_drawn(folder / 'samples'))}"),
        ("loss.png", "training and validation loss; numbers in metrics.csv"),
        *((name, f"{curves.what}; numbers in metrics.csv") for name, curves in model.curves().items()),
        ("noise_levels.png", "validation loss against log-SNR; numbers in noise_levels.csv"),
        ("schedule.png", "the learned path and noise levels of training; numbers in schedule.csv"),
        ("config.yaml", "the full configuration; the log is in train.log"),
        (record.NAME, "command, resolved configuration, seeds, versions, git revision, hardware"),
    ):
        if (folder / name).exists():
            log.info("  %-16s %s", name, what)
    usable = [(name, more) for name, needed, more in _COMMANDS if getattr(model, needed)]
    if not usable:
        return
    log.info("Next:")
    if model.measured is not None:
        given = {"ckpt": last, "split": "test", "n": 4, "noise": min(0.1, model.measured.noise)}
        log.info("  %s", command_line("sde_diffusion.restore", **plugins.settings(), **given))
        return
    for name, more in usable:
        own = dict.fromkeys(model.conditions, "own") if name == "likelihood" else {}
        guidance = {} if "of" in more else _guidance(cfg)
        settings = {**plugins.settings(), "ckpt": last, **guidance, **own, **more}
        log.info("  %s", command_line(f"sde_diffusion.{name}", **settings))
    if model.can_be_first_stage:
        settings = {**plugins.settings(), "model": "latent", "first_stage.ckpt": last}
        log.info("  %s  # with the data= of this run", command_line("sde_diffusion.train", **settings))


def _drawn(folder: Path) -> list[str]:
    """What a run has drawn in a folder: samples, and the pictures in folders of their own."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [*(["samples"] if any(folder.glob("*.png")) else []), *names]


def _guidance(cfg: DictConfig) -> dict[str, Any]:
    """The settings that give another command the guidance of this run."""
    node = resolved(cfg.guidance)
    if node is None:
        return {}
    choices = {
        path.stem: resolved(OmegaConf.load(path)) or {} for path in (config_folder() / "guidance").glob("*.yaml")
    }
    usual = next((name for name, own in choices.items() if own.get("_target_") == node["_target_"]), "cfg")
    changed = {f"guidance.{key}": value for key, value in node.items() if choices[usual].get(key) != value}
    return {"guidance": usual, **changed}
