"""Learning rate schedules: the learning rate as a share of its peak, by the progress of the run in steps or time."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

Schedule = Callable[[int, int, float, float], float]
"""(step, warmup_steps, total_steps, time_used) -> learning rate factor; see `cosine_schedule`."""


def constant_schedule(step: int, warmup_steps: int, total_steps: float, time_used: float = 0.0) -> float:
    """Learning rate factor: a linear rise over warmup_steps, then 1."""
    return min(1.0, (step + 1) / max(warmup_steps, 1))


def cosine_schedule(step: int, warmup_steps: int, total_steps: float, time_used: float = 0.0) -> float:
    """Learning rate factor: a linear rise over warmup_steps, then half a cosine down to 0 at the run's end.

    Args:
        step: Number of optimizer steps taken.
        warmup_steps: Number of steps of the linear rise.
        total_steps: Number of steps of the run; may be infinite.
        time_used: Share of the run's time that has passed, in [0, 1]. The cosine follows the larger of this and the
            share of steps.

    Returns:
        The factor, in [0, 1].
    """
    rise = min(1.0, (step + 1) / max(warmup_steps, 1))
    share = max((step - warmup_steps) / max(total_steps - warmup_steps, 1), time_used)
    return min(rise, 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant_schedule,
    "cosine": cosine_schedule,
}


def timer_of(trainer: Trainer) -> Timer | None:
    """The timer that ends a run at the trainer's max_time, if it has one."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return next((timer for timer in timers if timer.time_remaining() is not None), None)


def time_used(trainer: Trainer) -> float:
    """Share of the trainer's max_time that has passed, including the time before a resume; 0 without a limit.

    All processes get the same value, so that their learning rates do not differ.
    """
    timer = timer_of(trainer)
    if timer is None:
        return 0.0
    elapsed, left = timer.time_elapsed(), timer.time_remaining()
    assert left is not None
    used = elapsed / max(elapsed + left, 1e-9)
    return float(trainer.strategy.broadcast(used)) if trainer.world_size > 1 else used
