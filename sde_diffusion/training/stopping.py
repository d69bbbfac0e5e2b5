"""Stopping of a training run by a signal: between two steps, and after the same step in all processes."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from sde_diffusion.storage import signals

log = logging.getLogger(__name__)


class Agreement:
    """The signal that any of the processes has received; all of them get the same answer.

    With several processes, the answer comes one call later: each call starts a reduction, and returns the result of the
    previous one, which has arrived long before. So no process waits for the others. The reduction uses gloo on the
    CPUs, so that no process waits for its GPU either. If a process has died, the next call raises an error.
    """

    def __init__(self, world_size: int) -> None:
        several = world_size > 1 and dist.is_available() and dist.is_initialized()
        self._group: Any = dist.new_group(backend="gloo") if several else None
        self._number = torch.zeros((), dtype=torch.int64)
        self._work: Any = None

    def __call__(self, number: int) -> int:
        """The number of a signal, or 0; every process must make each call.

        Args:
            number: The signal that this process has received, or 0.
        """
        if self._group is None:
            return number
        if self._work is not None:
            self._work.wait()
        agreed = int(self._number)
        self._number = torch.tensor(number)
        self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def least(self, count: int) -> int:
        """The smallest of all processes' counts; every process must make each call."""
        if self._group is None:
            return count
        counts = torch.tensor(count)
        dist.all_reduce(counts, dist.ReduceOp.MIN, self._group)
        return int(counts)


class StopBetweenSteps(Callback):
    """Stop the run when a signal has arrived: after the current step, or during a validation.

    A resumed run repeats an interrupted validation from its beginning. The validation after the last step is not
    interrupted: the run then ends as if there had been no signal.

    Replaces Lightning's handling of signals. It can be removed once, in Lightning (checked: 2.6.6),

    - `_SignalConnector._sigterm_notifier_fn` makes no collective call in the signal handler, when the other processes
      may be anywhere, and `_slurm_sigusr_handler_fn` writes no checkpoint there, in the middle of a step;
    - `_TrainingEpochLoop._broadcast_sigterm_tensor` includes signals to other processes than the first, and does not
      make the host wait for the device in every step.

    Unlike Lightning, it does not requeue Slurm jobs: a job that is started again resumes by `ckpt=`.
    """

    def __init__(self) -> None:
        self._agreed: Agreement | None = None
        self._handlers: dict[Any, Any] = {}
        self._breakable = 0

    def write(self, trainer: Trainer) -> None:
        """Store the state in which the run stops. It is called in all processes."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turn off Lightning's handling of signals."""
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
            if trainer.is_global_zero and getattr(
                trainer._accelerator_connector.cluster_environment, "auto_requeue", False
            ):
                log.info("Slurm's warning signal (SIGUSR1) ends the run with a checkpoint; the job is not requeued")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, handle signals at the end of the step."""
        self._handlers = signals.listen()
        if self._handlers:
            signals.hold()
        self._agreed = Agreement(trainer.world_size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before a step if a signal has arrived, but not between batches of a step, as gradients would be lost."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out up to which batch all processes take part, as some may have one batch less than others."""
        self._breakable = 0
        if trainer.state.fn != TrainerFn.FITTING or self._agreed is None:  # None in Lightning's sanity check
            return
        if not trainer.should_stop and not unfinished(trainer):
            self._breakable = self._agreed.least(int(min(trainer.num_val_batches[0], 2**31)))
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before a batch of a validation if a signal has arrived."""
        if batch_idx < self._breakable and dataloader_idx == 0:
            self._stop_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers, without any communication, as the other processes may be anywhere."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self._restore()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        assert self._agreed is not None
        if number := self._agreed(signals.asked()):
            self.write(trainer)
            raise signals.Stopped(number, agreed=True)

    def _restore(self) -> None:
        signals.restore(self._handlers)
        self._handlers, self._agreed = {}, None


def unfinished(trainer: Trainer) -> int:
    """Number of batches processed in an incomplete step of gradient accumulation; 0 between steps."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    taken: int = batches.current.processed
    if batches.is_last_batch or taken >= trainer.num_training_batches:  # Lightning always completes the step there
        return 0
    return taken % trainer.accumulate_grad_batches


def _nothing() -> None:
    """Do nothing; replaces methods of Lightning."""
