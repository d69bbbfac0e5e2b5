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
        together: Number of batches that are scored in one call; several where items leave a batch one by one, and those
            of the next take their places.
    """

    levels: int | None
    plan: Mapping[str, Any]
    convention: str
    columns: str
    settings: Sequence[str]
    ordered: Sequence[tuple[str, str]]
    equal: str = ""
    more: Mapping[str, Any]
    together: int = 1

    @abstractmethod
    def __call__(self, x: Tensor, seeds: Sequence[int], rows: int, **conditions: Any) -> dict[str, Tensor]:
        """The scores of items by name, [B] each, float64, on the CPU, in nats.

        Args:
            x: Data on [-1, 1], [B, *dims].
            seeds: One integer for each item, on which alone its noise depends.
            rows: Most items, or draws of items, of a network pass.
            **conditions: Conditions of the model.

        Raises:
            UserError: If an item cannot be scored.
            ValueError: If an argument is not allowed.
        """

    @abstractmethod
    def impossible(self, x: Tensor, seeds: Sequence[int], rows: int, **conditions: Any) -> dict[str, Tensor]:
        """Scores of items for which `__call__` raises a UserError; the log-probability is -infinity."""

    @abstractmethod
    def passes(self) -> list[str]:
        """How many network passes to expect, one fact a line."""
