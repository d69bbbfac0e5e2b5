"""What `adams_by_item` knows of the items that are on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Items:
    """Items on their way: [B] each, float64 and int64 on the CPU; states and slopes, [B, *], on their device.

    Attributes:
        index: Which items these are.
        y: Their states.
        u: Where they are.
        h: Lengths of their next steps; 0 for an item whose slope at the start is not yet known.
        slopes: The last ones, newest first; of an item the first `known` count.
        nodes: Where these were evaluated, [B, order].
        known: How many slopes an item has, at most the order.
        using: The predictor's order in the next step, at most `known`.
        tighter: By which the tolerances are multiplied.
        turns: Consecutive changes of the error's sign.
        taken: Number of accepted steps.
        before: Errors of the last accepted steps, in tolerances.
    """

    index: Tensor
    y: Tensor
    u: Tensor
    h: Tensor
    slopes: list[Tensor]
    nodes: Tensor
    known: Tensor
    using: Tensor
    tighter: Tensor
    turns: Tensor
    taken: Tensor
    before: Tensor

    @classmethod
    def at(cls, start: float, index: Tensor, y: Tensor, order: int, slopes: int) -> Items:
        """Items at the start, with room for some slopes."""
        u = torch.full((len(y),), start, dtype=torch.float64)
        none = torch.zeros_like(index)
        nodes = u.unsqueeze(1).expand(-1, order).clone()
        room = [torch.zeros_like(y)] * slopes
        return cls(index, y, u, torch.zeros_like(u), room, nodes, none, none, torch.ones_like(u), none, none, room[0])

    def rows(self, mask: Tensor) -> Items:
        """Some of the items; mask: [B]."""
        kept = mask.nonzero().squeeze(1)
        there = kept.to(self.y.device)
        return _by_field(lambda value: value[there if value.device == there.device else kept], self)

    def __add__(self, others: Items) -> Items:
        """These items and others, which have as many slopes."""
        return _by_field(lambda *values: torch.cat(values), self, others)


def _by_field(change: Callable[..., Tensor], *sets: Items) -> Items:
    """The items of which each tensor is a function of the same tensors of some sets of items."""
    columns: Iterator[list[Any]] = ([getattr(one, field.name) for one in sets] for field in fields(Items))
    changed: Iterator[Any] = (list(map(change, *c)) if isinstance(c[0], list) else change(*c) for c in columns)
    return Items(*changed)
