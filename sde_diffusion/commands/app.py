"""What the commands share: Hydra with this package's configurations, and error messages that a user can act on."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sde_diffusion.checks.overrides import setting
from sde_diffusion.commands import made_folders, user_classes
from sde_diffusion.commands.compilation import compilation_failed
from sde_diffusion.commands.configurations import check_groups, config_folder, described, nulls, register_resolvers
from sde_diffusion.commands.exhausted import has_finished_work, within_limits
from sde_diffusion.commands.messages import explain
from sde_diffusion.commands.typed_conditions import in_full
from sde_diffusion.config import public_path
from sde_diffusion.errors import FinishedError, UserError
from sde_diffusion.storage import signals
from sde_diffusion.storage.files import remove_leftovers
from sde_diffusion.storage.lock import locked
from sde_diffusion.storage.ranks import is_first_process

log = logging.getLogger(__name__)


def command(name: str, task: Callable[..., Any] | None = None, processes: bool = False, **arguments: Any) -> None:
    """Run a command: compose its configuration from `sys.argv`, call the task, and turn mistakes into messages.

    Args:
        name: Name of the command and of its configuration in conf/.
        task: Called with the configuration; None: the function `name` of `sde_diffusion.commands.name`, imported only
            when it is called, so that help pages are quick.
        processes: Whether several processes run the command together; the first one then locks the output folder.
        **arguments: Further arguments of the task.

    Exits with status 1 and one message on a user's mistake, and with 128 + number on a signal: 130 on Ctrl-C, 143 on
    SIGTERM. If a run of a multirun fails, the others still run; its error is printed when it happens, and the run is
    listed again at the end.
    """
    signals.listen()
    register_resolvers()
    sys.argv = in_full(name, user_classes.allow_new_keys(nulls(sys.argv)))
    for stream in (sys.stdout, sys.stderr):  # in a locale without ü or ± a message must not end in a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Hydra then raises its own errors instead of printing them, and they are reported below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failed: list[str] = []
    finished: list[str] = []  # folders of a multirun's runs

    def run_task(cfg: DictConfig) -> Any:
        try:
            # Inside Hydra as well, which would print its own report of an exception that reaches it.
            with reporting_errors(), within_limits(name):
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    signals.release()  # signals that arrived too late to stop the previous run
                user_classes.apply(cfg, overrides())
                _use_public_paths(cfg)
                importlib.import_module(f"{__package__}.schema").check(name, cfg)
                run = task or getattr(importlib.import_module(f"sde_diffusion.commands.{name}"), name)
                with _locked_folder(name) if not processes or is_first_process() else nullcontext():
                    try:
                        result = run(cfg, **arguments)
                    except FinishedError as error:  # of a multirun that is started again
                        if HydraConfig.get().mode != RunMode.MULTIRUN:
                            raise
                        log.info("%s", error)
                        result = None
                    finished.append(HydraConfig.get().runtime.output_dir)
                    return result
        except (SystemExit, Exception) as error:
            stopped = isinstance(error, signals.Stopped)
            if stopped and not processes:  # training prints its own message
                conf = HydraConfig.get()
                out = conf.sweep.dir if conf.mode == RunMode.MULTIRUN else conf.runtime.output_dir
                if finished or has_finished_work(Path(conf.runtime.output_dir)):
                    log.warning("finished work is kept: the same command with %s resumes there", setting("out", out))
                else:
                    log.warning("stopped before any work was finished: the same command starts again")
            refused = isinstance(error, SystemExit) and not stopped
            made_folders.remove_if_unused(Path(HydraConfig.get().runtime.output_dir), f"{name}.log", refused)
            if HydraConfig.get().mode != RunMode.MULTIRUN or stopped:
                raise
            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            failed.append(HydraConfig.get().runtime.output_dir)
            raise RunFailedError(failed[-1]) from None  # Hydra raises it again after the other runs

    with reporting_errors(), signals.ending_with_reader(), within_limits(name):
        check_groups(sys.argv[1:])
        try:
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(run_task)()
        except RunFailedError as error:
            runs = failed or [str(error)]  # if the runs are separate processes, only the first failure is known here
            raise UserError(f"these runs failed, for the reasons above: {', '.join(runs)}") from None


def _use_public_paths(node: Any) -> None:
    """Replace each `_target_` of this package by its public path, which records and checkpoints then contain."""
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if key == "_target_" and isinstance(node[key], str):
            node[key] = public_path(node[key])
        elif isinstance(node[key], DictConfig | ListConfig):
            _use_public_paths(node[key])


@contextmanager
def _locked_folder(name: str) -> Iterator[None]:
    """Lock the output folder for this process, and remove temporary files that killed processes left there."""
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    with locked(folder, name):
        remove_leftovers(folder)
        yield


class RunFailedError(Exception):
    """A run of a multirun has failed, and its error has been printed."""


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn a user's mistake into one message and exit status 1; signals set their own status, 128 + number."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).split(":")[-1].strip()
        _fail(f"{key} is needed: give {key}=VALUE (see --help)")
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error))
    except (FileExistsError, NotADirectoryError) as error:
        _fail(f"{error.filename} is a file, or is below one: choose another folder")
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except ValueError as error:
        if "configure handler" not in str(error):
            raise
        # from logging: the log file cannot be opened, or Hydra reads its folder's name as an interpolation
        _fail(f"cannot write a log into the run's folder ({error.__cause__}); choose another with hydra.run.dir=DIR")
    except RuntimeError as error:
        if failed := compilation_failed(error):
            _fail(failed)
        if "srun" not in str(error):
            raise
        _fail(f"hydra/launcher: {error} Without Slurm, leave the launcher out or use hydra/launcher=submitit_local")


def resolved(node: Any) -> Any:
    """A configuration node as dicts and lists, with interpolations resolved.

    Raises:
        UserError: If a mandatory value is missing.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return node
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        hints = "".join(_comment(key) for key in missing)
        raise UserError(f"{', '.join(missing)} must be given: add {' '.join(f'{key}=VALUE' for key in missing)}{hints}")
    return OmegaConf.to_container(node, resolve=True)


def _comment(key: str) -> str:
    """What the chosen configuration file says about a key that must be given; "" if it says nothing."""
    group, _, name = key.rpartition(".")
    chosen = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
    return described(group, chosen, name)


def _fail(message: str) -> None:
    # Names of files and archive members may be anything: control characters are escaped, not sent to the terminal.
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(1)


def overrides() -> list[Override]:
    """The overrides of the command line, without those of hydra.*; in a multirun, those of the current run.

    Without a command, in Python, there are none.
    """
    if not HydraConfig.initialized():
        return []
    return OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))


def is_overridden(key: str) -> bool:
    """Whether the command line sets a key or one below it."""
    return any(_within(override, key) for override in overrides())


def as_typed(override: Override) -> str:
    """An override as the user typed it, without the ++ that `resuming.allow_stored_keys` adds."""
    return str(override.input_line).removeprefix("++")


def override_hint(group: str) -> str:
    """The overrides of a group, for error messages: " (given: trainer.precision=foo)"."""
    words = [as_typed(override) for override in overrides() if _within(override, group)]
    return f" (given: {' '.join(words)})" if words else ""


def _within(override: Override, key: str) -> bool:
    return f"{override.key_or_group}.".startswith(f"{key}.")
