"""What `sde_diffusion.likelihood` asks of a way to score items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class Scorer(ABC):
    """How items are scored.

    Attributes:
        levels: Number of levels of the data; None for continuous data.
        plan: What the scores depend on beside the configuration, for JSON.
        convention: What the numbers mean, in words.
        columns: The meaning of the columns of the table, in words.
        settings: Keys of the configuration to report.
        ordered: Pairs of scores of which the first is a lower bound of what the second is, or is a bound of.
        equal: Why the scores of each pair are equal, in words; empty if they are not.
        more: Further entries of the report.
    """

    levels: int | None
    plan: Mapping[str, Any]
    convention: str
    columns: str
    settings: Sequence[str]
    ordered: Sequence[tuple[str, str]]
    equal: str = ""
    more: Mapping[str, Any]

    @abstractmethod
    def __call__(self, x: Tensor, seeds: Sequence[int], **conditions: Any) -> dict[str, Tensor]:
        """The scores of a batch by name, [B] each, float64, on the CPU, in nats.

        Args:
            x: Data on [-1, 1], [B, *dims].
            seeds: One integer for each item, on which alone its noise depends.
            **conditions: Conditions of the model.

        Raises:
            UserError: If the batch cannot be scored.
            ValueError: If an argument is not allowed.
        """

    @abstractmethod
    def impossible(self, x: Tensor, seeds: Sequence[int], **conditions: Any) -> dict[str, Tensor]:
        """Scores of a batch for which `__call__` raises a UserError; the log-probability is -infinity."""

    @abstractmethod
    def passes(self) -> list[str]:
        """How many network passes to expect, one fact a line."""
