"""The processes of a training run on several devices: none outlives the others, and a signal to any ends all."""

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
"""Names the process that started this one in the environment of the processes that Lightning starts."""

_LOST = re.compile(r"connection|broken pipe|gloo|nccl|process ?group|socket", re.IGNORECASE)
"""How torch words that another process of the run cannot be reached: it has no exception of its own for that."""


class LostProcessError(Exception):
    """Another process of the run has ended without being asked to, and training cannot go on."""


def is_follower() -> bool:
    """Whether Lightning started this process, in the run's first one."""
    launched = os.environ.get(LAUNCHER, str(os.getpid())) != str(os.getpid())
    return launched and os.environ.get("LOCAL_RANK", "0") != "0"  # as Lightning numbers those that it starts


def follow_launcher() -> None:
    """In a process that Lightning started: end when the first one has, and tell it of signals until training begins."""
    if is_follower():
        launcher = int(os.environ[LAUNCHER])
        signals.end_with(launcher)
        signals.pass_on(lambda number: _tell(launcher, number))


def _tell(process: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended, and this one will
        os.kill(process, number)


@contextmanager
def processes(trainer: Trainer) -> Iterator[None]:
    """The part of a run in which its processes work together.

    A process that only waits for others (trainer.strategy=ddp_spawn) passes signals on to them.

    Raises:
        Stopped: If a signal stopped the run.
        LostProcessError: If another process has gone.
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
            launcher.kill(signal.SIGKILL)  # those that wait for this process would complain at length
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
        raise LostProcessError(f"another process of this run has ended, so training cannot go on ({reason})") from error
    finally:
        if not is_follower():
            os.environ.pop(LAUNCHER, None)
