"""The processes of a training run on several devices: they end together, and a signal to one of them stops all."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sde_diffusion.storage import signals

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LAUNCHER = "SDE_DIFFUSION_LAUNCHER"
"""Environment variable with the id of the first process, for the processes that Lightning starts."""

_LOST = re.compile(r"connection|broken pipe|gloo|nccl|process ?group|socket", re.IGNORECASE)
"""Matches torch's messages that another process cannot be reached, for which it has no exception class."""


class LostProcessError(Exception):
    """Another process of the run has ended unexpectedly, and training cannot continue."""


def is_follower() -> bool:
    """Whether Lightning started this process from the run's first process."""
    launched = os.environ.get(LAUNCHER, str(os.getpid())) != str(os.getpid())
    return launched and os.environ.get("LOCAL_RANK", "0") != "0"  # Lightning numbers those that it starts from 1


def follow_launcher() -> None:
    """In a process that Lightning started: end with the first process, and send it signals until training begins."""
    if is_follower():
        launcher = int(os.environ[LAUNCHER])
        signals.end_with(launcher)
        signals.pass_on(lambda number: _send(launcher, number))


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended, and so will this one
        os.kill(process, number)


@contextmanager
def processes(trainer: Trainer) -> Iterator[None]:
    """Context in which the processes of a run work together.

    A process that only waits for the others (trainer.strategy=ddp_spawn) passes signals on to them.

    Raises:
        Stopped: If a signal stopped the run.
        LostProcessError: If another process has ended unexpectedly.
    """
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    launcher = trainer.strategy.launcher
    if not is_follower():
        os.environ[LAUNCHER] = str(os.getpid())
    try:
        if isinstance(launcher, _MultiProcessingLauncher):
            signals.pass_on(launcher.kill)
        yield
    except signals.Stopped as end:
        if launcher is not None and not end.agreed:
            launcher.kill(signal.SIGKILL)  # processes that wait for this one would print long errors
        raise
    except (ProcessExitedException, ProcessRaisedException, RuntimeError) as error:
        if trainer.world_size == 1:
            raise
        if isinstance(error, ProcessExitedException):
            if signals.asked() or error.exit_code - 128 in signals.SIGNALS:
                raise signals.Stopped(signals.asked() or error.exit_code - 128) from None
        elif not _LOST.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[-1][:200]
        raise LostProcessError(
            f"another process of this run has ended, so training cannot continue ({reason})"
        ) from error
    finally:
        if not is_follower():
            os.environ.pop(LAUNCHER, None)
