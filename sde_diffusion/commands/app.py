"""What the commands share: Hydra with this package's configurations, and errors that a person can act on."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from sde_diffusion.commands import own_classes
from sde_diffusion.commands.configurations import check_groups, config_folder, nulls, register_resolvers
from sde_diffusion.commands.exhausted import within_limits
from sde_diffusion.commands.messages import explain
from sde_diffusion.commands.typed_conditions import with_conditions
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
        name: The command's, and its configuration's in conf/.
        task: What it does with the configuration; None: the function `name` of `sde_diffusion.commands.name`, imported
            when it is called, so that a help page need not wait for it.
        processes: Whether several processes of it work together in one folder, which the first then holds for all.
        **arguments: What else the task is called with.

    Exits with status 1 and one message on a user's mistake, and with 128 + number on a signal that asks it to end: 130
    on Ctrl-C, 143 on SIGTERM. A run of a multirun that fails does not keep the others from running: it is told where it
    happens and once more at the end.
    """
    signals.listen()
    register_resolvers()
    sys.argv = with_conditions(name, own_classes.adding(nulls(sys.argv)))
    for stream in (sys.stdout, sys.stderr):  # in a locale without ü or ± a message must not end in a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Hydra then raises its own errors instead of printing them, and they are told below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failed: list[str] = []

    def told(cfg: DictConfig) -> Any:
        try:
            # Inside Hydra too, which would print its own report of an exception that passes through.
            with telling(), within_limits(name):
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    signals.release()  # what came when the run before this one could no longer be stopped
                own_classes.take(cfg, overrides())
                _name_by_public_paths(cfg)
                importlib.import_module(f"{__package__}.schema").check(name, cfg)
                run = task or getattr(importlib.import_module(f"sde_diffusion.commands.{name}"), name)
                with _held(name) if not processes or is_first_process() else nullcontext():
                    try:
                        return run(cfg, **arguments)
                    except FinishedError as error:  # of a multirun that is typed again
                        if HydraConfig.get().mode != RunMode.MULTIRUN:
                            raise
                        log.info("%s", error)
                        return None
        except (SystemExit, Exception) as error:
            stops = isinstance(error, signals.Stopped)
            if stops and not processes:  # which tells of its own
                asked = HydraConfig.get()
                out = asked.sweep.dir if asked.mode == RunMode.MULTIRUN else asked.runtime.output_dir
                log.warning("what was finished is kept: the same command with %s resumes there", setting("out", out))
            _remove_if_unused(Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode != RunMode.MULTIRUN or stops:
                raise
            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            failed.append(HydraConfig.get().runtime.output_dir)
            raise RunFailedError(failed[-1]) from None  # which Hydra keeps until the other runs are done

    with telling(), within_limits(name):
        check_groups(sys.argv[1:])
        try:
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(told)()
        except RunFailedError as error:
            runs = failed or [str(error)]  # where they are processes of their own, the first is known
            raise UserError(f"these runs failed, for the reasons above: {', '.join(runs)}") from None


def _name_by_public_paths(node: Any) -> None:
    """Let each `_target_` of this package be a public path, which records and checkpoints then keep."""
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if key == "_target_" and isinstance(node[key], str):
            node[key] = public_path(node[key])
        elif isinstance(node[key], DictConfig | ListConfig):
            _name_by_public_paths(node[key])


@contextmanager
def _held(name: str) -> Iterator[None]:
    """The output folder, for this process alone, and without what killed ones left in it."""
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    with locked(folder, name):
        remove_leftovers(folder)
        yield


def _remove_if_unused(folder: Path) -> None:
    """Remove an output folder that holds an empty log alone, which Hydra made before the command was refused."""
    with suppress(OSError, ValueError):
        there = list(folder.iterdir())
        if all(path.suffix == ".log" and not path.stat().st_size for path in there):
            for path in there:
                path.unlink()
            for made in (folder, *list(Path(folder.relative_to(Path.cwd())).parents)[:-1]):  # outputs/train too
                made.rmdir()


class RunFailedError(Exception):
    """A run of a multirun has failed, and that has been told."""


@contextmanager
def telling() -> Iterator[None]:
    """Turn a user's mistake into one message and exit status 1; a signal's status is 128 + number by itself."""
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
        _fail(f"{error.filename} is or lies under a file: choose another folder")
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except ValueError as error:
        if "configure handler" not in str(error):
            raise
        # logging's, on a log file that cannot be opened, or whose folder's name Hydra takes for an interpolation
        _fail(f"cannot write a log into the run's folder ({error.__cause__}); choose another with hydra.run.dir=DIR")
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        _fail(f"hydra/launcher: {error} Without one, leave the launcher out, or take hydra/launcher=submitit_local")


def plain(node: Any) -> Any:
    """A configuration node as plain containers, interpolations resolved.

    Raises:
        UserError: If a value that must be given is missing.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return node
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise UserError(f"{', '.join(missing)} must be given: add {' '.join(f'{key}=VALUE' for key in missing)}")
    return OmegaConf.to_container(node, resolve=True)


def _fail(message: str) -> None:
    # Names of files and members come from others: control characters are escaped, not sent to the terminal.
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(1)


def overrides() -> list[Override]:
    """What the command line sets, hydra.* apart; of a multirun's runs each has its own."""
    return OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))


def is_given(key: str) -> bool:
    """Whether the command line sets a key, or one below it."""
    return any(_within(override, key) for override in overrides())


def typed(override: Override) -> str:
    """An override as it was typed, without the ++ that `resuming.accepting` adds."""
    return str(override.input_line).removeprefix("++")


def given(group: str) -> str:
    """What the command line says about a group, for messages: " (given: trainer.precision=foo)"."""
    words = [typed(override) for override in overrides() if _within(override, group)]
    return f" (given: {' '.join(words)})" if words else ""


def _within(override: Override, key: str) -> bool:
    return f"{override.key_or_group}.".startswith(f"{key}.")
