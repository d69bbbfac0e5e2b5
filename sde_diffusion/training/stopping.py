"""Where a training run stops when a signal asks for it: between two steps, in all processes between the same two."""

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
    """Which signal any of the processes has heard: an answer that is the same in all of them.

    One process knows at once. Several know one call later: each call starts the reduction of what is known now and
    returns that of the call before, which has long arrived by then. So nobody waits for the others, and the flags,
    which go from CPU to CPU over gloo whatever the devices are, never make a host wait for its GPU. A process that has
    died shows as an error of the next call.
    """

    def __init__(self, world_size: int) -> None:
        several = world_size > 1 and dist.is_available() and dist.is_initialized()
        self._group: Any = dist.new_group(backend="gloo") if several else None
        self._number = torch.zeros((), dtype=torch.int64)
        self._work: Any = None

    def __call__(self, number: int) -> int:
        """The number of a signal, or 0; every process must make each call.

        Args:
            number: The signal that this process has heard, or 0.
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
    """End the run where a signal asked for it: after the whole step, before the next batch; or within a validation.

    A validation that is broken off is made anew by the resumed run, from its beginning. The last one, after the last
    step, is not broken off: a run that has taken its last step ends as if it had not been asked.

    Takes the place of Lightning's handling of signals, which (2.6.6) is mended upstream when

    - `_SignalConnector._sigterm_notifier_fn` makes no collective call in the signal handler, where the other processes
      are anywhere, and `_slurm_sigusr_handler_fn` does not write a checkpoint there, in the middle of a step;
    - `_TrainingEpochLoop._broadcast_sigterm_tensor` hears processes other than the first, and does not make the host
      wait for the device in every step.

    It requeues no Slurm job, as Lightning would: a job that runs again finds its run by `ckpt=`.
    """

    def __init__(self) -> None:
        self._agreed: Agreement | None = None
        self._handlers: dict[Any, Any] = {}
        self._breakable = 0

    def write(self, trainer: Trainer) -> None:
        """Keep the state in which the run stops; all processes are here."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave signals to this package's handler."""
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
            if trainer.is_global_zero and getattr(
                trainer._accelerator_connector.cluster_environment, "auto_requeue", False
            ):
                log.info("Slurm's warning (SIGUSR1) ends the run with a checkpoint; it does not requeue the job")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self._handlers = signals.listen()
        if self._handlers:
            signals.hold()
        self._agreed = Agreement(trainer.world_size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before a step, if asked; not before a further batch of the same step, whose gradients would be lost."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See up to which batch all processes take part: one may have a batch less than another."""
        self._breakable = 0
        if trainer.state.fn != TrainerFn.FITTING or self._agreed is None:  # or in Lightning's check before training
            return
        if not trainer.should_stop and not unfinished(trainer):
            self._breakable = self._agreed.least(int(min(trainer.num_val_batches[0], 2**31)))
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before a batch of a validation, if asked."""
        if batch_idx < self._breakable and dataloader_idx == 0:
            self._stop_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the handlers back; the other processes may be anywhere, so nothing here needs them."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the signals as they were found."""
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
    """How many batches of a step that accumulates gradients have been taken, where it is not at its end."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    taken: int = batches.current.processed
    if batches.is_last_batch or taken >= trainer.num_training_batches:  # on which Lightning takes a step in any case
        return 0
    return taken % trainer.accumulate_grad_batches


def _nothing() -> None:
    """Do nothing, in place of Lightning's own."""
