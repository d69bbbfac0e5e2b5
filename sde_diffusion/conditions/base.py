"""The base class of every kind of condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.config import settings_of
from sde_diffusion.errors import UserError


class Condition(ShowsArguments, ABC):
    """One thing that a model is told of each sample: what its values may be, and how a network takes them in.

    Values of a batch are one tensor [B, *shape]. A value that stands for none, `null`, is one of them: a model that is
    not told a condition, and one that is told its null, do the same.

    A new kind is a subclass that keeps its constructor's arguments, plain containers, under their own names, sets the
    attributes below, and writes the abstract methods.

    Attributes:
        dtype: Of the values.
        shape: Of one sample's value; () for a number.
        null: What stands for none, of one sample: a number, or a tensor of that shape.
        each: What one sample's value is called, in messages.
    """

    dtype: ClassVar[torch.dtype]
    shape: tuple[int, ...] = ()
    null: int | float | Tensor
    each: str

    @classmethod
    @abstractmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """The condition that data's values are of, or None if they are of another kind.

        Args:
            splits: Values of each split, [N, ...], those of the training split first.
            names: Of the classes, if the values are classes that have names.
        """

    @abstractmethod
    def allowed(self, name: str) -> str:
        """What values may be, for messages: "label must be integers in 0 ... 9 (or 10: no label)"."""

    @abstractmethod
    def takes(self, dtype: torch.dtype) -> bool:
        """Whether values may come in this type."""

    @abstractmethod
    def wrong(self, values: Tensor) -> str:
        """The first value of [..., *shape] that is out of range, for the message; "" where none is."""

    @abstractmethod
    def embedding(self, dim: int) -> nn.Module:
        """A module that maps values [N, *shape] to vectors [N, dim], nulls too."""

    def in_turn(self, n: int) -> Tensor | None:
        """All that the values can be, in turn, [n, *shape]; None where they are too many to be counted."""
        return None

    def describe(self) -> dict[str, Any]:
        """Plain containers, for checkpoints: the class by its public path, and the constructor's arguments."""
        return settings_of(self, Condition)

    def nulls(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """The null value of n samples, [n, *shape]."""
        if isinstance(self.null, Tensor):
            return self.null.to(device, self.dtype).expand(n, *self.shape)
        return torch.full((n, *self.shape), self.null, dtype=self.dtype, device=device)

    def check(self, name: str, value: Any, batch: int, device: torch.device | None = None, wait: bool = True) -> Tensor:
        """Values of a batch, looked at once, as embeddings take them.

        Args:
            name: Of the condition.
            value: One value for each sample, or one for all: a tensor, an array, a list or a number.
            batch: Number of samples B.
            device: Where the values are wanted.
            wait: Whether values that lie on a GPU are looked at, for which it must be waited for.

        Returns:
            [B, *shape], of the type `dtype`.

        Raises:
            ValueError: If values are of another type, out of their range, or there are not B of them.
        """
        try:
            values = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.allowed(name)}; got {value!r:.60}") from None
        if not self.takes(values.dtype):
            raise ValueError(f"{self.allowed(name)}; got {str(values.dtype).removeprefix('torch.')}")
        lead = tuple(values.shape[: max(0, values.ndim - len(self.shape))])
        if tuple(values.shape) != (*lead, *self.shape) or lead not in ((), (1,), (batch,)):
            samples = f"each of the {batch} samples" if batch > 1 else "all samples"
            raise ValueError(f"{name} must be one {self.each} for {samples}; got shape {list(values.shape)}")
        # Under torch.compile a look at the values would break the graph.
        if wait or (values.device.type == "cpu" and not torch.compiler.is_compiling()):
            wrong = self.wrong(values.to(self.dtype))
            if wrong:
                raise ValueError(f"{self.allowed(name)}; got {wrong}")
        return values.to(device, self.dtype).expand(batch, *self.shape)

    def read(self, name: str, given: Any, n: int) -> Tensor:
        """Values of n samples from a command line.

        Args:
            name: Of the condition.
            given: What was typed after NAME=, or the array of a file; one value for all samples, or one for each.
            n: Number of samples.

        Returns:
            [n, *shape].

        Raises:
            UserError: If it is none, or there are not n of them.
        """
        try:
            return self.check(name, given, n)
        except ValueError as error:
            raise UserError(str(error)) from error
