"""Ranges of arguments of Lightning's Trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from sde_diffusion.checks.hints import Count, Natural, Rule, at_least


def _no_limit(what: str) -> Rule:
    return Rule(f"an integer, -1 ({what}) or at least 1", lambda n: n == -1 or n >= 1)


def _is_duration(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value)) and bool(re.search("[1-9]", value))
    return bool(value) and min(value.values()) >= 0 and max(value.values()) > 0


_SHARE = Annotated[int | float, Rule("a positive number of batches, or a share of them", lambda x: x > 0)]

TRAINER: Mapping[str, Any] = MappingProxyType(
    {
        "max_steps": Annotated[int, _no_limit("no limit")],
        "max_epochs": Annotated[int, _no_limit("no limit")] | None,
        "min_steps": Natural | None,
        "min_epochs": Natural | None,
        "max_time": Annotated[
            str | Mapping[Literal["days", "hours", "minutes", "seconds"], int],
            Rule("a time DAYS:HOURS:MINUTES:SECONDS, such as 00:00:05:00", _is_duration),
        ]
        | None,
        "num_nodes": Count,
        "devices": Annotated[int, _no_limit("all")] | str | list[Natural],
        "gradient_clip_val": Annotated[float, Rule("a number of at least 0", lambda x: x >= 0)] | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "accumulate_grad_batches": Count,
        "val_check_interval": Count,
        "check_val_every_n_epoch": Count | None,
        "num_sanity_val_steps": Annotated[int, at_least(-1)],
        "log_every_n_steps": Natural,
        "limit_train_batches": _SHARE | None,
        "limit_val_batches": _SHARE | None,
        "fast_dev_run": Literal[False],  # it disables loggers and checkpoints: use max_steps
        "overfit_batches": Literal[0],
        "reload_dataloaders_every_n_epochs": Literal[0],  # they are endless
        "strategy": str,
        "accelerator": str,
        "profiler": str | None,
    }
)
"""Ranges of arguments of Lightning's Trainer that it does not check, or checks only during a run."""
